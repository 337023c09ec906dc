import tracemalloc
from collections import Counter

import pytest

from mer_dist.config.sections import FoldConfig
from mer_dist.core.errors import UserError
from mer_dist.crossfit import folds
from mer_dist.storage.files import read_json, write_json

SIX = ("happy", "sad", "sad", "angry", "sad", "happy")
LABELS = {f"clip{row:03d}": SIX[row % 6] for row in range(60)}


def test_every_fold_has_every_class_in_its_share():
    made = folds.make(LABELS, FoldConfig(count=5))
    assert made.keys() == LABELS.keys()
    for fold in range(5):
        held_out = Counter(LABELS[name] for name, its in made.items() if its == fold)
        assert held_out == {"sad": 6, "happy": 4, "angry": 2}


def test_folds_depend_on_the_seed_and_not_on_the_order_of_clips():
    made = folds.make(LABELS, FoldConfig(count=5, seed=7))
    assert folds.make(dict(reversed(LABELS.items())), FoldConfig(count=5, seed=7)) == made
    assert folds.make(LABELS, FoldConfig(count=5, seed=8)) != made


def test_the_seed_gives_these_folds_on_every_machine():
    """The figure: a run of another day must find its adapters' folds again."""
    made = folds.make(LABELS, FoldConfig(count=3, seed=1))
    assert [made[f"clip{row:03d}"] for row in range(12)] == [0, 2, 2, 1, 1, 2, 0, 1, 0, 0, 0, 1]


def test_a_group_may_be_named_in_either_of_several_ways():
    pattern = r"^(spk\d)_|^(film\d)-"
    assert folds.group_of("spk1_a", pattern) == "spk1" and folds.group_of("film2-b", pattern) == "film2"
    assert folds.group_of("other", pattern) is None and folds.group_of("x", "(y)?") is None
    forms = ("spk{}_{}", "film{}-{}")
    labels = {forms[row % 2].format(row // 8, row): ["happy", "sad"][row // 2 % 2] for row in range(64)}
    made = folds.make(labels, FoldConfig(count=4, group=pattern))
    homes = {}
    for name, fold in made.items():
        homes.setdefault(folds.group_of(name, pattern), set()).add(fold)
    assert len(homes) == 16 and all(len(own) == 1 for own in homes.values())
    with pytest.raises(UserError, match="does not match the clip name 'other'"):
        folds.make({**labels, "other": "sad"}, FoldConfig(count=4, group=pattern))


def test_clips_of_one_group_share_a_fold():
    labels = {f"film{row // 4:02d}_{row}": ["happy", "sad"][row % 2] for row in range(80)}
    made = folds.make(labels, FoldConfig(count=4, group=r"^(film\d+)_"))
    homes = {}
    for name, fold in made.items():
        homes.setdefault(name.split("_")[0], set()).add(fold)
    assert all(len(home) == 1 for home in homes.values())
    assert set(made.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("labels", "group", "words"),
    [
        ({"a": "sad", "b": "sad", "c": "happy"}, "", "these labels have fewer clips"),
        ({"a": "sad", "b": "sad", "c": "happy"}, "", "'happy': 1}; add clips of them, or leave them out"),
        ({"a": "sad", "b": "sad"}, "", "lower folds.count to 2, add clips of them"),
        ({}, "", "fewer clips"),
        ({"f1_a": "sad", "f1_b": "sad", "f1_c": "sad"}, r"^(f\d)_", "1 groups, fewer than"),
        ({"x": "sad", "y": "sad", "z": "sad"}, r"^(f\d)_", "does not match the clip name 'x'"),
    ],
)
def test_too_few_clips_or_groups_are_refused(labels, group, words):
    with pytest.raises(UserError, match=words):
        folds.make(labels, FoldConfig(count=3, group=group))


def test_saved_folds_are_kept_until_labels_or_settings_change(tmp_path):
    path = tmp_path / "folds.json"
    made = folds.load_or_make(path, LABELS, FoldConfig(count=5))
    saved = read_json(path)
    saved["folds"]["clip000"] = 99
    write_json(path, saved)
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5))["clip000"] == 99
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5, seed=1)) != made
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5)) == made
    relabelled = {**LABELS, "clip000": "sad"}
    assert folds.load_or_make(path, relabelled, FoldConfig(count=5)) == folds.make(
        relabelled, FoldConfig(count=5)
    )


def test_an_unreadable_fold_file_is_made_again(tmp_path):
    path = tmp_path / "folds.json"
    for truncated in ('{"folds":', "[]", "{}", "3"):
        path.write_text(truncated)
        assert folds.load_or_make(path, LABELS, FoldConfig(count=5)) == folds.make(
            LABELS, FoldConfig(count=5)
        )


def group_world(clips: dict[str, dict[str, int]]) -> dict[str, str]:
    """Clip -> label, from group -> label -> number of clips; a clip's name begins with its group."""
    return {
        f"{group}_{label}{row}": label
        for group, has in clips.items()
        for label, count in has.items()
        for row in range(count)
    }


BY_GROUP = FoldConfig(count=3, group="^(g[0-9]+)_")
#: All of c are clips of one speaker.
LONELY = group_world({"g0": {"c": 12}, **{f"g{row}": {"a": 6, "b": 6} for row in range(1, 5)}})


def test_a_label_that_a_fold_has_alone_is_named_with_the_fold_and_its_group():
    made = folds.make(LONELY, BY_GROUP)
    (line,) = [line for line in folds.unseen(LONELY, made, BY_GROUP.group) if "labelled c" in line]
    assert f"all 12 clips labelled c are in fold {made['g0_c0']} (group g0)" in line
    assert "will get every one wrong" in line
    # As does a run on its labels, whoever made the folds.
    assert folds.unseen(LABELS, folds.make(LABELS, FoldConfig(count=5)), "") == []


def test_a_label_in_two_folds_is_unknown_to_models_without_both():
    labels = {
        name.replace("g0_c", f"g{5 + row % 2}_c"): label for row, (name, label) in enumerate(LONELY.items())
    }
    made = folds.make(labels, BY_GROUP)
    (line,) = [line for line in folds.unseen(labels, made, BY_GROUP.group) if "labelled c" in line]
    assert "folds" in line and "alone (groups g5, g6)" in line and "models without both" in line
    # With two folds there are no such models.
    made = folds.make(labels, FoldConfig(count=2, group=BY_GROUP.group))
    assert folds.unseen(labels, made, BY_GROUP.group) == []


def test_groups_of_a_label_go_into_several_folds_where_they_can():
    from sklearn.model_selection import StratifiedGroupKFold

    labels = group_world({"g0": {"a": 2, "c": 1}, "g1": {"b": 3}, "g2": {"b": 1, "c": 1}})
    names, config = sorted(labels), FoldConfig(count=2, group=BY_GROUP.group)
    targets, groups = [labels[name] for name in names], [name[:2] for name in names]
    splits = [*StratifiedGroupKFold(2, shuffle=True, random_state=0).split(names, targets, groups)]
    together = {row for row, target in enumerate(targets) if target == "b"}
    assert any(together <= set(rows.tolist()) for _, rows in splits), "this is what was to be mended"
    made = folds.make(labels, config)
    assert {made[name] for name in names if labels[name] == "b"} == {0, 1}
    assert {made[name] for name in names if labels[name] == "c"} == {0, 1}
    assert len({(name[:2], fold) for name, fold in made.items()}) == 3, "a group stays in one fold"
    assert folds.make(dict(reversed(labels.items())), config) == made


def test_groups_that_scikit_learn_spreads_stay_where_it_put_them():
    from sklearn.model_selection import StratifiedGroupKFold

    labels = {f"film{row // 4:02d}_{row}": SIX[row % 6] for row in range(80)}
    names = sorted(labels)
    targets, groups = [labels[name] for name in names], [name[:6] for name in names]
    splits = StratifiedGroupKFold(4, shuffle=True, random_state=3).split(names, targets, groups)
    assert folds.make(labels, FoldConfig(count=4, seed=3, group=r"^(film\d+)_")) == {
        names[row]: fold for fold, (_, rows) in enumerate(splits) for row in rows
    }


def test_saved_folds_of_groups_are_kept_as_they_are(tmp_path):
    path, config = tmp_path / "folds.json", FoldConfig(count=2, group=BY_GROUP.group)
    labels = group_world({"g0": {"a": 2, "c": 1}, "g1": {"b": 3}, "g2": {"b": 1, "c": 1}})
    folds.load_or_make(path, labels, config)
    saved = read_json(path)
    # As an earlier version made them: both groups of b together.
    saved["folds"] = {name: int(name[:2] != "g0") for name in labels}
    write_json(path, saved)
    assert folds.load_or_make(path, labels, config) == saved["folds"]


def test_of_very_many_groups_only_those_of_the_rare_label_are_tried():
    """One array of all groups for every move would take 360 MB here, and 16 GB for 20,000 groups."""
    home = {f"g{row:04d}": row % 5 for row in range(3000)}
    clips = Counter({(group, "sad"): 4 for group in home})
    clips["g0000", "rare"] = clips["g0005", "rare"] = 2
    tracemalloc.start()
    made = folds._spread(home, clips, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made["g0000"] != made["g0005"]
    assert sum(made[group] != home[group] for group in home) == 1
    assert peak < 10e6


TWINS = [["clip000", "clip001"], ["clip001", "clip059"], ["clip007", "an unlabelled one"]]


@pytest.mark.parametrize("group", ["", r"^(clip..)"])
def test_clips_that_are_one_recording_share_a_fold(group):
    config = FoldConfig(count=5, group=group)
    made = folds.make(LABELS, config, TWINS)
    assert made.keys() == LABELS.keys() and {*made.values()} == {*range(5)}
    assert made["clip000"] == made["clip001"] == made["clip059"] and LABELS["clip000"] != LABELS["clip001"]
    if group:
        assert len({made[f"clip05{digit}"] for digit in range(10)} | {made["clip003"]}) == 1
    else:
        counts = Counter(made.values())
        assert max(counts.values()) - min(counts.values()) <= 2
    assert folds.unseen(LABELS, made, group, TWINS) == []


def test_folds_of_a_corpus_without_twins_stay_and_those_with_are_made_anew(tmp_path):
    config = FoldConfig(count=5)
    # One of a pair without a label is no twin of a labelled clip.
    assert folds.make(LABELS, config, TWINS[2:]) == folds.make(LABELS, config)
    made = folds.load_or_make(tmp_path / "folds.json", LABELS, config)
    assert folds.saved(tmp_path / "folds.json", LABELS, config, TWINS[2:]) == made
    assert folds.saved(tmp_path / "folds.json", LABELS, config, TWINS) is None
    made = folds.load_or_make(tmp_path / "folds.json", LABELS, config, TWINS)
    assert made["clip000"] == made["clip059"]
    assert folds.saved(tmp_path / "folds.json", LABELS, config, [*reversed(TWINS)]) == made


def test_labels_of_one_recording_alone_are_told_and_too_few_recordings_refused():
    labels = {f"c{number}": ("happy", "sad")[number % 2] for number in range(12)}
    even, odd = list(labels)[::2], list(labels)[1::2]
    (line,) = folds.unseen(labels, folds.make(labels, FoldConfig(count=3), [odd]), "", [odd])
    assert "all 6 clips labelled sad are in fold" in line and "(group c1)" in line
    with pytest.raises(UserError, match="of 2 recordings, each in one fold alone, fewer than folds.count 3"):
        folds.make(labels, FoldConfig(count=3), [odd, even])
