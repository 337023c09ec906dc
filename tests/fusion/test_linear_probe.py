"""Probes: what feature sets tell without hidden layers, and that no label tells of itself."""

from __future__ import annotations

from dataclasses import replace

import fusion_run
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.features.join import Clips
from mer_dist.fusion import linear_probe

LABELED, UNLABELED, FOLDS = 120, 200, 4


def task(classes: int = 3, width: int = 8, sets: int = 2, distance: float = 1.0, seed: int = 0):
    """Clips, their true labels, and feature sets of which each separates the labels a little."""
    random = np.random.default_rng(seed)
    truth = np.arange(LABELED + UNLABELED) % classes
    values = [
        (
            5
            + distance * random.normal(size=(classes, width))[truth]
            + random.normal(size=(len(truth), width))
        ).astype(np.float32)
        for _ in range(sets)
    ]
    labeled = np.arange(len(truth)) < LABELED
    clips = Clips(
        labels=list("abcdef")[:classes],
        names=fusion_run.names(len(truth)),
        truth=np.where(labeled, truth, -1),
        folds=FOLDS,
        fold=np.where(labeled, np.arange(len(truth)) // classes % FOLDS, -1),
    )
    return clips, truth, values, [np.ones(len(truth), bool) for _ in values]


@pytest.mark.slow
def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_predictions():
    clips, _, values, valid = task(distance=0.3)
    own, shuffled = clips.fold == 0, clips.truth.copy()
    shuffled[own] = np.roll(shuffled[own], 1)
    before, after = (
        linear_probe.linear_probe(values, valid, some) for some in (clips, replace(clips, truth=shuffled))
    )
    assert np.array_equal(before.oof.probability[own], after.oof.probability[own])
    assert not np.array_equal(before.oof.probability[~own], after.oof.probability[~own])


def test_what_a_vote_is_fitted_on_comes_from_models_without_both_folds():
    clips, _, values, valid = task(distance=0.3)
    shuffled, fold = clips.truth.copy(), clips.fold[clips.labeled]
    shuffled[clips.fold == 0] = np.roll(shuffled[clips.fold == 0], 1)
    before, after = (
        linear_probe.linear_probe(values, valid, some).nested_oof
        for some in (clips, replace(clips, truth=shuffled))
    )
    assert before.shape == (FOLDS, LABELED, 3)
    for without in range(FOLDS):
        assert np.array_equal(np.isnan(before[without]).all(1), fold == without)
    assert np.array_equal(before[0], after[0], equal_nan=True)
    assert not np.array_equal(before[1, fold == 2], after[1, fold == 2])


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_plain_logistic_regression_on_standardised_vectors(monkeypatch, classes):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (0.1,))
    clips, _, values, valid = task(classes)
    told = linear_probe.linear_probe(values, valid, clips).oof.probability
    flat = StandardScaler().fit_transform(np.concatenate(values, 1))
    rows, own = clips.outside(2), clips.fold == 2
    plain = LogisticRegression(C=0.1, max_iter=1000).fit(flat[rows], clips.truth[rows])
    assert np.allclose(told[own], plain.predict_proba(flat[own]), atol=1e-3)
    assert np.allclose(told.sum(1), 1)


def test_sets_side_by_side_tell_more_than_one_of_them():
    clips, truth, values, valid = task(distance=0.5)
    own = ~clips.labeled
    one, both = (
        linear_probe.linear_probe(values[:count], valid[:count], clips).oof.probability[own].argmax(1)
        for count in (1, 2)
    )
    assert metrics.waf(truth[own], both) > metrics.waf(truth[own], one) + 0.05


def test_the_strength_follows_what_the_features_are_worth():
    chosen = []
    for distance in (0.0, 2.0):
        clips, _, values, valid = task(distance=distance, width=30)
        inputs = linear_probe.Standardized.of(values, valid)
        chosen.append(linear_probe._nested(inputs, valid[0], clips)[0])
    assert max(chosen[0]) < min(chosen[1])
    clips = replace(clips, folds=2, fold=np.where(clips.labeled, clips.fold % 2, -1))
    strengths, oof = linear_probe._nested(inputs, valid[0], clips)
    assert strengths.tolist() == [linear_probe.USUAL] * 2 and np.isnan(oof).all()


@pytest.mark.slow
def test_what_stands_at_an_absent_set_changes_nothing_and_a_clip_without_any_gets_the_label_shares():
    clips, truth, values, valid = task()
    valid[0][::3] = False
    valid[1][::6] = False
    told = []
    for filler in (0.0, 1e6):
        values[0][~valid[0]] = values[1][~valid[1]] = filler
        told.append(linear_probe.linear_probe(values, valid, clips).oof.probability)
    assert np.array_equal(*told)
    nothing = ~valid[0] & ~valid[1] & ~clips.labeled
    assert np.allclose(told[0][nothing], 1 / 3, atol=0.02)
    some = ~clips.labeled & ~nothing
    assert metrics.waf(truth[some], told[0][some].argmax(1)) > 0.8


def test_a_set_that_leaves_one_label_to_learn_from_is_refused():
    clips, truth, values, valid = task(sets=1)
    valid[0][clips.labeled & (truth > 0)] = False
    with pytest.raises(UserError, match="fewer than two labels"):
        linear_probe.linear_probe(values, valid, clips)
