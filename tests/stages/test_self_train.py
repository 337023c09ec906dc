"""Self-training: what is taken, what is written, and that no label reaches its own prediction."""

from __future__ import annotations

from dataclasses import replace

import fusion_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mer_dist import files, joined, metrics, predictions
from mer_dist.joined import Clips
from mer_dist.layout import Run
from mer_dist.models.fusion import Inputs
from mer_dist.settings import SelfTrainConfig
from mer_dist.stages.self_train import by_fold, select, self_train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parts_of(config) -> tuple[Clips, Inputs]:
    run = Run(config.run.folder)
    clips, _ = joined.read_clips(config, run)
    sets = [joined.read_set(run, name, clips)[0] for name in config.fuse.sets]
    tensors = [part.utterances(clips.names) for part in sets]
    values = [torch.from_numpy(values)[:, None] for values, _ in tensors]
    return clips, Inputs([part.modality for part in sets], values,
                         [torch.from_numpy(valid)[:, None] for _, valid in tensors])


def rounds_of(config, clips, inputs, made_from="") -> list[predictions.Predictions]:
    self_train(config, clips, made_from, lambda: inputs)
    folder = Run(config.run.folder).folder / "rounds"
    return [predictions.read(path) for path in sorted(folder.glob("*/predictions.parquet"))]


def permuted(clips: Clips, fold: int) -> Clips:
    """The labels of one fold shuffled; the folds stay."""
    own, truth = clips.fold == fold, clips.truth.copy()
    truth[own] = np.roll(truth[own], 1)
    assert (truth[own] != clips.truth[own]).mean() > 0.5
    return replace(clips, truth=truth)


def own_predictions_with_other_labels(config, fold: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per round, the out-of-fold probabilities of a fold with its labels as they are and shuffled."""
    clips, inputs = parts_of(config)
    pair = [[told.probability for told in rounds_of(config, some, inputs, made_from)]
            for some, made_from in ((clips, "as they are"), (permuted(clips, fold), "shuffled"))]
    own = clips.fold == fold
    assert any(not np.array_equal(a[~own], b[~own]) for a, b in zip(*pair, strict=True))
    return [(a[own], b[own]) for a, b in zip(*pair, strict=True)]


def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_predictions(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=2, epochs=4)
    told = own_predictions_with_other_labels(config, fold=1)
    assert len(told) == 3
    assert all(np.array_equal(before, after) for before, after in told)
    taken = pq.read_table(Run(config.run.folder).round(2) / "selection.parquet")["selected"]
    assert sum(taken.to_pylist()) > 0, "the way through the pseudo-labels was not tried"


def test_that_proof_sees_a_model_that_trained_on_its_own_fold(tmp_path, monkeypatch):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=2)
    monkeypatch.setattr(Clips, "outside", lambda clips, *folds: np.flatnonzero(clips.labeled))
    told = own_predictions_with_other_labels(config, fold=1)
    assert not any(np.array_equal(before, after) for before, after in told)


def test_that_proof_sees_pseudo_labels_from_other_folds(tmp_path, monkeypatch):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=4)
    honest = by_fold

    def mixed(run, number):
        told = honest(run, number)
        return np.repeat(told.mean(0, keepdims=True), len(told), 0)

    monkeypatch.setattr("mer_dist.stages.self_train.by_fold", mixed)
    (before, after), (leaky_before, leaky_after) = own_predictions_with_other_labels(config, fold=1)
    assert np.array_equal(before, after) and not np.array_equal(leaky_before, leaky_after)


def test_a_round_is_skipped_while_nothing_it_was_made_from_changes(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=2, epochs=1)
    clips, inputs = parts_of(config)
    run, calls = Run(config.run.folder), []

    def give():
        calls.append(1)
        return inputs

    def again(*overrides):
        changed = fusion_run.configure(tmp_path, 1, 2, overrides)
        before = [(files.marked(run.round(number)) or {}).get("made_from") for number in range(3)]
        calls.clear()
        self_train(changed, clips, "", give)
        after = [(files.marked(run.round(number)) or {}).get("made_from") for number in range(3)]
        return [number for number in range(3) if before[number] != after[number]], len(calls)

    assert again() == ([0, 1, 2], 1)
    assert again() == ([], 0)
    assert again("self_train.confidence=0.6") == ([1, 2], 1)
    assert again("fuse.dropout=0.1") == ([0, 1, 2], 1)
    # Half of the quota in one round is what the first of two took: only the second one goes.
    assert again("fuse.dropout=0.1", "self_train.rounds=1", "self_train.quota=0.25") == ([2], 0)
    assert not run.round(2).exists()


def test_the_lineage_tells_of_every_clip_what_became_of_it(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=6)
    clips, inputs = parts_of(config)
    unlabeled = np.flatnonzero(~clips.labeled)
    for mask in inputs.mask:
        mask[unlabeled[0]] = False
    told = rounds_of(config, clips, inputs)
    run = Run(config.run.folder)
    rows = pq.read_table(run.round(1) / "selection.parquet").to_pylist()
    assert [(row["fold"], row["name"]) for row in rows] == [
        (fold, clips.names[row]) for fold in range(3) for row in unlabeled]
    for row in rows:
        assert row["selected"] == (row["reason"] == "") == (row["weight"] > 0)
        shares = [row[f"p_{label}"] for label in clips.labels]
        assert row["pseudo_label"] == clips.labels[int(np.argmax(shares))]
        assert not row["selected"] or max(shares) >= row["threshold"] >= config.self_train.confidence
    assert {row["reason"] for row in rows if row["name"] == clips.names[unlabeled[0]]} == {"no modality"}
    # A clip of which nothing is known gets the shares of the labels.
    assert np.allclose(told[1].probability[unlabeled[0]], 1 / 3, atol=0.02)
    curves = files.read_json(run.round(1) / "curves.json")["folds"]
    assert [len(curve["train_loss"]) for curve in curves] == [6, 6, 6]
    assert (np.array([curve["train_loss"] for curve in curves])[:, [0, -1]] @ [1, -1] > 0).all()


def test_an_unlabelled_clip_gets_the_mean_of_all_folds_models(tmp_path):
    config, truth = fusion_run.make(tmp_path, rounds=0, epochs=20)
    clips, inputs = parts_of(config)
    (told,) = rounds_of(config, clips, inputs)
    assert np.allclose(told.probability[~clips.labeled], by_fold(Run(config.run.folder), 0).mean(0), atol=1e-6)
    assert told.fold.tolist() == clips.fold.tolist()
    assert metrics.waf(truth[:90], told.answer[clips.labeled]) > 0.6


def test_with_two_folds_or_no_unlabelled_clip_it_still_runs(tmp_path):
    config, _ = fusion_run.make(tmp_path / "two", rounds=1, epochs=1)
    config.folds.count = 2
    assert len(rounds_of(config, *parts_of(config))) == 2
    config, _ = fusion_run.make(tmp_path / "none", rounds=1, epochs=1, unlabeled=0)
    assert len(rounds_of(config, *parts_of(config))) == 1


def test_each_label_gets_its_share_of_the_quota_and_the_surest_clips_come_first():
    random = np.random.default_rng(0)
    probability = random.dirichlet([4, 1, 1], 300)
    usable = np.ones(300, bool)
    usable[probability[:, 1].argmax()] = False
    one = select(probability, usable, 0.5, SelfTrainConfig(confidence=0.4, weight=0.5))
    taken = one.reason == ""
    for label in range(3):
        own = usable & (one.label == label) & (probability.max(1) >= 0.4)
        quota = round(0.5 * probability[usable, label].sum())
        assert taken[one.label == label].sum() == min(quota, own.sum())
        left = own & ~taken
        if left.any():
            assert probability[left, label].max() <= one.threshold[label]
    assert one.reason[~usable].tolist() == ["no modality"]
    assert np.allclose(one.weight[taken], 0.5 * probability.max(1)[taken]) and not one.weight[~taken].any()
