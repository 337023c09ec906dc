"""Label shares, calibration and decisions, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist import metrics, prior

OLD = np.array([0.3, 0.3, 0.2, 0.2])
NEW = np.array([0.1, 0.2, 0.1, 0.6])
CENTERS = np.array([[0, 0], [2.2, 0], [0, 2.2], [2.2, 2.2]])


def draw(count: int, shares: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True posteriors under ``OLD`` of points drawn under ``shares``, and their labels."""
    random = np.random.default_rng(seed)
    truth = random.choice(4, count, p=shares)
    points = CENTERS[truth] + random.normal(size=(count, 2))
    odds = -((points[:, None] - CENTERS) ** 2).sum(2) / 2 + np.log(OLD)
    return prior._softmax(odds), truth


def test_calibration_undoes_a_known_distortion():
    honest, truth = draw(20_000, OLD, 0)
    bias = np.array([0.5, 0, -0.5, 0])
    bent = prior._softmax(2 * np.log(honest) + 2 * bias)
    fitted = prior.calibrate(bent, truth)
    assert fitted.scale == pytest.approx(0.5, abs=0.02)
    assert np.abs(fitted(bent) - honest).mean() < 0.01
    # Its maximum-likelihood condition: the mean probability of a label is the label's share.
    assert np.allclose(fitted(bent).mean(0), prior.shares(truth, 4), atol=1e-3)
    assert prior.calibrate(prior._softmax(2 * np.log(honest)), truth, bias=False).scale == (
        pytest.approx(0.5, abs=0.02))


def test_a_few_clips_do_not_move_the_calibration_far():
    sure = np.full((3, 4), 0.01) + 0.96 * np.eye(4)[:3]
    fitted = prior.calibrate(sure, np.arange(3))
    assert 0.5 < fitted.scale < 2 and np.abs(fitted.bias).max() < 0.5
    nothing = prior.calibrate(np.empty((0, 4)), np.empty(0, int))
    assert nothing.scale == 1 and not nothing.bias.any()


def test_both_estimators_find_the_shares_of_the_unlabelled_clips():
    held_out, truth = draw(5000, OLD, 1)
    unlabeled, _ = draw(8000, NEW, 2)
    for found in (prior.em(unlabeled, OLD), prior.bbse(unlabeled, held_out, truth)):
        assert np.abs(found - NEW).max() < 0.03
    found = prior.estimate(unlabeled, held_out, truth, seed=0, draws=10)
    assert found.trust > 0.95 and np.abs(found.used - NEW).max() < 0.03


def test_without_a_shift_the_estimate_stays_with_the_labelled_shares():
    trusts = []
    for seed in range(8):
        held_out, truth = draw(240, OLD, seed)
        unlabeled, _ = draw(400, OLD, 100 + seed)
        found = prior.estimate(unlabeled, held_out, truth, seed, draws=20)
        trusts.append(found.trust)
        assert np.abs(found.used - found.labeled).sum() <= np.abs(
            (found.em + found.bbse) / 2 - found.labeled).sum()
    assert np.mean(trusts) < 0.5


def test_a_label_that_was_never_seen_keeps_no_share():
    probability = np.array([[0.5, 0.3, 0.2, 0.0]] * 10)
    old = np.array([0.5, 0.5, 0.0, 0.0])
    assert prior.em(probability, old)[2] == 0
    assert np.isfinite(prior.adapt(probability, old, NEW)).all()


def test_correction_with_the_true_shares_gives_the_posterior_under_them():
    told, truth = draw(20_000, NEW, 3)
    corrected = prior.adapt(told, OLD, NEW)
    assert metrics.waf(truth, corrected.argmax(1)) > metrics.waf(truth, told.argmax(1)) + 0.02
    assert np.allclose(corrected.mean(0), NEW, atol=0.01)


def test_decisions_reach_more_waf_than_argmax_and_never_expect_less():
    rare = np.array([0.72, 0.2, 0.05, 0.03])
    gains = []
    for seed in range(10):
        told, truth = draw(2000, rare, seed)
        told = prior.adapt(told, OLD, rare)
        gains.append(metrics.waf(truth, prior.decide(told)) - metrics.waf(truth, told.argmax(1)))
        assert expected(told, prior.decide(told)) >= expected(told, told.argmax(1))
    assert np.mean(gains) > 0


def expected(probability: np.ndarray, answer: np.ndarray) -> float:
    mass = probability.sum(0)
    right = np.array([probability[answer == label, label].sum() for label in range(4)])
    return (mass * 2 * right / (mass + np.bincount(answer, minlength=4))).sum() / len(answer)


def test_the_gate_lets_a_shift_pass_and_stops_a_wrong_prior():
    held_out, truth = draw(3000, OLD, 4)
    before, after = prior.gain(held_out, truth, NEW, seed=0)
    assert after > before + 0.01
    # Probabilities that carry nothing cannot be helped by being multiplied.
    noise = prior._softmax(np.random.default_rng(0).normal(size=(300, 4)) * 3)
    before, after = prior.gain(noise, truth[:300], OLD, seed=0)
    assert after <= before + 0.01


def test_the_pool_prefers_the_member_that_knows_and_splits_between_equals():
    told, truth = draw(2000, OLD, 5)
    noise = np.full_like(told, 0.25)
    weights = prior.mixture(np.stack([told, noise]), truth)
    assert weights[0] > 0.95 and weights.sum() == pytest.approx(1)
    assert prior.mixture(np.stack([told, told, told]), truth) == pytest.approx([1 / 3] * 3)
