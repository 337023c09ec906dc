"""Nested cross-validation, and what cross-fitted models predict on disk: one of each for all that is fused."""

from __future__ import annotations

from itertools import combinations

import fusion_run
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mer_dist.core.errors import UserError
from mer_dist.features.join import Clips
from mer_dist.fusion import nested
from mer_dist.fusion.cross_fitted import CrossFitted, CrossFittedRound
from mer_dist.fusion.predictions import Predictions
from mer_dist.storage.run_folder import Run

OPTIONS = np.array([0.1, 0.4])


def clips_of(folds: int = 3, labeled: int = 12, unlabeled: int = 4) -> Clips:
    rows = np.arange(labeled + unlabeled)
    return Clips(
        labels=fusion_run.LABELS,
        names=fusion_run.names(len(rows)),
        truth=np.where(rows < labeled, rows % 3, -1),
        folds=folds,
        fold=np.where(rows < labeled, rows // 3 % folds, -1),
    )


def predicted(clips: Clips, good: dict[int, int], rows: np.ndarray):
    """For fold k the option ``good[k]`` is right; another says another label. Pairs stand in the numbers."""
    for pair in combinations(range(clips.folds), 2):
        for option in range(len(OPTIONS)):
            p = np.full((len(rows), 3), 0.1)
            for place, row in enumerate(rows):
                held_out_fold = sum(pair) - clips.fold[row]
                right = good.get(held_out_fold) == option
                p[place, (clips.truth[row] + (not right)) % 3] = 0.8
            yield option, pair, rows, p


def test_each_fold_takes_the_option_that_is_best_on_the_other_folds_and_its_predictions():
    clips, rows = clips_of(), np.arange(11)  # of the last clip nothing is predicted
    chosen, oof = nested.select(clips, len(OPTIONS), predicted(clips, {0: 1, 1: 0, 2: 1}, rows), 1)
    assert chosen.tolist() == [1, 0, 1]
    assert oof.shape == (3, 12, 3) and oof.dtype == np.float32
    fold = clips.fold[:12]
    for held_out_fold in range(3):
        missing = (fold == held_out_fold) | (np.arange(12) == 11)
        assert np.array_equal(np.isnan(oof[held_out_fold]).all(1), missing)
        assert np.array_equal(oof[held_out_fold, ~missing].argmax(1), clips.truth[:12][~missing])


def test_only_clips_that_are_scored_decide():
    clips, rows = clips_of(), np.arange(12)
    told = [*predicted(clips, {0: 0, 1: 0, 2: 0}, rows)]
    some = np.arange(12) % 4 == 0
    for option, *_, p in told:
        p[some] = np.where(np.eye(3)[clips.truth[:12][some]], 0.98 if option else 0.3, 0.01)
    assert nested.select(clips, len(OPTIONS), told, 1)[0].tolist() == [0] * 3
    assert nested.select(clips, len(OPTIONS), told, 0, scored=some)[0].tolist() == [1] * 3


def test_by_another_loss_another_option_may_be_best():
    """Option 0 is right more often, option 1 surer of what it says."""
    clips, rows = clips_of(), np.arange(12)
    told = [*predicted(clips, {0: 0, 1: 0, 2: 0}, rows)]
    for option, _, _, p in told:
        right = np.eye(3, dtype=bool)[clips.truth[:12]]
        few = (np.arange(12) % 6 > 0)[:, None]
        p[:] = np.where(right, 0.36, 0.32) if option == 0 else np.where(right == few, 0.45, 0.1)
        p[:] /= p.sum(1, keepdims=True)
    assert nested.select(clips, 2, told, 0)[0].tolist() == [1] * 3
    assert nested.select(clips, 2, told, 1, loss=nested.waf_loss)[0].tolist() == [0] * 3


@pytest.mark.parametrize("folds", [2, 3])
def test_without_a_model_that_left_out_two_folds_the_default_is_taken(folds):
    chosen, oof = nested.select(clips_of(folds), len(OPTIONS), [], 1)
    assert chosen.tolist() == [1] * folds and np.isnan(oof).all()


def rounds_of(run: Run) -> list[CrossFittedRound]:
    """Two, written."""
    clips, random, made = clips_of(), np.random.default_rng(0), []
    nested_oof, dropout = random.random((3, 12, 3)).astype(np.float32), np.array([0.1, 0.2, 0.3])
    for number in range(2):
        oof = Predictions.of(clips, f"round {number}", random.dirichlet([1, 1, 1], 16))
        made.append(
            CrossFittedRound(
                number=number,
                oof=oof,
                nested_oof=nested_oof,
                fold_predictions=random.random((3, 4, 3)).astype(np.float32),
                present=np.arange(16) % 5 > 0,
                dropout=dropout,
            )
        )
        run.round(number).folder.mkdir(parents=True)
        made[-1].save(run.round(number))
    return made


def equal(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype.kind == other.dtype.kind and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    if isinstance(one, Predictions | CrossFitted | CrossFittedRound):
        return all(equal(value, vars(other)[name]) for name, value in vars(one).items())
    return one == other


def test_what_is_saved_is_loaded_and_later_rounds_have_the_nested_predictions_of_the_first(tmp_path):
    run = Run(tmp_path)
    made = rounds_of(run)
    for number, one in enumerate(made):
        assert equal(one, CrossFittedRound.load(run, number))
    kept = [load_file(run.round(number).fold_predictions).keys() for number in range(2)]
    assert kept == [{"nested_oof", "dropout", "probability", "present"}, {"probability", "present"}]
    baseline = CrossFitted(oof=made[0].oof, nested_oof=made[0].nested_oof, name="voice")
    baseline.save(run, "voice")
    assert equal(baseline, CrossFitted.load(run, "voice"))
    assert not equal(baseline, CrossFitted(oof=made[1].oof, nested_oof=made[0].nested_oof))


def test_a_file_that_is_damaged_or_lacks_an_array_is_named(tmp_path):
    run = Run(tmp_path)
    rounds_of(run)[0].save(run.round(0))
    tensors = {"probability": np.zeros(3), "present": np.zeros(3, np.uint8)}
    save_file(tensors, run.round(0).fold_predictions)
    for number in range(2):
        with pytest.raises(
            UserError, match=r"rounds/00/fold_predictions.safetensors.*delete its folder and run fuse"
        ):
            CrossFittedRound.load(run, number)
    run.linear_probes.folder.mkdir()
    run.linear_probes.arrays("voice").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"linear_probes/voice.safetensors.*delete its folder and run fuse"):
        CrossFitted.load(run, "voice")
