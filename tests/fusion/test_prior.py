"""Calibration and label shares, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.core import metrics
from mer_dist.fusion import label_shift

OLD = np.array([0.3, 0.3, 0.2, 0.2])
NEW = np.array([0.1, 0.2, 0.1, 0.6])
CENTERS = np.array([[0, 0], [2.2, 0], [0, 2.2], [2.2, 2.2]])


def draw(count: int, shares: np.ndarray, seed: int, apart: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """True posteriors under ``OLD`` of points drawn under ``shares``, and their labels.

    With ``apart`` other than 1 the labels' centres are so many times as far from each other as the
    posteriors believe, and p(features | label) is not that of ``OLD`` any more.
    """
    random = np.random.default_rng(seed)
    truth = random.choice(4, count, p=shares)
    middle = CENTERS.mean(0)
    points = (middle + apart * (CENTERS - middle))[truth] + random.normal(size=(count, 2))
    odds = -((points[:, None] - CENTERS) ** 2).sum(2) / 2 + np.log(OLD)
    return label_shift.softmax(odds), truth


def test_calibration_undoes_a_known_distortion():
    honest, truth = draw(20_000, OLD, 0)
    bias = np.array([0.5, 0, -0.5, 0])
    bent = label_shift.softmax(2 * np.log(honest) + 2 * bias)
    fitted = label_shift.calibrate(bent, truth)
    assert fitted.scale == pytest.approx(0.5, abs=0.02)
    assert np.abs(fitted(bent) - honest).mean() < 0.01
    # Its maximum-likelihood condition: the mean probability of a label is the label's share.
    assert np.allclose(fitted(bent).mean(0), label_shift.shares(truth, 4), atol=1e-3)
    assert label_shift.calibrate(label_shift.softmax(2 * np.log(honest)), truth, bias=False).scale == (
        pytest.approx(0.5, abs=0.02)
    )


def test_a_few_clips_do_not_move_the_calibration_far():
    sure = np.full((3, 4), 0.01) + 0.96 * np.eye(4)[:3]
    fitted = label_shift.calibrate(sure, np.arange(3))
    assert 0.5 < fitted.scale < 2 and np.abs(fitted.bias).max() < 0.5
    nothing = label_shift.calibrate(np.empty((0, 4)), np.empty(0, int))
    assert nothing.scale == 1 and not nothing.bias.any()


@pytest.mark.slow
def test_both_estimators_find_the_shares_of_the_unlabelled_clips():
    oof, truth = draw(5000, OLD, 1)
    unlabeled, _ = draw(8000, NEW, 2)
    for found in (label_shift.em(unlabeled, OLD), label_shift.bbse(unlabeled, oof, truth)):
        assert np.abs(found - NEW).max() < 0.03
    found = label_shift.estimate(unlabeled, oof, truth, seed=0, draws=10)
    assert found.shrinkage > 0.95 and np.abs(found.used - NEW).max() < 0.03


@pytest.mark.slow
def test_without_a_shift_the_estimate_stays_with_the_labelled_shares():
    trusts, used, middle = [], [], []
    for seed in range(8):
        oof, truth = draw(240, OLD, seed)
        unlabeled, _ = draw(400, OLD, 100 + seed)
        found = label_shift.estimate(unlabeled, oof, truth, seed, draws=20)
        trusts.append(found.shrinkage)
        for ways, estimated in ((used, found.used), (middle, (found.em + found.bbse) / 2)):
            ways.append([np.abs(estimated - found.labeled).sum(), np.abs(estimated - OLD).sum()])
    assert np.mean(trusts) < 0.5
    (kept, error), (moved, error_unshrunk) = np.mean(used, 0), np.mean(middle, 0)
    assert kept < 0.6 * moved and error < 0.9 * error_unshrunk


@pytest.mark.slow
def test_where_more_than_the_shares_differs_the_estimators_disagree_and_the_estimate_is_shrunk():
    new = np.array([0.3, 0.3, 0.1, 0.3])
    for seed in range(2):
        oof, truth = draw(3000, OLD, seed)
        honest, violated = (
            label_shift.estimate(draw(3000, new, 100 + seed, apart)[0], oof, truth, seed, draws=10)
            for apart in (1, 4)
        )
        assert np.abs(honest.em - honest.bbse).sum() < 0.05 < 0.25 < np.abs(violated.em - violated.bbse).sum()
        assert violated.shrinkage < 0.6 < 0.85 < honest.shrinkage
        between = (violated.em + violated.bbse) / 2
        way, whole = violated.used - violated.labeled, between - violated.labeled
        # On the way from the labelled shares to the estimates, and short of them by what is not trusted.
        assert way @ whole == pytest.approx(np.linalg.norm(way) * np.linalg.norm(whole))
        assert np.linalg.norm(way) < 0.6 * np.linalg.norm(whole)


@pytest.mark.slow
def test_intervals_hold_the_estimate_cover_the_truth_and_shrink_with_more_clips():
    widths = []
    for size in (200, 1600):
        covered = []
        for seed in range(4):
            oof, truth = draw(size, OLD, seed)
            unlabeled, others = draw(size, NEW, 100 + seed)
            found = label_shift.estimate(unlabeled, oof, truth, seed, draws=50)
            assert found.intervals.keys() == {"em", "bbse"}
            for name, (low, high) in found.intervals.items():
                now = label_shift.shares(others, 4)
                covered += [(low <= now) & (now <= high)]
                assert ((low <= getattr(found, name)) & (getattr(found, name) <= high)).mean() >= 0.75
        widths.append((high - low).mean())
        # Of 32 shares, 30.4 at 95 %; those of one seed are covered or missed together.
        assert np.sum(covered) >= 26
    assert widths[1] < 0.5 * widths[0]


@pytest.mark.slow
def test_clips_of_a_group_are_drawn_together_and_widen_the_interval():
    rows = label_shift.resampler(np.array(["a", "b", "a", "c"]))(np.random.default_rng(0))
    counts = np.bincount(rows, minlength=4)
    assert counts[0] == counts[2] and counts[0] + counts[1] + counts[3] == 3
    oof, truth = draw(300, OLD, 0)
    unlabeled, _ = draw(300, OLD, 1)
    alone = label_shift.estimate(unlabeled, oof, truth, 0)
    # Groups that are alike: four copies of each clip.
    copied = [np.repeat(part, 4, 0) for part in (unlabeled, oof, truth)]
    group = np.repeat(np.arange(300), 4)
    together = label_shift.estimate(*copied, 0, groups=(group, group))
    apart = label_shift.estimate(*copied, 0)
    widths = [np.diff(found.intervals["bbse"], axis=0).mean() for found in (alone, together, apart)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3) and widths[2] < 0.7 * widths[1]


@pytest.mark.slow
def test_shares_that_may_be_true_spread_around_the_used_ones():
    oof, truth = draw(400, OLD, 1)
    unlabeled, _ = draw(400, NEW, 2)
    found = label_shift.estimate(unlabeled, oof, truth, 0)
    assert np.allclose(found.prior_samples.sum(1), 1) and (found.prior_samples >= 0).all()
    assert np.abs(found.prior_samples.mean(0) - found.used).max() < 0.01
    assert 0.005 < found.prior_samples.std(0).mean() < 0.06


def test_where_the_estimators_start_does_not_matter():
    oof, truth = draw(500, OLD, 1)
    bent = label_shift.softmax(2 * np.log(oof))
    cold, warm = (
        label_shift.calibrate(bent, truth, start=start)
        for start in (None, label_shift.Calibration(0.6, np.array([0.3, 0, 0, -0.3])))
    )
    assert warm.scale == pytest.approx(cold.scale) and np.allclose(warm.bias, cold.bias, atol=1e-6)
    unlabeled, _ = draw(500, NEW, 2)
    assert np.abs(label_shift.em(unlabeled, OLD) - label_shift.em(unlabeled, OLD, start=NEW)).max() < 1e-3


def test_a_label_that_was_never_seen_keeps_no_share():
    probability = np.array([[0.5, 0.3, 0.2, 0.0]] * 10)
    old = np.array([0.5, 0.5, 0.0, 0.0])
    assert label_shift.em(probability, old)[2] == 0
    assert np.isfinite(label_shift.adapt(probability, old, NEW)).all()


def test_correction_with_the_true_shares_gives_the_posterior_under_them():
    told, truth = draw(20_000, NEW, 3)
    corrected = label_shift.adapt(told, OLD, NEW)
    assert metrics.waf(truth, corrected.argmax(1)) > metrics.waf(truth, told.argmax(1)) + 0.02
    assert np.allclose(corrected.mean(0), NEW, atol=0.01)


def test_the_pool_prefers_the_member_that_knows_and_splits_between_equals():
    told, truth = draw(2000, OLD, 5)
    noise = np.full_like(told, 0.25)
    weights = label_shift.mixture(np.stack([told, noise]), truth)
    assert weights[0] > 0.95 and weights.sum() == pytest.approx(1)
    assert label_shift.mixture(np.stack([told, told, told]), truth) == pytest.approx([1 / 3] * 3)
