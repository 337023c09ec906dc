"""Stages and results from a program: the same files as by the command line, as arrays."""

from __future__ import annotations

import csv

import fusion_run
import numpy as np
import pytest
import small_job

import mer_dist as md
from mer_dist.features import store
from mer_dist.storage.run_folder import Run


def test_public_names_are_there_and_others_are_not():
    assert {"load", "shard", "finetune", "extract", "fuse", "Run", "FusionClassifier", "Predictor"} <= {
        *md.__all__
    }
    assert {*md.__all__} <= {*dir(md)} and all(hasattr(md, name) for name in md.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        md.train  # noqa: B018


@pytest.mark.slow
def test_fusion_gives_its_answers_and_scores_with_intervals(tmp_path):
    config, truth = fusion_run.make(tmp_path)
    result = md.fuse(md.load(tmp_path / "job.yaml", ["fuse.epochs=2"]))
    with open(Run(config.run.folder).answer, newline="", encoding="utf-8") as file:
        assert result.answers == {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    assert result.probability.shape == (120, 3) and result.oof_probability.shape == (90, 3)
    assert result.names == fusion_run.names(210)[90:] and result.oof_names == fusion_run.names(210)[:90]
    right = (result.oof_probability.argmax(1) == truth[:90]).mean()
    low, high = result.oof_score.interval
    assert low <= result.oof_score.waf <= high and abs(result.oof_score.waf - right) < 0.05
    assert result.oof_scores[-1] == result.oof_score and len(result.oof_scores) == 8
    run = md.Run(config.run.folder)
    assert run.feature_sets == ["face", "line", "voice"] and run.quarantine() == []
    found = run.features("voice")
    assert found.names[:2] == ["clip_0000", "clip_0001"] and found.utterance.shape == (210, fusion_run.WIDTH)
    assert run.result().answers == result.answers and run.config.fuse.epochs == 2
    with pytest.raises(md.UserError, match="no frame level"):
        run.features("voice", frames=True)
    for folder, why in ((tmp_path / "none", "no run there"), (tmp_path, "no run there")):
        with pytest.raises(md.UserError, match=why):
            md.Run(folder)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.processes
def test_the_whole_job_from_python_and_its_predictor(tmp_path):
    """Fine-tuning runs in processes of its own; features of fine-tuned sets are cross-fitted."""
    job = md.load(small_job.make(tmp_path, processes=2), ["vote.prior=none"])
    md.shard(job)
    md.finetune(job)
    md.extract(job)
    result = md.fuse(job)
    assert len(result.answers) == small_job.UNLABELED
    run = md.Run(job.run.folder)
    assert run.feature_sets == ["baichuan", "baichuan@tuned", "clip", "clip@tuned", "hubert"]
    tuned = run.features("clip@tuned", frames=True)
    assert (
        len(tuned.names) == small_job.LABELED + small_job.UNLABELED
        and tuned.ragged()[0].shape[1] == tuned.width
    )
    own = store.load(Run(job.run.folder).features("clip@all"))
    shift, scale = tuned.alignment
    name = result.names[0]
    expected = (own.utterance[own.names.index(name)] - shift) / scale
    assert np.allclose(tuned.utterance[tuned.names.index(name)], expected, atol=1e-5)
    one = md.Predictor.load(job.run.folder)(
        next(tmp_path.glob(f"corpus/*/{name}.mp4")), transcript=f"我说第{small_job.LABELED}句话"
    )
    assert np.abs(np.array([*one.probability.values()]) - result.probability[0]).max() < 1e-4
