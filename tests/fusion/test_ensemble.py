"""Members trained side by side: each comes out as if it were trained alone, whatever the model."""

from __future__ import annotations

import pytest
import torch

from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import UserError
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.fusion import ensemble
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.ensemble import MemberData, predict, seed_of, train

SMALL = {
    "width": 16,
    "heads": 2,
    "batch": 16,
    "dropout": [0.2],
    "feature_dropout": 0.3,
    "modality_dropout": 0.25,
    "learning_rate": 1e-2,
}
#: Over a few large batches the training clips are learned by heart.
CERTAIN = {"feature_dropout": 0.0, "modality_dropout": 0.0, "batch": 60}
CLIPS, CLASSES, FOLDS, SEEDS = 60, 3, 3, 2
EVERY = torch.arange(CLIPS)


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs_of(dtype: torch.dtype = torch.float32, tokens: int = 2) -> FeatureBatch:
    """Clips that each lack something, now and then a modality."""
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(CLIPS, tokens, size, generator=random).to(dtype) for size in (5, 7, 6)]
    masks = [torch.rand(CLIPS, tokens, generator=random) > 0.2 for _ in values]
    masks[0][::5] = False
    masks[2][:, 0] = True
    return FeatureBatch(["audio", "video", "text"], values, masks)


def lessons_of(dtype: torch.dtype = torch.float32) -> list[MemberData]:
    """K × S lessons of different length, as folds and pseudo-labels make them."""
    random, lessons = torch.Generator().manual_seed(1), []
    for fold in range(FOLDS):
        rows = EVERY[EVERY % FOLDS != fold][: 40 - 9 * fold]
        targets = torch.eye(CLASSES, dtype=dtype)[rows % CLASSES]
        weights = torch.rand(len(rows), generator=random).to(dtype) + 0.5
        lessons += [
            MemberData(rows, targets, weights, seed_of(fold, seed), 0.2 + 0.1 * fold) for seed in range(SEEDS)
        ]
    return lessons


def side_by_side_and_alone(config: FuseConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities (E, N, C) of all clips by members trained in the two ways."""
    inputs, lessons = inputs_of(dtype), lessons_of(dtype)
    model, losses = train(inputs, lessons, config)
    steps = max(-(-len(lesson.rows) // config.batch) for lesson in lessons)
    alone = []
    for member, lesson in enumerate(lessons):
        own, curve = train(inputs, [lesson], config, steps)
        torch.testing.assert_close(curve[0], losses[member], atol=1e-4, rtol=1e-4)
        alone.append(predict(own, inputs, EVERY)[0])
    return predict(model, inputs, EVERY), torch.stack(alone)


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_side_by_side_equals_one_by_one_within_1e_4_after_3_epochs_in_float32(model):
    config = FuseConfig(**SMALL, model=model, epochs=3)
    together, alone = side_by_side_and_alone(config, torch.float32)
    assert together.dtype == torch.float32
    assert (together - alone).abs().max() < 1e-4
    members = together.flatten(1)
    assert torch.pdist(members).min() > 1e-2  # no two members are the same model


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_side_by_side_equals_one_by_one_within_1e_8_after_a_full_run_in_float64(model):
    config = FuseConfig(**SMALL, model=model, epochs=20)
    together, alone = side_by_side_and_alone(config, torch.float64)
    assert together.dtype == torch.float64
    assert (together - alone).abs().max() < 1e-8


def test_a_training_that_diverges_ends_with_a_word():
    with pytest.raises(UserError, match="lower fuse.learning_rate"):
        train(inputs_of(), lessons_of(), FuseConfig(**SMALL | {"learning_rate": 1e30}, epochs=3))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_members_trained_in_groups_are_the_same_and_in_the_same_order(monkeypatch, size):
    config, inputs, lessons = FuseConfig(**SMALL, epochs=3), inputs_of(), lessons_of()
    together, losses = train(inputs, lessons, config)
    monkeypatch.setattr(ensemble, "_side_by_side", lambda *_: size)
    grouped, own = train(inputs, lessons, config)
    torch.testing.assert_close(own, losses, atol=1e-4, rtol=1e-4)
    before, after = (predict(model, inputs, EVERY) for model in (together, grouped))
    assert (before - after).abs().max() < 1e-4
    # Warm members go on from their own weights, whatever their group.
    state = together.state_dict()
    pair = [predict(train(inputs, lessons, config, start=state)[0], inputs, EVERY)]
    monkeypatch.undo()
    pair.append(predict(train(inputs, lessons, config, start=state)[0], inputs, EVERY))
    assert (pair[0] - pair[1]).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_a_member_does_not_depend_on_who_its_neighbours_are(model):
    inputs, lessons, config = inputs_of(), lessons_of(), FuseConfig(**SMALL, model=model, epochs=2)
    told = []
    for neighbours in (lessons[1:3], lessons[3:]):
        trained, _ = train(inputs, [lessons[0], *neighbours], config, steps=3)
        told.append(predict(trained, inputs, EVERY)[0])
    assert (told[0] - told[1]).abs().max() < 1e-4


def test_every_member_sees_its_own_clips_in_its_own_order():
    lessons = lessons_of()
    streams = ensemble.RngStreams([lesson.seed for lesson in lessons], torch.device("cpu"))
    first, targets, weights = ensemble._epoch(lessons, streams, 48)
    second, _, _ = ensemble._epoch(lessons, streams, 48)
    for member, lesson in enumerate(lessons):
        count = len(lesson.rows)
        assert sorted(first[member, :count].tolist()) == lesson.rows.tolist()
        assert set(first[member].tolist()) == set(lesson.rows.tolist())
        assert torch.equal(targets[member].argmax(1), first[member] % CLASSES)
        assert not torch.equal(first[member], second[member])
    same_clips = first[0], first[1]
    assert not torch.equal(*same_clips)
    assert torch.allclose(weights[0, :40].mean(), torch.ones(()))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    inputs, config = inputs_of(), FuseConfig(**SMALL, epochs=2)

    def trained(seed):
        lesson = lessons_of()[0]
        model, _ = train(inputs, [MemberData(lesson.rows, lesson.targets, lesson.weights, seed)], config)
        return predict(model, inputs, EVERY)

    first = trained(5)
    torch.rand(3)
    assert torch.equal(first, trained(5)) and not torch.equal(first, trained(6))
    assert seed_of(0, "fold", 1) != seed_of(0, "fold", 2) and seed_of(1, 2) == seed_of(1, 2)


def test_a_weight_counts_against_the_others_of_its_lesson_and_not_by_its_size():
    inputs, lesson, config = inputs_of(), lessons_of()[0], FuseConfig(**SMALL, epochs=2)
    told = []
    for factor in (1, 4):
        same = MemberData(lesson.rows, lesson.targets, factor * lesson.weights, lesson.seed)
        told.append(predict(train(inputs, [same], config)[0], inputs, EVERY))
    assert torch.equal(*told)


@pytest.mark.slow
def test_of_two_contradictory_labels_of_a_clip_the_heavy_one_is_predicted():
    inputs, truth = inputs_of(), EVERY % CLASSES
    twice, labels = EVERY.repeat(2), torch.cat([truth, (truth + 1) % CLASSES])
    light = torch.cat([torch.ones(CLIPS), torch.full((CLIPS,), 0.01)])
    targets = torch.eye(CLASSES)[labels]
    lessons = [MemberData(twice, targets, weights, 0, 0.0) for weights in (light, light.flip(0))]
    config = FuseConfig(**SMALL | CERTAIN, epochs=40)
    told = predict(train(inputs, lessons, config)[0], inputs, EVERY)
    right = (told.argmax(-1) == torch.stack([truth, (truth + 1) % CLASSES])).float().mean(1)
    assert right.min() > 0.95
    # As sure as the weights are apart: 1 to 0.01, or about 99 %.
    assert (told.exp().amax(-1).mean(1) > 0.9).all()


@pytest.mark.slow
def test_label_smoothing_keeps_a_training_from_full_certainty():
    inputs, lesson = inputs_of(), lessons_of()[0]
    lesson.dropout, sure = 0.0, {}
    for smooth in (0.0, 0.3):
        config = FuseConfig(**SMALL | CERTAIN, epochs=60, label_smoothing=smooth)
        told = predict(train(inputs, [lesson], config)[0], inputs, lesson.rows)[0].exp()
        assert torch.equal(told.argmax(1), lesson.targets.argmax(1))
        sure[smooth] = told.amax(1).mean()
    # 0.3 spread evenly over three classes leaves 0.7 + 0.1 where the label is.
    assert sure[0.0] > 0.97 and abs(sure[0.3] - 0.8) < 0.03


@pytest.mark.slow
def test_training_goes_on_from_a_given_state():
    inputs, lessons = inputs_of(), lessons_of()
    config = FuseConfig(**SMALL, epochs=15)
    model, losses = train(inputs, lessons, config)
    _, warm = train(inputs, lessons, config, start=model.state_dict())
    assert (warm[:, 0] < losses[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_once", [1, 7, 16384])
def test_prediction_does_not_depend_on_how_many_clips_are_taken_at_once(rows_at_once, monkeypatch):
    inputs, lessons = inputs_of(), lessons_of()
    model, _ = train(inputs, lessons, FuseConfig(**SMALL, epochs=1))
    whole = predict(model, inputs, EVERY)
    assert whole.shape == (FOLDS * SEEDS, CLIPS, CLASSES)
    monkeypatch.setattr(ensemble, "PREDICT_ROWS", rows_at_once)
    torch.testing.assert_close(predict(model, inputs, EVERY.flip(0)), whole.flip(1), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_half_precision_on_the_host_is_computed_in_single():
    inputs = inputs_of()
    half = FeatureBatch(inputs.modality, [values.half() for values in inputs.values], inputs.mask)
    config = FuseConfig(**SMALL, epochs=2)
    rounded = FeatureBatch(inputs.modality, [values.float() for values in half.values], inputs.mask)
    told = [predict(train(some, lessons_of(), config)[0], some, EVERY) for some in (half, rounded)]
    assert torch.equal(*told) and told[0].dtype == torch.float32
