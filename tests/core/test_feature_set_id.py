import pytest

from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId, adapter_variant


@pytest.mark.parametrize(
    ("text", "name", "variant", "held_out_fold"),
    [
        ("clip", "clip", "", None),
        ("hubert-UTT.v2", "hubert-UTT.v2", "", None),
        ("clip@fold-0", "clip", "fold-0", 0),
        ("clip@fold-12", "clip", "fold-12", 12),
        ("clip@all", "clip", "all", None),
        ("clip@tuned", "clip", "tuned", None),
    ],
)
def test_a_name_is_read_in_parts_and_written_as_it_was(text, name, variant, held_out_fold):
    own = FeatureSetId.parse(text)
    assert (own.name, own.variant, own.held_out_fold) == (name, variant, held_out_fold)
    assert str(own) == text and FeatureSetId.parse(str(own)) == own
    assert (own.is_tuned, own.is_of_all) == (variant == "tuned", variant == "all")


@pytest.mark.parametrize(
    "text",
    ["", "@all", "clip@", "clip@other", "clip@fold-", "clip@fold-00", "clip@fold-1x", "clip@all@all", "clip "]
    + ["../clip", "a/b", ".clip", "clip@fold--1", "clip\n", "clip@all\n", "clip@fold-١"],
)
def test_what_is_no_name_is_refused_and_shown(text):
    with pytest.raises(UserError, match="feature set .* a name is letters") as refused:
        FeatureSetId.parse(text)
    assert repr(text) in str(refused.value)
    with pytest.raises(UserError, match="^fuse.sets: feature set "):
        FuseConfig(sets=["voice", text])


def test_tuned_features_are_read_from_the_stored_set_of_each_adapter():
    tuned = FeatureSetId.parse("clip@tuned")
    assert [*map(str, tuned.stored(2))] == ["clip@fold-0", "clip@fold-1", "clip@all"]
    assert [str(tuned.stored_of(fold)) for fold in (1, None)] == ["clip@fold-1", "clip@all"]
    for text in ("clip", "clip@fold-0", "clip@all"):
        own = FeatureSetId.parse(text)
        assert own.stored(2) == [own] and own.stored_of(1) == own
    assert (adapter_variant(3), adapter_variant(None)) == ("fold-3", "all")
    assert FeatureSetId.of_adapter("clip", 3) == FeatureSetId.parse("clip@fold-3")
