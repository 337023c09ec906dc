"""Which clips become pseudo-labels: each rule takes what it promises, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.config.sections import SelfTrainConfig
from mer_dist.fusion import pseudo_labels
from mer_dist.fusion.pseudo_labels import BEYOND, CLOSED, EMPTY, TAKEN, UNSURE

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
