"""Self-training: what is taken, what is written, and that no label reaches its own prediction."""

from __future__ import annotations

import shutil
from dataclasses import replace

import fusion_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from mer_dist import cli
from mer_dist.config.section import with_values
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.features import join
from mer_dist.features.join import Clips
from mer_dist.fusion import batch, ensemble, predictions, teachers
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.cross_fitted import CrossFittedRound
from mer_dist.fusion.members import build
from mer_dist.fusion.recipes import Recipe
from mer_dist.fusion.self_training import _Round, self_train
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def parts_of(config) -> tuple[Clips, FeatureBatch]:
    run = Run(config.run.folder)
    clips, _ = join.read_clips(config, run)
    sets = [join.read_set(run, name, clips)[0] for name in config.fuse.sets]
    tensors = [part.utterances(clips.names) for part in sets]
    values = [torch.from_numpy(values)[:, None] for values, _ in tensors]
    masks = [torch.from_numpy(valid)[:, None] for _, valid in tensors]
    return clips, batch.standardize(FeatureBatch([part.modality for part in sets], values, masks))


def rounds_of(config, clips, inputs, fingerprint="") -> list[predictions.Predictions]:
    self_train(config, clips, Recipe(fingerprint), lambda: inputs)
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
    pair = [
        [told.probability for told in rounds_of(config, some, inputs, fingerprint)]
        for some, fingerprint in ((clips, "as they are"), (permuted(clips, fold), "shuffled"))
    ]
    own = clips.fold == fold
    assert any(not np.array_equal(a[~own], b[~own]) for a, b in zip(*pair, strict=True))
    return [(a[own], b[own]) for a, b in zip(*pair, strict=True)]


def taken_in(config, number: int) -> np.ndarray:
    """(K,): pseudo-labels that the models of each fold learned from."""
    rows = pq.read_table(Run(config.run.folder).round(number).pseudo_label_log).to_pydict()
    return np.bincount(rows["fold"], rows["selected"], config.folds.count)


def easy(config, **changes):
    """Self-training whose rules take a part of the clips after a few epochs, and not all or none."""
    rule = changes.get("rule", "quota")
    config = with_values(config, **{"self_train.confidence": 0.8 if rule == "threshold" else 0.4})
    config = with_values(config, **{"self_train.precision": 0.9})
    for key, value in changes.items():
        config = with_values(config, **{f"self_train.{key}": value})
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "start"),
    [
        ("quota", "scratch"),
        ("quota", "warm"),
        ("threshold", "scratch"),
        ("precision", "scratch"),
        ("precision", "warm"),
    ],
)
def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_predictions(tmp_path, rule, start):
    config = easy(fusion_run.make(tmp_path, rounds=2, epochs=4)[0], rule=rule, start=start)
    told = own_predictions_with_other_labels(config, fold=1)
    assert len(told) == 3
    assert all(np.array_equal(before, after) for before, after in told)
    assert 0 < taken_in(config, 2)[1] < 120, "the way through the pseudo-labels was not tried"


@pytest.mark.slow
def test_nor_do_they_by_the_consensus_of_models_and_a_teacher(tmp_path):
    config, truth = fusion_run.make(tmp_path, rounds=2, epochs=4)
    settings = replace(config.self_train, rule="consensus", teachers=["expert"], sure=0.8, confidence=0.4)
    config = with_values(config, self_train=settings)
    said = np.full((len(truth), 3), 0.1)
    said[np.arange(len(truth)), np.where(np.arange(len(truth)) % 4, truth, 0)] = 0.8
    teachers.write(Run(config.run.folder), "expert", fusion_run.LABELS, fusion_run.names(len(truth)), said)
    told = own_predictions_with_other_labels(config, fold=1)
    assert all(np.array_equal(before, after) for before, after in told)
    assert 0 < taken_in(config, 2)[1] < 120, "the way through the pseudo-labels was not tried"


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted({*FUSION_MODELS.built_in} - {"agt"}))
def test_nor_do_they_with_any_of_the_other_models(tmp_path, model):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=12)[0])
    config = with_values(config, **{"fuse.model": model})
    told = own_predictions_with_other_labels(config, fold=1)
    assert len(told) == 2
    assert all(np.array_equal(before, after) for before, after in told)
    assert 0 < taken_in(config, 1)[1] < 120, "the way through the pseudo-labels was not tried"


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_that_proof_sees_a_model_that_trained_on_its_own_fold(tmp_path, monkeypatch, model):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=2)
    config = with_values(config, **{"fuse.model": model})
    monkeypatch.setattr(Clips, "outside", lambda clips, *folds: np.flatnonzero(clips.labeled))
    told = own_predictions_with_other_labels(config, fold=1)
    assert not any(np.array_equal(before, after) for before, after in told)


@pytest.mark.slow
def test_that_proof_sees_pseudo_labels_from_other_folds(tmp_path, monkeypatch):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=4)
    honest = CrossFittedRound.load

    def mixed(run, number):
        told = honest(run, number)
        mean = told.fold_predictions.mean(0, keepdims=True)
        return replace(told, fold_predictions=np.repeat(mean, len(told.fold_predictions), 0))

    monkeypatch.setattr(CrossFittedRound, "load", mixed)
    (before, after), (leaky_before, leaky_after) = own_predictions_with_other_labels(config, fold=1)
    assert np.array_equal(before, after) and not np.array_equal(leaky_before, leaky_after)


@pytest.mark.slow
def test_that_proof_sees_thresholds_fitted_on_plain_out_of_fold_predictions(tmp_path, monkeypatch):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=4)[0], rule="precision")

    def plain(run):
        told = predictions.read(run.round(0).predictions)
        known = told.probability[told.labeled].astype(np.float32)
        every = np.repeat(known[None], config.folds.count, 0)
        every[told.fold[told.labeled], np.arange(len(known))] = np.nan
        return every

    assert np.array_equal(np.isnan(plain_of(config, plain)), np.isnan(plain_of(config, nested_oof)))
    honest = CrossFittedRound.load
    monkeypatch.setattr(
        CrossFittedRound, "load", lambda run, number: replace(honest(run, number), nested_oof=plain(run))
    )
    (before, after), (leaky_before, leaky_after) = own_predictions_with_other_labels(config, fold=1)
    assert np.array_equal(before, after) and not np.array_equal(leaky_before, leaky_after)


def nested_oof(run) -> np.ndarray:
    return CrossFittedRound.load(run, 0).nested_oof


def plain_of(config, read):
    rounds_of(config, *parts_of(config))
    return read(Run(config.run.folder))


@pytest.mark.slow
def test_that_proof_sees_a_training_as_long_as_what_all_folds_took(tmp_path, monkeypatch):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=4)[0], rule="threshold")
    honest, taken = _Round._pseudo_labels, []

    def noted(one):
        chosen = honest(one)
        taken[:] = [int(of_fold.taken.sum()) for of_fold in chosen]
        return chosen

    monkeypatch.setattr(_Round, "_pseudo_labels", noted)
    monkeypatch.setattr(_Round, "_steps", lambda one: 5 if one.number == 0 else 1 + sum(taken) // 10)
    (before, after), (leaky_before, leaky_after) = own_predictions_with_other_labels(config, fold=1)
    assert np.array_equal(before, after) and not np.array_equal(leaky_before, leaky_after)


@pytest.mark.slow
def test_that_proof_sees_a_warm_start_from_models_of_another_fold(tmp_path, monkeypatch):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=2)[0], start="warm")
    own = _Round._start

    def others(one):
        state = own(one)
        return state and {name: value.roll(one.config.fuse.seeds, 0) for name, value in state.items()}

    monkeypatch.setattr(_Round, "_start", others)
    (before, after), (leaky_before, leaky_after) = own_predictions_with_other_labels(config, fold=1)
    assert np.array_equal(before, after) and not np.array_equal(leaky_before, leaky_after)


@pytest.mark.slow
def test_what_thresholds_are_learned_on_comes_from_models_without_both_folds(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=2)
    clips, inputs = parts_of(config)
    for mask in inputs.mask:
        mask[0] = False
    run = Run(config.run.folder)
    self_train(config, clips, Recipe("as they are"), lambda: inputs)
    before = nested_oof(run)
    self_train(config, permuted(clips, 1), Recipe("shuffled"), lambda: inputs)
    after, fold = nested_oof(run), clips.fold[clips.labeled]
    for without in range(3):
        lacking = fold == without
        lacking[0] = True
        assert np.array_equal(np.isnan(before[without]).all(1), lacking)
    # Without fold 1, or judged on fold 1: in both cases its labels are not known.
    assert np.array_equal(before[1], after[1], equal_nan=True)
    assert np.array_equal(before[:, fold == 1], after[:, fold == 1], equal_nan=True)
    assert not np.array_equal(before[0][fold == 2][1:], after[0][fold == 2][1:])


@pytest.mark.slow
def test_a_round_is_skipped_while_nothing_it_was_made_from_changes(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=2, epochs=1)
    clips, inputs = parts_of(config)
    run, calls = Run(config.run.folder), []

    def give():
        calls.append(1)
        return inputs

    def again(*overrides):
        changed = fusion_run.configure(tmp_path, 1, 2, overrides)
        before = [
            (files.read_marker(run.round(number).folder) or {}).get("fingerprint") for number in range(3)
        ]
        calls.clear()
        self_train(changed, clips, Recipe(""), give)
        after = [
            (files.read_marker(run.round(number).folder) or {}).get("fingerprint") for number in range(3)
        ]
        return [number for number in range(3) if before[number] != after[number]], len(calls)

    assert again() == ([0, 1, 2], 1)
    assert again() == ([], 0)
    assert again("self_train.confidence=0.6") == ([1, 2], 1)
    assert again("self_train.precision=0.6", "self_train.patience=9") == ([1, 2], 1)
    assert again("self_train.precision=0.7") == ([], 0), "another rule's key changes nothing"
    assert again("fuse.dropout=[0.15]") == ([0, 1, 2], 1)
    # Half of the quota in one round is what the first of two took: only the second one goes.
    assert again("fuse.dropout=[0.15]", "self_train.rounds=1", "self_train.quota=0.25") == ([2], 0)
    assert not run.round(2).folder.exists()


@pytest.mark.slow
def test_the_lineage_tells_of_every_clip_what_became_of_it(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=6)
    clips, inputs = parts_of(config)
    unlabeled = np.flatnonzero(~clips.labeled)
    for mask in inputs.mask:
        mask[unlabeled[0]] = False
    told = rounds_of(config, clips, inputs)
    run = Run(config.run.folder)
    rows = pq.read_table(run.round(1).pseudo_label_log).to_pylist()
    assert [(row["fold"], row["name"]) for row in rows] == [
        (fold, clips.names[row]) for fold in range(3) for row in unlabeled
    ]
    for row in rows:
        assert row["selected"] == (row["reason"] == "") == (row["weight"] > 0)
        assert row["models"] == f"fold-{row['fold']}/seed-0 fold-{row['fold']}/seed-1"
        shares = [row[f"p_{label}"] for label in clips.labels]
        assert row["pseudo_label"] == clips.labels[int(np.argmax(shares))]
        assert not row["selected"] or max(shares) >= row["threshold"] >= config.self_train.confidence
    assert {row["reason"] for row in rows if row["name"] == clips.names[unlabeled[0]]} == {"no modality"}
    # A clip of which nothing is known gets the shares of the labels.
    assert np.allclose(told[1].probability[unlabeled[0]], 1 / 3, atol=0.02)
    curves = files.read_json(run.round(1).curves)["folds"]
    assert [len(curve["train_loss"]) for curve in curves] == [6, 6, 6]
    assert (np.array([curve["train_loss"] for curve in curves])[:, [0, -1]] @ [1, -1] > 0).all()


@pytest.mark.slow
def test_an_unlabelled_clip_gets_the_mean_of_all_folds_models(tmp_path):
    config, truth = fusion_run.make(tmp_path, rounds=0, epochs=20)
    clips, inputs = parts_of(config)
    (told,) = rounds_of(config, clips, inputs)
    every = CrossFittedRound.load(Run(config.run.folder), 0).fold_predictions
    assert np.allclose(told.probability[~clips.labeled], every.mean(0), atol=1e-6)
    assert told.fold.tolist() == clips.fold.tolist()
    assert metrics.waf(truth[:90], told.answer[clips.labeled]) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("clear", "best"), [(True, 0.0), (False, 0.9)])
def test_clips_that_say_nothing_get_more_dropout_than_clips_that_say_much(tmp_path, clear, best):
    config, _ = fusion_run.make(tmp_path, rounds=0, epochs=15)
    config = with_values(config, **{"fuse.dropout": [0.0, 0.9]})
    clips, inputs = parts_of(config)
    if not clear:
        inputs.values = [torch.randn(values.shape) for values in inputs.values]
    self_train(config, clips, Recipe(""), lambda: inputs)
    assert CrossFittedRound.load(Run(config.run.folder), 0).dropout.tolist() == [best] * 3


@pytest.mark.slow
def test_with_two_folds_or_no_unlabelled_clip_it_still_runs(tmp_path):
    config, _ = fusion_run.make(tmp_path / "two", rounds=1, epochs=1)
    config = with_values(config, **{"folds.count": 2})
    assert len(rounds_of(config, *parts_of(config))) == 2
    config, _ = fusion_run.make(tmp_path / "none", rounds=1, epochs=1, unlabeled=0)
    assert len(rounds_of(config, *parts_of(config))) == 1


@pytest.mark.slow
def test_each_rule_runs_without_unlabelled_clips_and_with_one_modality(tmp_path):
    for rule in ("threshold", "precision"):
        for start in ("scratch", "warm"):
            config, _ = fusion_run.make(tmp_path / f"none-{rule}-{start}", rounds=1, epochs=1, unlabeled=0)
            assert len(rounds_of(easy(config, rule=rule, start=start), *parts_of(config))) == 1
            config, _ = fusion_run.make(tmp_path / f"one-{rule}-{start}", rounds=1, epochs=1)
            config = with_values(config, **{"fuse.sets": ["line"]})
            assert len(rounds_of(easy(config, rule=rule, start=start), *parts_of(config))) == 2


@pytest.mark.slow
def test_thresholds_cannot_be_learned_with_two_folds_and_it_is_said_before_any_training(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=1)
    config = with_values(config, **{"folds.count": 2, "self_train.rule": "precision"})
    with pytest.raises(UserError, match="folds.count must be at least 3; it is 2"):
        rounds_of(config, *parts_of(config))
    config = with_values(config, **{"self_train.rule": "threshold"})
    assert len(rounds_of(config, *parts_of(config))) == 2


@pytest.mark.slow
def test_where_no_threshold_is_precise_enough_the_round_says_so_and_takes_nothing(tmp_path, caplog):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=1)[0], rule="precision", precision=0.99)
    caplog.set_level("WARNING", "mer_dist")
    assert len(rounds_of(config, *parts_of(config))) == 2
    rows = pq.read_table(Run(config.run.folder).round(1).pseudo_label_log).to_pylist()
    assert {(row["selected"], row["threshold"]) for row in rows} == {(False, None)}
    assert {row["reason"] for row in rows} == {"no threshold is precise enough for its class"}
    assert (
        "no clip is taken by self_train.rule precision (no threshold is precise enough for its class)"
        in caplog.text
    )


@pytest.mark.slow
def test_a_warm_round_goes_on_from_the_models_of_the_round_before(tmp_path):
    config = easy(fusion_run.make(tmp_path, rounds=1, epochs=1)[0], start="warm")
    clips, inputs = parts_of(config)
    config = with_values(config, **{"fuse.learning_rate": 1e-9})  # all but none
    warm = rounds_of(config, clips, inputs)
    assert np.allclose(warm[0].probability, warm[1].probability, atol=1e-6)
    config = with_values(config, **{"self_train.start": "scratch"})
    scratch = rounds_of(config, clips, inputs)
    assert np.abs(scratch[0].probability - scratch[1].probability).max() > 0.01


@pytest.mark.slow
def test_an_interruption_between_warm_rounds_changes_nothing(tmp_path):
    config = easy(fusion_run.make(tmp_path, rounds=2, epochs=2)[0], start="warm", rule="precision")
    clips, inputs = parts_of(config)
    run, whole = Run(config.run.folder), rounds_of(config, clips, inputs)
    (run.round(2).folder / "complete.json").unlink()
    (run.round(1).folder / "complete.json").unlink()
    again = rounds_of(config, clips, inputs)
    assert all(np.array_equal(a.probability, b.probability) for a, b in zip(whole, again, strict=True))
    shutil.copy(run.round(0).models, run.round(1).folder)
    (run.round(2).folder / "complete.json").unlink()
    last = rounds_of(config, clips, inputs)[2]
    assert not np.array_equal(last.probability, whole[2].probability), "it starts from round 1"


@pytest.mark.slow
def test_the_saved_models_of_a_round_give_its_predictions_again(tmp_path):
    config, _ = fusion_run.make(tmp_path, rounds=1, epochs=2)
    clips, inputs = parts_of(config)
    rounds_of(config, clips, inputs)
    folder = Run(config.run.folder).round(1).folder
    with safe_open(folder / "models.safetensors", "pt") as file:
        members = file.metadata()["members"].split()
        state = {name: file.get_tensor(name) for name in file.keys()}
    assert members == [f"fold-{fold}/seed-{seed}" for fold in range(3) for seed in range(2)]
    model = build(inputs, len(clips.labels), config.fuse, [0] * len(members))
    model.load_state_dict(state)
    unlabeled = torch.from_numpy(np.flatnonzero(~clips.labeled))
    told = ensemble.predict(model.eval(), inputs, unlabeled).double().exp().reshape(3, 2, -1, 3).mean(1)
    assert np.allclose(told, CrossFittedRound.load(Run(config.run.folder), 1).fold_predictions, atol=1e-6)


@pytest.mark.slow
def test_rounds_end_when_the_waf_no_longer_rises_and_a_relaunch_does_nothing(tmp_path):
    config = easy(fusion_run.make(tmp_path, rounds=4, epochs=6)[0])
    clips, inputs = parts_of(config)
    run, every = Run(config.run.folder), rounds_of(config, clips, inputs)
    wafs = [metrics.waf(clips.truth[clips.labeled], told.answer[clips.labeled]) for told in every]
    assert wafs == [files.read_marker(run.round(number).folder)["oof_waf"] for number in range(5)]
    for patience in (1, 2):
        stop = next(
            number
            for number in range(patience, 5)
            if max(wafs[number - patience + 1 : number + 1]) <= max(wafs[: number - patience + 1])
        )
        config = with_values(config, **{"self_train.patience": patience})
        left = rounds_of(config, clips, inputs)
        assert len(left) == stop + 1 < 5 and not run.round(stop + 1).folder.exists()
        last = self_train(config, clips, Recipe(""), lambda: pytest.fail("there was nothing to do"))
        assert last.fingerprint == files.read_marker(run.round(stop).folder)["fingerprint"]
        config = with_values(config, **{"self_train.patience": 0})
        again = rounds_of(config, clips, inputs)
        assert all(np.array_equal(a.probability, b.probability) for a, b in zip(every, again, strict=True))


@pytest.mark.slow
def test_every_answer_is_reproduced_by_one_command_from_the_run_folder(tmp_path):
    fusion_run.make(tmp_path)
    config = fusion_run.configure(
        tmp_path,
        3,
        2,
        (
            "self_train.rule=precision",
            "self_train.precision=0.5",
            "self_train.confidence=0.4",
            "self_train.start=warm",
            "self_train.patience=2",
        ),
    )
    run = Run(config.run.folder)

    def made():
        assert cli.main(["fuse", str(run.config)]) == 0
        return run.answer.read_bytes(), {path: path.read_bytes() for path in predictions.all_of(run)}

    first = made()
    for folder in (run.linear_probes.folder, run.folder / "rounds", run.vote.folder):
        shutil.rmtree(folder)
    for path in (run.answer, run.folds):
        path.unlink()
    assert len(first[1]) >= 6 and made() == first


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("self_train.rule=best", "self_train.rule is 'best'"),
        ("self_train.start=cold", "self_train.start is 'cold'"),
        ("self_train.precision=1.0", "self_train.precision is 1.0"),
        ("self_train.patience=-1", "self_train.patience is -1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path, override, words):
    with pytest.raises(UserError, match=words):
        fusion_run.configure(tmp_path, overrides=(override,))
