"""The test of label shift, and who decides of a correction, against cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_prior import NEW, OLD, draw

from mer_dist.fusion import correction, label_shift, shift_test


@pytest.mark.slow
def test_other_label_shares_alone_are_not_seen_and_another_look_is():
    quiet, seen = [], []
    for seed in range(5):
        oof, truth = draw(800, OLD, seed)
        for found, (shares, apart) in (
            (quiet, (OLD, 1)),
            (quiet, (NEW, 1)),
            (seen, (NEW, 0.3)),
            (seen, (OLD, 3)),
        ):
            unlabeled, _ = draw(600, shares, 100 + seed, apart)
            found.append(shift_test.p_value(unlabeled, oof, truth, seed))
    assert np.mean(np.array(quiet) < shift_test.LEVEL) <= 0.2 and np.mean(quiet) > 0.35
    assert max(seen) < 0.02


def test_groups_that_differ_among_themselves_are_no_other_look():
    """Ten films a part, each with its own mood: only clips drawn one by one take that for a difference."""
    random, alone, together = np.random.default_rng(0), [], []
    for seed in range(6):
        parts = []
        for first in (0, 50):
            groups = np.repeat(np.arange(10), 60)
            told, truth = draw(600, OLD, 10 * seed + first)
            # A film adds its own evidence against or for labels.
            told = label_shift.softmax(np.log(told + 1e-6) + random.normal(size=(10, 4))[groups])
            parts.append((told, truth, groups))
        (oof, truth, own), (unlabeled, _, others) = parts
        alone.append(shift_test.p_value(unlabeled, oof, truth, seed))
        together.append(shift_test.p_value(unlabeled, oof, truth, seed, (own, others)))
    assert np.median(alone) < 0.05 < 0.1 < np.median(together)


def evidence(unlabeled, oof, truth) -> correction.Evidence:
    return correction.gather(oof, truth, unlabeled[None], 0)


def judged(known, oof, truth, told=None) -> correction.Verdict:
    return correction.assess(known, told, oof, truth, 0, np.arange(len(truth)))


@pytest.mark.slow
def test_where_more_than_the_shares_differs_nothing_is_estimated_and_told_shares_are_applied():
    oof, truth = draw(900, OLD, 1)
    unlabeled, _ = draw(700, NEW, 2, apart=0.3)
    known = evidence(unlabeled, oof, truth)
    verdict = judged(known, oof, truth)
    assert not verdict.applied and verdict.by == correction.BY_TEST
    assert f"p = {known.p_value:.3f}" in verdict.reason
    # Even shares that the estimates would contradict.
    for told in (NEW, NEW[::-1]):
        verdict = judged(known, oof, truth, told)
        assert verdict.applied and verdict.by == correction.BY_TEST and (verdict.tried == told).all()


@pytest.mark.slow
def test_where_only_the_shares_differ_the_correction_is_applied_and_wrong_told_shares_are_not():
    oof, truth = draw(900, OLD, 1)
    unlabeled, _ = draw(700, NEW, 2)
    known = evidence(unlabeled, oof, truth)
    verdict = judged(known, oof, truth)
    assert verdict.applied and verdict.by == correction.BY_GATE
    verdict = judged(known, oof, truth, NEW[::-1])
    assert not verdict.applied and verdict.by == correction.BY_ESTIMATES


@pytest.mark.slow
@pytest.mark.parametrize(("shrinkage", "applied"), [(0.49, False), (0.51, True)])
def test_estimates_that_are_mostly_noise_are_not_applied_and_say_nothing_against_told_shares(
    shrinkage, applied
):
    oof, truth = draw(900, OLD, 1)
    unlabeled, _ = draw(700, NEW, 2)
    known = evidence(unlabeled, oof, truth)
    assert known.found.shrinkage > 0.6
    known = replace(known, found=replace(known.found, shrinkage=shrinkage))
    verdict = judged(known, oof, truth)
    assert verdict.gate.opens and verdict.applied == applied
    assert verdict.by == (correction.BY_GATE if applied else correction.BY_ESTIMATES)
    assert applied or "49 % of the distance between" in verdict.reason
    assert judged(known, oof, truth, NEW).applied


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 10, correction.FLOOR - 1])
def test_of_a_few_clips_nothing_is_estimated_and_nothing_speaks_against_told_shares(count):
    oof, truth = draw(900, OLD, 1)
    # All of one label: their estimate runs away.
    unlabeled, _ = draw(count, np.array([0, 0, 0, 1.0]), 2)
    known = evidence(unlabeled, oof, truth)
    verdict = judged(known, oof, truth)
    assert not verdict.applied and verdict.by == correction.BY_FLOOR
    assert str(count) in verdict.reason and str(correction.FLOOR) in verdict.reason
    told = np.array([0.6, 0.2, 0.1, 0.1])
    assert judged(known, oof, truth, told).applied


@pytest.mark.slow
def test_no_label_becomes_more_than_so_many_times_as_frequent_or_rare():
    oof, truth = draw(3000, OLD, 1)
    unlabeled, _ = draw(3000, np.array([0.0, 0.0, 0.0, 1.0]), 2)
    found = label_shift.estimate(unlabeled, oof, truth, 0, draws=20)
    ratio = found.used / found.labeled
    assert found.em[0] < 0.01 and ratio.max() / ratio.min() <= label_shift.MOST**2 + 1e-9
    assert found.used.min() > 0.02 and found.used.sum() == pytest.approx(1)


@pytest.mark.slow
def test_an_interval_does_not_vanish_at_zero_and_holds_a_share_that_hides_behind_a_like_label():
    """No clip looks like the first label, whose clips are 13.9 %: they look like the second."""
    random, shares = np.random.default_rng(0), np.array([0.139, 0.361, 0.3, 0.2])
    truth = random.choice(4, 1000, p=shares)
    both = label_shift.softmax(1.5 * np.eye(4)[truth] + 0.9 * random.normal(size=(1000, 4)))
    likeness = both[:, 0] + both[:, 1]
    both[:, 0] = likeness * shares[0] / shares[:2].sum() * (1 + 0.08 * random.normal(size=1000))
    both[:, 1] = likeness - both[:, 0]
    unlabeled = both[random.permutation(1000)[:400]].copy()
    unlabeled[:, 0] *= 0.85
    unlabeled /= unlabeled.sum(1, keepdims=True)
    found = label_shift.estimate(unlabeled, both, truth, 0)
    low, high = found.intervals["em"]
    old_high = np.quantile(found.draws[:, 0, 0], 0.975)
    assert found.em[0] < 0.001 and old_high < 0.01
    assert low[0] == 0 and high[0] > 0.139
