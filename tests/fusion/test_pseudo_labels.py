"""Which clips become pseudo-labels: each rule takes what it promises, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.config.sections import SelfTrainConfig
from mer_dist.fusion import pseudo_labels
from mer_dist.fusion.pseudo_labels import BEYOND, CLOSED, DISPUTED, EMPTY, TAKEN, UNSURE
from mer_dist.fusion.teachers import LEAST, Teacher, together

NOTHING = np.zeros((0, 3)), np.zeros(0, int)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities (N, 3), and labels drawn by them."""
    random = np.random.default_rng(seed)
    probability = random.dirichlet([0.8, 0.8, 0.8], count)
    return probability, (probability.cumsum(1) < random.random((count, 1))).sum(1)


def sure_of(label: int, confidence: list[float]) -> np.ndarray:
    """(n, 3) with this label on top and the rest shared by the other two."""
    rows = np.repeat((1 - np.array(confidence))[:, None] / 2, 3, 1)
    rows[:, label] = confidence
    return rows


def test_each_label_gets_its_share_of_the_quota_and_the_surest_clips_come_first():
    probability, _ = drawn(300)
    usable = np.ones(300, bool)
    usable[probability[:, 1].argmax()] = False
    settings = SelfTrainConfig(confidence=0.4, weight=0.5)
    one = pseudo_labels.pseudo_labels(probability, usable, *NOTHING, 0.5, settings)
    for label in range(3):
        own = usable & (one.label == label) & (probability.max(1) >= 0.4)
        quota = round(0.5 * probability[usable, label].sum())
        assert one.taken[one.label == label].sum() == min(quota, own.sum())
        left = own & ~one.taken
        assert (one.reason[left] == BEYOND).all()
        if left.any():
            assert probability[left, label].max() <= one.threshold[label]
    assert one.reason[~usable].tolist() == [EMPTY]
    assert (one.reason[usable & (probability.max(1) < 0.4)] == UNSURE).all()
    assert np.allclose(one.weight[one.taken], 0.5 * probability.max(1)[one.taken])
    assert not one.weight[~one.taken].any()


def test_one_threshold_takes_every_clip_that_reaches_it_and_no_other():
    probability, _ = drawn(300)
    usable = np.arange(300) > 20
    settings = SelfTrainConfig(rule="threshold", confidence=0.7)
    one = pseudo_labels.pseudo_labels(probability, usable, *NOTHING, 0.01, settings)
    assert np.array_equal(one.taken, usable & (probability.max(1) >= 0.7))
    assert one.threshold.tolist() == [0.7, 0.7, 0.7]


def test_lucky_clips_do_not_open_the_gate_and_enough_of_them_do():
    for right, threshold in ((3, np.inf), (6, np.inf), (7, 0.6)):
        told = sure_of(0, np.linspace(0.9, 0.6, right).tolist())
        found = pseudo_labels.precise_thresholds(told, np.zeros(right, int), 0.8)
        assert found.tolist() == [pytest.approx(threshold), np.inf, np.inf]
    # Known values of Wilson's interval at a normal quantile of 1.2816.
    assert pseudo_labels.lower_bound(np.array([7, 14]), np.array([7, 15])) == pytest.approx(
        [0.8100, 0.8013], abs=2e-4
    )


def test_the_least_confidence_that_still_holds_the_precision_is_the_threshold_of_a_label():
    right = sure_of(1, np.linspace(0.99, 0.8, 20).tolist())
    wrong = sure_of(1, [0.7] * 10)
    told, truth = np.concatenate([right, wrong]), np.array([1] * 20 + [2] * 10)
    found = pseudo_labels.precise_thresholds(told, truth, 0.8)
    assert found.tolist() == [np.inf, pytest.approx(0.8), np.inf]
    # Clips of equal confidence go together: ten right ones among twenty at 0.7 cannot be told apart.
    equal = np.concatenate([sure_of(1, [0.7] * 20)])
    assert np.isinf(pseudo_labels.precise_thresholds(equal, np.array([1] * 10 + [2] * 10), 0.8)).all()


def test_pseudo_labels_are_as_precise_as_wanted_on_other_clips():
    settings = SelfTrainConfig(rule="precision", precision=0.8, confidence=0.0)
    precisions, parts = [], []
    for seed in range(20):
        oof, truth = drawn(600, seed)
        told, secret = drawn(4000, seed + 1000)
        one = pseudo_labels.pseudo_labels(told, np.ones(4000, bool), oof, truth, 0.5, settings)
        for label in np.flatnonzero(np.isfinite(one.threshold)):
            own = one.taken & (one.label == label)
            precisions.append((secret[own] == label).mean())
            parts.append(own.sum() / (one.label == label).sum())
    assert len(precisions) > 50
    assert np.mean(np.array(precisions) >= 0.8) > 0.75 and np.mean(precisions) > 0.83
    assert np.mean(precisions) < 0.88 and np.mean(parts) > 0.2, "it asks for more than was wanted"


def test_a_label_that_is_never_right_takes_nothing_and_says_why():
    oof = np.concatenate([sure_of(0, [0.9] * 40), sure_of(2, [0.9] * 40)])
    truth = np.array([0] * 40 + [1] * 40)
    told = np.concatenate([sure_of(0, [0.9]), sure_of(2, [0.95]), sure_of(0, [0.5])])
    settings = SelfTrainConfig(rule="precision", confidence=0.5)
    one = pseudo_labels.pseudo_labels(told, np.ones(3, bool), oof, truth, 0.5, settings)
    assert one.reason.tolist() == [TAKEN, CLOSED, UNSURE]
    assert np.isinf(one.threshold[2]) and one.weight[1] == 0


def test_the_fixed_confidence_holds_under_the_learned_thresholds_too():
    oof, truth = drawn(600)
    told, _ = drawn(500, 1)
    settings = SelfTrainConfig(rule="precision", precision=0.4, confidence=0.75)
    one = pseudo_labels.pseudo_labels(told, np.ones(500, bool), oof, truth, 0.5, settings)
    assert one.taken.any() and one.probability.max(1)[one.taken].min() >= 0.75


def test_confidence_is_calibrated_on_the_held_out_clips_before_it_is_judged():
    oof, truth = drawn(2000)
    told, _ = drawn(500, 1)
    sharp = told**3 / (told**3).sum(1, keepdims=True)
    known = oof**3 / (oof**3).sum(1, keepdims=True)
    settings = SelfTrainConfig(rule="threshold", confidence=0.7)
    one = pseudo_labels.pseudo_labels(sharp, np.ones(500, bool), known, truth, 0.5, settings)
    assert np.abs(one.probability - told).max() < 0.05
    assert one.taken.sum() < 0.9 * (sharp.max(1) >= 0.7).sum()


def taught(
    truth: np.ndarray, secret: np.ndarray, right: float, covers: float = 1.0, sure: float = 0.9, seed: int = 9
):
    """A teacher that is right in this part of the clips, of which ``truth`` are labelled and ``secret`` are not."""
    random, every = np.random.default_rng(seed), np.concatenate([truth, secret])
    said = np.where(random.random(len(every)) < right, every, (every + random.integers(1, 3, len(every))) % 3)
    probability = np.full((len(every), 3), (1 - sure) / 2)
    probability[np.arange(len(every)), said] = sure
    probability[random.random(len(every)) >= covers] = np.nan
    teacher = Teacher("one", probability)
    return teacher, together([teacher], truth, np.arange(len(truth)), len(truth) + np.arange(len(secret)))


def by_consensus(
    right: float, covers: float = 1.0, labeled: int = 300, own: float = 0.9, part: float = 0.5, **changes
):
    """Pseudo-labels, the models' probabilities, the truth, and what the teacher says, of a thousand clips."""
    (oof, truth), (unlabeled, secret) = drawn(labeled), drawn(1000, 1)
    teacher, both = taught(truth, secret, right, covers, own)
    settings = SelfTrainConfig(rule="consensus", teachers=["one"], **changes)
    usable = np.arange(1000) > 4
    found = pseudo_labels.pseudo_labels(unlabeled, usable, oof, truth, part, settings, both)
    models = pseudo_labels.pseudo_labels(unlabeled, usable, oof, truth, part, SelfTrainConfig(confidence=0.5))
    return found, models, secret, teacher.answer[labeled:]


def test_what_a_teacher_would_change_is_left_out_and_what_it_confirms_comes_first():
    one, models, secret, said = by_consensus(right=0.85, sure=0.99)
    assert (one.reason[:5] == EMPTY).all()
    against = one.reason == DISPUTED
    assert against.sum() > 100 and (said[against] != models.label[against]).all()
    assert (one.label == said)[one.taken].mean() > 0.97
    # The same number of clips, right more often than those of the models alone, and as often as they say.
    assert 0.8 * models.taken.sum() < one.taken.sum() <= 501
    precision = (one.label == secret)[one.taken].mean()
    assert precision > (models.label == secret)[models.taken].mean() + 0.08
    assert precision == pytest.approx(one.probability.max(1)[one.taken].mean(), abs=0.05)
    assert not one.weight[~one.taken].any()


def test_a_teacher_that_labelled_clips_show_to_be_sure_overrules_the_models():
    one, models, secret, said = by_consensus(right=0.97, part=1.0, sure=0.9)
    against = one.taken & (one.label != models.label)
    assert against.sum() > 30 and (one.label[against] == said[against]).all()
    assert (one.label == secret)[against].mean() > 0.85 and not (one.reason == DISPUTED).any()
    # One that says so itself, and is wrong more often, does not.
    boasting, models, _, _ = by_consensus(right=0.75, own=0.999, part=1.0, sure=0.9)
    assert (boasting.label == models.label)[boasting.taken].all() and boasting.taken.any()


def test_clips_that_the_teacher_does_not_cover_are_judged_by_the_models_alone():
    one, models, _, said = by_consensus(right=0.9, covers=0.5)
    silent = said < 0
    assert np.array_equal(one.probability[silent], models.probability[silent])
    assert not (one.reason[silent] == DISPUTED).any() and one.taken[silent].sum() > 50


@pytest.mark.parametrize(("right", "labeled"), [(0.34, 300), (0.1, 300), (1.0, LEAST - 1)])
def test_a_teacher_that_knows_nothing_or_is_not_known_changes_next_to_nothing(right, labeled):
    one, models, _, _ = by_consensus(right=right, labeled=labeled, own=0.999)
    assert np.abs(one.probability - models.probability).max() < 0.05
    assert (one.taken != models.taken).mean() < 0.03 and (one.label == models.label).mean() > 0.97
