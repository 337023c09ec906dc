"""Fusion models: masks, standardisation, every option of the Audio-Guided Transformer, what they learn."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mer_dist.config.sections import FuseConfig
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.fusion.batch import FeatureBatch, standardize
from mer_dist.fusion.ensemble import MemberData, predict, train
from mer_dist.fusion.members import build

SMALL = {"width": 16, "heads": 2, "epochs": 3, "batch": 16, "dropout": [0.2], "feature_dropout": 0.1}
OPTIONS = [
    *({"model": model} for model in FUSION_MODELS.built_in),
    *({"query_modality": query_modality} for query_modality in ("video", "text")),
    *({"fusion": fusion} for fusion in ("concatenate", "mean")),
    {"cross_attention": False},
    {"linear_skip": False},
    {"cross_attention": False, "fusion": "mean", "linear_skip": False},
]
LEARNING = SMALL | {"epochs": 20, "learning_rate": 1e-2}


def title_of(option: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in option.items())


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs_of(count: int = 60, tokens: int = 1, seed: int = 0) -> FeatureBatch:
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(count, tokens, size, generator=random) for size in (5, 7, 6)]
    return FeatureBatch(
        ["audio", "video", "text"], values, [torch.ones(count, tokens).bool() for _ in values]
    )


def lesson_of(rows: range, truth: torch.Tensor, seed: int, classes: int = 3) -> MemberData:
    numbers = torch.tensor(rows)
    return MemberData(numbers, torch.eye(classes)[truth[numbers]], torch.ones(len(numbers)), seed)


def part_of(inputs: FeatureBatch, places: tuple[int, ...] | list[int]) -> FeatureBatch:
    """Some of the feature sets."""
    return FeatureBatch(
        *([getattr(inputs, part)[place] for place in places] for part in ("modality", "values", "mask"))
    )


def learnable() -> tuple[FeatureBatch, torch.Tensor]:
    """120 clips whose every modality shows the label."""
    inputs, truth = inputs_of(count=120, tokens=2), torch.arange(120) % 3
    for values in inputs.values:
        values[:, :, :3] += 3 * torch.eye(3)[truth][:, None]
    return inputs, truth


@pytest.mark.slow
@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("option", OPTIONS, ids=title_of)
def test_what_stands_at_an_absent_modality_changes_nothing(option, absent):
    inputs, truth = inputs_of(tokens=3), torch.arange(60) % 3
    for place in absent:
        inputs.mask[place][::2] = False
        # Some clips have the set, but not all of its tokens.
        inputs.mask[place][1::4, 1:] = False
    config = FuseConfig(**SMALL | {"epochs": 2} | option)
    told = []
    for filler in (0.0, 1e6):
        for place in absent:
            inputs.values[place] = inputs.values[place].masked_fill(~inputs.mask[place][..., None], filler)
        model, losses = train(inputs, [lesson_of(range(60), truth, 0)], config)
        told.append(predict(model, inputs, torch.arange(60)))
    assert torch.isfinite(told[0]).all() and torch.isfinite(losses).all()
    assert torch.equal(*told)


@cache
def told_by_default() -> torch.Tensor:
    inputs, truth = learnable()
    model, _ = train(inputs, [lesson_of(range(90), truth, 0)], FuseConfig(**LEARNING))
    return predict(model, inputs, torch.arange(90, 120))[0]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS, ids=title_of)
def test_every_option_learns_what_is_to_be_learned_and_is_one_of_its_own(option):
    inputs, truth = learnable()
    config = FuseConfig(**LEARNING | option)
    model, losses = train(inputs, [lesson_of(range(90), truth, 0)], config)
    told = predict(model, inputs, torch.arange(90, 120))[0]
    assert (told.argmax(1) == truth[90:]).float().mean() > 0.85
    assert losses[0, -1] < 0.7 * losses[0, 0]
    torch.testing.assert_close(told.exp().sum(1), torch.ones(30))
    # Same weights wherever the parts are the same: an option that nobody reads would change nothing.
    same = torch.equal(told_by_default(), told)
    assert same == (option == {"model": "agt"})


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
@pytest.mark.parametrize("query_modality", ["audio", "video", "text"])
def test_a_query_modality_without_any_feature_set_has_a_learned_query(model, query_modality):
    whole, truth = learnable()
    places = [place for place, name in enumerate(whole.modality) if name != query_modality]
    inputs = part_of(whole, places)
    config = FuseConfig(**LEARNING | {"model": model, "query_modality": query_modality})
    trained, _ = train(inputs, [lesson_of(range(90), truth, 0)], config)
    told = predict(trained, inputs, torch.arange(90, 120))[0]
    assert torch.isfinite(told).all() and (told.argmax(1) == truth[90:]).float().mean() > 0.8


@pytest.mark.parametrize("option", OPTIONS, ids=title_of)
def test_a_clip_without_any_modality_gives_finite_numbers_to_all(option):
    inputs, truth = inputs_of(tokens=2), torch.arange(60) % 3
    for mask in inputs.mask:
        mask[:7] = False
    config = FuseConfig(**SMALL | {"epochs": 2} | option)
    model, losses = train(inputs, [lesson_of(range(60), truth, 0)], config)
    assert torch.isfinite(losses).all() and torch.isfinite(predict(model, inputs, torch.arange(60))).all()
    assert inputs.present.tolist() == [False] * 7 + [True] * 53


def test_standardised_features_have_mean_0_and_deviation_1_over_the_tokens_that_are_there():
    inputs = inputs_of(count=400, tokens=3)
    for place, values in enumerate(inputs.values):
        values.mul_(torch.arange(1, values.shape[2] + 1)).add_(50 * place)
        inputs.mask[place][::3, 1:] = False
        values[::3, 1:] = 1e5
    inputs.values[1][..., 2] = 7.0  # a feature that never changes
    inputs.values[2][5, 0, 1] = 1e6
    found = standardize(inputs)
    assert found.modality == inputs.modality
    for place, (values, mask) in enumerate(zip(found.values, found.mask, strict=True)):
        there = values[mask]
        assert values[~mask].abs().max() == 0
        assert there.abs().max() <= 10 and (place < 2 or there.max() == 10)
        for feature in range(there.shape[1]):
            if (place, feature) in ((1, 2), (2, 1)):
                continue
            assert abs(there[:, feature].mean()) < 1e-4 and abs(there[:, feature].std() - 1) < 1e-3
    assert found.values[1][..., 2].abs().max() < 1e-3


def test_one_token_or_none_at_all_can_be_standardised():
    inputs = inputs_of(count=4)
    inputs.mask[0][1:] = False
    inputs.mask[1][:] = False
    found = standardize(inputs)
    assert all(torch.isfinite(values).all() for values in found.values)
    assert found.values[1].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_one_modality_alone_can_be_fused_whether_it_guides_or_not(modality):
    everything, truth = inputs_of(), torch.arange(60) % 3
    place = everything.modality.index(modality)
    everything.values[place][:, 0, :3] += 4 * torch.eye(3)[truth]
    inputs = FeatureBatch([modality], [everything.values[place]], [everything.mask[place]])
    model, _ = train(inputs, [lesson_of(range(60), truth, 0)], FuseConfig(**SMALL | {"epochs": 40}))
    right = predict(model, inputs, torch.arange(60))[0].argmax(1) == truth
    assert right.float().mean() > 0.9


def test_two_sets_of_one_modality_are_tokens_of_it():
    inputs, truth = inputs_of(), torch.arange(60) % 3
    inputs.modality = ["audio", "text", "text"]
    model, _ = train(inputs, [lesson_of(range(60), truth, 0)], FuseConfig(**SMALL))
    assert model.channels == ["audio", "text"]
    assert predict(model, inputs, torch.arange(60)).shape == (1, 60, 3)


def test_modalities_are_hidden_at_random_but_never_all_of_a_clip():
    inputs = inputs_of()
    inputs.mask[0][:20] = inputs.mask[1][:20] = False
    model = build(inputs, 3, FuseConfig(**SMALL, modality_dropout=0.5), [0, 1])
    hidden = model._hide(inputs[torch.arange(60).expand(2, -1)])
    there = torch.stack([mask.any(-1) for mask in hidden])
    assert there.any(0).all() and there[2, :, :20].all()
    assert 0.3 < there[:, :, 20:].float().mean() < 0.7
    assert not torch.equal(there[:, 0], there[:, 1])


@pytest.mark.slow
def test_no_modality_alone_suffices_but_their_fusion_does():
    random, truth = torch.Generator().manual_seed(0), torch.arange(300) % 3
    values = []
    for confused in ((0, 1), (1, 2), (0, 2)):
        centers = 2 * torch.randn(3, 6, generator=random)
        centers[list(confused)] = centers[list(confused)].mean(0)
        values.append((centers[truth] + torch.randn(300, 6, generator=random))[:, None])
    inputs = FeatureBatch(["audio", "video", "text"], values, [torch.ones(300, 1).bool()] * 3)
    config = FuseConfig(**SMALL | {"epochs": 30})
    right = {}
    for places in ((0,), (1,), (2,), (0, 1, 2)):
        some = part_of(inputs, places)
        model, _ = train(some, [lesson_of(range(200), truth, 0)], config)
        told = predict(model, some, torch.arange(200, 300))[0].argmax(1)
        right[places] = (told == truth[200:]).float().mean()
    assert right[0, 1, 2] > 0.9 > 0.75 > max(right[place,] for place in range(3))
