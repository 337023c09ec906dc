"""The Audio-Guided Transformer: masks, members that do not know each other, and what it learns."""

from __future__ import annotations

import pytest
import torch

from mer_dist.models.fusion import AGT, Inputs, Lesson, predict, seed_of, train
from mer_dist.settings import FuseConfig

SMALL = {"width": 16, "heads": 2, "epochs": 3, "batch": 16, "dropout": 0.2}


@pytest.fixture(autouse=True)
def one_thread():
    """As the stage does it: several threads on such small products mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs_of(count: int = 60, tokens: int = 1, seed: int = 0) -> Inputs:
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(count, tokens, size, generator=random) for size in (5, 7, 6)]
    return Inputs(["audio", "video", "text"], values, [torch.ones(count, tokens).bool() for _ in values])


def lesson_of(rows: range, truth: torch.Tensor, seed: int, classes: int = 3) -> Lesson:
    numbers = torch.tensor(rows)
    return Lesson(numbers, torch.eye(classes)[truth[numbers]], torch.ones(len(numbers)), seed)


def test_a_member_comes_out_as_if_it_were_trained_alone():
    inputs, truth = inputs_of(), torch.arange(60) % 3
    # Lessons of different length, as folds and pseudo-labels make them.
    lessons = [lesson_of(range(40), truth, 1), lesson_of(range(10, 60), truth, 2)]
    config = FuseConfig(**SMALL)
    together, _ = train(inputs, lessons, config)
    both = predict(together, inputs, torch.arange(60))
    for member, lesson in enumerate(lessons):
        alone, _ = train(inputs, [lesson], config, steps=4)
        assert torch.allclose(predict(alone, inputs, torch.arange(60))[0], both[member], atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    inputs, truth, config = inputs_of(), torch.arange(60) % 3, FuseConfig(**SMALL)

    def trained(seed):
        model, _ = train(inputs, [lesson_of(range(60), truth, seed)], config)
        return predict(model, inputs, torch.arange(60))

    first = trained(5)
    torch.rand(3)
    assert torch.equal(first, trained(5)) and not torch.equal(first, trained(6))
    assert seed_of(0, "fold", 1) != seed_of(0, "fold", 2) and seed_of(1, 2) == seed_of(1, 2)


@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_what_stands_at_an_absent_modality_changes_nothing(absent):
    inputs, truth = inputs_of(tokens=3), torch.arange(60) % 3
    for place in absent:
        inputs.mask[place][::2] = False
        # Some clips have the set, but not all of its tokens.
        inputs.mask[place][1::4, 1:] = False
    config = FuseConfig(**SMALL)
    told = []
    for filler in (0.0, 1e6):
        for place in absent:
            inputs.values[place] = inputs.values[place].masked_fill(
                ~inputs.mask[place][..., None], filler)
        model, losses = train(inputs, [lesson_of(range(60), truth, 0)], config)
        told.append(predict(model, inputs, torch.arange(60)))
    assert torch.isfinite(told[0]).all() and torch.isfinite(losses).all()
    assert torch.equal(*told)


def test_statistics_come_from_the_rows_of_the_lesson_alone():
    inputs, truth, config = inputs_of(), torch.arange(60) % 3, FuseConfig(**SMALL)
    first, _ = train(inputs, [lesson_of(range(30), truth, 0)], config)
    before = predict(first, inputs, torch.arange(30))
    inputs.values = [torch.cat([values[:30], 50 * values[30:]]) for values in inputs.values]
    second, _ = train(inputs, [lesson_of(range(30), truth, 0)], config)
    assert torch.equal(before, predict(second, inputs, torch.arange(30)))


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_one_modality_alone_can_be_fused_whether_it_guides_or_not(modality):
    everything, truth = inputs_of(), torch.arange(60) % 3
    place = everything.modality.index(modality)
    everything.values[place][:, 0, :3] += 4 * torch.eye(3)[truth]
    inputs = Inputs([modality], [everything.values[place]], [everything.mask[place]])
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
    model = AGT(inputs, 3, FuseConfig(**SMALL, modality_dropout=0.5), [0, 1])
    masks = {name: mask.expand(2, -1, -1) for name, mask in zip(inputs.modality, inputs.mask, strict=True)}
    hidden = torch.stack([mask.any(-1) for mask in model._hide(masks).values()])
    assert hidden.any(0).all() and hidden[2, :, :20].all()
    assert 0.3 < hidden[:, :, 20:].float().mean() < 0.7


def test_no_modality_alone_suffices_but_their_fusion_does():
    random, truth = torch.Generator().manual_seed(0), torch.arange(300) % 3
    values = []
    for confused in ((0, 1), (1, 2), (0, 2)):
        centers = 2 * torch.randn(3, 6, generator=random)
        centers[list(confused)] = centers[list(confused)].mean(0)
        values.append((centers[truth] + torch.randn(300, 6, generator=random))[:, None])
    inputs = Inputs(["audio", "video", "text"], values, [torch.ones(300, 1).bool()] * 3)
    config = FuseConfig(**SMALL | {"epochs": 30})
    right = {}
    for places in ((0,), (1,), (2,), (0, 1, 2)):
        some = Inputs(*([getattr(inputs, part)[place] for place in places]
                        for part in ("modality", "values", "mask")))
        model, _ = train(some, [lesson_of(range(200), truth, 0)], config)
        told = predict(model, some, torch.arange(200, 300))[0].argmax(1)
        right[places] = (told == truth[200:]).float().mean()
    assert right[0, 1, 2] > 0.9 > 0.75 > max(right[place,] for place in range(3))
