"""The stacked probe: it weighs what single sets predict, and no label tells of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_linear_probe import task

from mer_dist.core import metrics
from mer_dist.fusion.linear_probe import linear_probe
from mer_dist.fusion.stacked_probe import stacked_probe

pytestmark = pytest.mark.slow


def singles(values, valid, clips):
    return [linear_probe([one], [own], clips) for one, own in zip(values, valid, strict=True)]


def test_sets_that_tell_different_things_are_better_together_than_each():
    clips, truth, values, valid = task(distance=0.5)
    # A third that tells nothing is given no weight.
    values.append(np.random.default_rng(1).normal(size=values[0].shape).astype(np.float32))
    valid.append(valid[0])
    each = singles(values, valid, clips)
    told, _ = stacked_probe(each, clips, "stacked")
    assert told.title == "stacked" and np.allclose(told.probability.sum(1), 1)
    for own in (clips.labeled, ~clips.labeled):
        waf = metrics.waf(truth[own], told.answer[own])
        assert waf > max(metrics.waf(truth[own], one.oof.answer[own]) for one in each) + 0.03


def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_predictions():
    clips, _, values, valid = task(distance=0.3)
    own, shuffled = clips.fold == 0, clips.truth.copy()
    shuffled[own] = np.roll(shuffled[own], 1)
    before, after = (
        stacked_probe(singles(values, valid, some), some)[0].probability
        for some in (clips, replace(clips, truth=shuffled))
    )
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])


def test_with_two_folds_the_sets_have_equal_weights():
    clips, _, values, valid = task(distance=0.5)
    clips = replace(clips, folds=2, fold=np.where(clips.labeled, clips.fold % 2, -1))
    each = singles(values, valid, clips)
    told, _ = stacked_probe(each, clips)
    mean = np.mean([one.oof.probability for one in each], 0)
    assert np.allclose(told.probability[clips.labeled], mean[clips.labeled])


def test_a_label_that_the_other_folds_lack_is_given_nothing_and_ends_nothing():
    clips, _, values, valid = task(distance=1.0)
    truth = clips.truth.copy()
    truth[(truth == 2) & (clips.fold > 0)] = 1
    told, _ = stacked_probe(singles(values, valid, clips := replace(clips, truth=truth)), clips)
    assert np.isfinite(told.probability).all() and told.probability[clips.fold == 0, 2].max() < 1e-3
