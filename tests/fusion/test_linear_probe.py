"""Probes: what feature sets tell without hidden layers, and that no label tells of itself."""

from __future__ import annotations

import csv
from dataclasses import replace

import fusion_run
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.features.join import Clips
from mer_dist.fusion import linear_probe, nested
from mer_dist.fusion.label_shift import Calibration

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


@pytest.mark.slow
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
    for name, value in {"STRENGTHS": (0.1,), "CLASS_WEIGHTS": (None,), "SETTINGS": ((None, 0.1),)}.items():
        monkeypatch.setattr(linear_probe, name, value)
    monkeypatch.setattr(linear_probe, "_temperature", lambda *_: Calibration(1.0, np.zeros(classes)))
    clips, _, values, valid = task(classes)
    told = linear_probe.linear_probe(values, valid, clips).oof.probability
    flat = StandardScaler().fit_transform(np.concatenate(values, 1))
    rows, own = clips.outside(2), clips.fold == 2
    plain = LogisticRegression(C=0.1, max_iter=1000).fit(flat[rows], clips.truth[rows])
    assert np.allclose(told[own], plain.predict_proba(flat[own]), atol=1e-3)
    assert np.allclose(told.sum(1), 1)


@pytest.mark.slow
def test_what_was_chosen_for_its_answers_alone_is_made_as_sure_as_it_is_right(monkeypatch):
    """The strongest ridge orders the labels well and gives them nearly equal probabilities."""
    clips, truth, values, valid = task(distance=0.3, width=40)
    for strength, better in ((1e-5, 0.3), (1.0, 1.05)):
        settings = ((None, strength),)
        for name, value in {
            "STRENGTHS": (strength,),
            "CLASS_WEIGHTS": (None,),
            "SETTINGS": settings,
            "USUAL": 0,
        }.items():
            monkeypatch.setattr(linear_probe, name, value)
        found = []
        for temperature in (linear_probe._temperature, lambda *_: Calibration(1.0, np.zeros(3))):
            with monkeypatch.context() as patch:
                patch.setattr(linear_probe, "_temperature", temperature)
                found.append(linear_probe.linear_probe(values, valid, clips))
        for own in (clips.labeled, ~clips.labeled):
            calibrated, plain = (nested.log_loss(one.oof.probability[own], truth[own]) for one in found)
            assert calibrated < better * plain
        assert np.array_equal(found[0].oof.answer[clips.labeled], found[1].oof.answer[clips.labeled])


@pytest.mark.slow
def test_sets_side_by_side_tell_more_than_one_of_them():
    clips, truth, values, valid = task(distance=0.5)
    own = ~clips.labeled
    one, both = (
        linear_probe.linear_probe(values[:count], valid[:count], clips).oof.probability[own].argmax(1)
        for count in (1, 2)
    )
    assert metrics.waf(truth[own], both) > metrics.waf(truth[own], one) + 0.05


def test_with_two_folds_there_is_nothing_to_choose_by_and_the_usual_setting_is_taken():
    clips, _, values, valid = task()
    clips = replace(clips, folds=2, fold=np.where(clips.labeled, clips.fold % 2, -1))
    inputs = linear_probe.Standardized.of(values, valid)
    settings, oof = linear_probe._nested(inputs, valid[0], clips)
    assert settings.tolist() == [linear_probe.USUAL] * 2 and np.isnan(oof).all()


def by_scikit_learn(x: np.ndarray, clips: Clips) -> float:
    """Out-of-fold WAF of its own cross-validated search over the same settings, by the same folds."""
    answer = np.empty(len(clips.names), int)
    for own in range(clips.folds):
        train = clips.fold != own
        fold = clips.fold[train]
        inner = [(np.flatnonzero(fold != one), np.flatnonzero(fold == one)) for one in np.unique(fold)]
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            {
                "logisticregression__C": linear_probe.STRENGTHS,
                "logisticregression__class_weight": linear_probe.CLASS_WEIGHTS,
            },
            scoring="f1_weighted",
            cv=inner,
        )
        answer[~train] = search.fit(x[train], clips.truth[train]).predict(x[~train])
    return metrics.waf(clips.truth, answer)


def all_labeled(x: np.ndarray, truth: np.ndarray, folds: int = 5, groups: np.ndarray | None = None) -> Clips:
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    fold = np.empty(len(truth), int)
    for own, (_, rows) in enumerate(split.split(x, truth, np.arange(len(x)) if groups is None else groups)):
        fold[rows] = own
    labels = [f"label {label}" for label in range(truth.max() + 1)]
    return Clips(labels=labels, names=fusion_run.names(len(x)), truth=truth, folds=folds, fold=fold)


def uneven(count: int = 240, width: int = 12, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features of three labels that overlap, one of them rare."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, count, p=[0.6, 0.3, 0.1])
    centers = 0.6 * random.normal(size=(3, width))
    return (centers[truth] + random.normal(size=(count, width))).astype(np.float32), truth


@pytest.mark.slow
def test_it_is_tuned_as_hard_as_by_scikit_learns_own_search():
    x, truth = uneven()
    clips = all_labeled(x, truth, folds=4)
    told = linear_probe.linear_probe([x], [np.ones(len(x), bool)], clips).oof.answer
    assert metrics.waf(truth, told) >= by_scikit_learn(x, clips) - 0.005


@pytest.mark.slow
def test_class_weights_are_chosen_where_a_label_is_rare_and_only_if_they_score_better():
    x, truth = uneven()
    clips = all_labeled(x, truth, folds=4)
    inputs, there = linear_probe.Standardized.of([x], [np.ones(len(x), bool)]), np.ones(len(x), bool)
    chosen, oof = linear_probe._nested(inputs, there, clips)
    by_setting = {}
    for option, pair, rows, p in linear_probe._without_two_folds(inputs, there, clips, linear_probe.never):
        found = by_setting.setdefault(option, np.full((4, len(x)), -1))
        for held_out, other in (pair, pair[::-1]):
            own = rows[clips.fold[rows] == other]
            found[held_out, own] = p[clips.fold[rows] == other].argmax(1)
    for fold in range(4):
        others = clips.fold != fold
        wafs = [metrics.waf(truth[others], by_setting[option][fold, others]) for option in sorted(by_setting)]
        assert wafs[chosen[fold]] == max(wafs)
        assert np.array_equal(oof[fold, others].argmax(1), by_setting[chosen[fold]][fold, others])
    assert {linear_probe.SETTINGS[option][0] for option in by_setting} == {None, "balanced"}


def crema_d(shared):
    """Voice and face of the actors with even numbers, folds by actor."""
    data = np.load(shared / "data" / "crema-d" / "crema-d.npz", allow_pickle=False)
    even, parts = data["actor"].astype(int) % 2 == 0, []
    for name in ("voice", "face"):
        votes, level = data[f"{name}_votes"].astype(np.float32), np.maximum(data[f"{name}_level"], 0) / 100
        shares = (votes + 0.5) / (votes.sum(1, keepdims=True) + 3)
        parts += [shares, np.log(shares), level]
    return np.concatenate(parts, 1)[even], data["intended"][even].astype(int), data["actor"][even]


def mer2023(shared):
    """Sentence embeddings of the train part."""
    data = np.load(shared / "data" / "mer2023-text" / "mer2023-text.npz", allow_pickle=False)
    x, own = data["minilm"].astype(np.float32), data["part"] == "train"
    own &= np.abs(x).sum(1) > 0
    return x[own], np.unique(data["label"][own], return_inverse=True)[1], None


def mosi(shared):
    """All three modalities of the published test rows, folds by video."""
    folder, parts = shared / "data" / "cmu-mosi", []
    for name in ("text", "audio", "video"):
        parts.append(np.array([row[:-1] for row in rows_of(folder / f"{name}_test.csv")], np.float32))
    names = rows_of(folder / "names_test.csv")[1:]
    videos = np.array([name.rpartition("_")[0] for name, *_ in names])
    return np.concatenate(parts, 1), np.array([int(row[-1]) for row in names]), videos


def rows_of(path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [*csv.reader(file)]


@pytest.mark.long
@pytest.mark.parametrize("data", [crema_d, mer2023, mosi])
def test_on_real_data_it_is_not_half_a_point_below_scikit_learns_own_search(shared, data):
    x, truth, groups = data(shared)
    clips = all_labeled(x, truth, groups=groups)
    told = linear_probe.linear_probe([x], [np.ones(len(x), bool)], clips).oof.answer
    assert metrics.waf(truth, told) >= by_scikit_learn(x, clips) - 0.005


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
