"""The fuse stage on feature sets of generated and of real clips."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time

import fusion_run
import numpy as np
import pytest
from conftest import ROOT

from mer_dist.config.config import Config, load
from mer_dist.config.section import with_values
from mer_dist.config.sections import FuseConfig, RunConfig
from mer_dist.core import metrics
from mer_dist.core.errors import REQUEUE, Stopped, UserError
from mer_dist.core.records import Problem
from mer_dist.features import join, store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import predictions, recipes
from mer_dist.stages import fuse as stage
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files, quarantine, timings
from mer_dist.storage.run_folder import Run


def fused(config) -> dict[str, predictions.Predictions]:
    fuse(config)
    run = Run(config.run.folder)
    return {told.title: told for told in map(predictions.read, predictions.all_of(run))}


@pytest.mark.slow
def test_each_step_of_the_recipe_leaves_its_predictions_and_fusion_beats_one_modality(tmp_path):
    config, truth = fusion_run.make(tmp_path, epochs=25, rounds=1, unlabeled=200)
    told = fused(config)
    assert list(told) == [
        "video alone (face)",
        "text alone (line)",
        "audio alone (voice)",
        "all sets (logistic regression)",
        "stacked sets (logistic regression)",
        "AGT",
        "AGT + self-training round 1",
        "prior-aware vote",
    ]
    waf = {title: metrics.waf(truth[90:], one.answer[~one.labeled]) for title, one in told.items()}
    assert min(waf["AGT"], waf["prior-aware vote"]) > max(list(waf.values())[:3]) + 0.05
    run = Run(config.run.folder)
    with open(run.answer, newline="", encoding="utf-8") as file:
        answers = {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    assert answers == {
        name: label for name, label in told["prior-aware vote"].answers().items() if name >= "clip_0090"
    }
    assert all(np.allclose(one.probability.sum(1), 1, atol=1e-5) for one in told.values())
    marks = [
        files.read_marker(one.folder) for one in (run.linear_probes, run.round(0), run.round(1), run.vote)
    ]
    assert all(mark["clips"] == 290 for mark in marks)
    spent = timings.by_part(run)
    assert spent.keys() == {"linear_probes", "rounds/00", "rounds/01", "vote"}
    assert spent["linear_probes"].clips == 5 * 290 and spent["rounds/01"].clips == 290


@pytest.mark.slow
def test_a_second_call_does_nothing_and_a_changed_set_only_what_follows_from_it(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=1)
    run = Run(config.run.folder)
    made = [
        run.linear_probes.predictions("face"),
        run.linear_probes.predictions("voice"),
        run.round(0).folder / "complete.json",
        run.round(1).folder / "complete.json",
        run.vote.folder / "complete.json",
        run.answer,
    ]

    def changed():
        before = [files.size_and_mtime(path) for path in made]
        fuse(config)
        return [path for path, old in zip(made, before, strict=True) if files.size_and_mtime(path) != old]

    assert changed() == made
    assert changed() == []
    config = with_values(config, **{"vote.kind": "hard"})
    run.answer.write_text("name,discrete\n")
    assert changed() == made[4:]
    shard = store.load(run.features("face"))
    store.write_shard(run.features("face") / "00000.safetensors", shard, "2")
    assert changed() == [made[0], *made[2:-1]], "the same vectors give the same answer"
    run.answer.unlink()
    assert changed() == made[5:]
    run.vote.prior.unlink()
    assert [one.part for one in recipes.stale(config, run)] == ["vote"]
    assert made[4] in changed() and run.vote.prior.exists()


def test_a_set_without_any_unlabelled_clip_is_told(tmp_path, caplog):
    config, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    run = Run(config.run.folder)
    clips, _ = join.read_clips(config, run)
    whole = store.load(run.features("voice"))
    store.write_shard(run.features("voice") / "00000.safetensors", whole.only(set(clips.fold_of)), "2")
    join.read_set(run, "voice", clips)
    assert "features voice: none of the 6 unlabelled clips has any" in caplog.text
    caplog.clear()
    join.read_set(run, "face", clips)
    assert "has any" not in caplog.text


@pytest.mark.slow
def test_a_clip_without_any_feature_still_has_a_row_and_an_answer(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=2)
    run = Run(config.run.folder)
    names = fusion_run.names(210)
    for name in config.fuse.sets:
        gone = {names[0], names[-1]} | ({names[1], names[-2]} if name == "voice" else set())
        shard = store.load(run.features(name)).only(set(names) - gone)
        store.write_shard(run.features(name) / "00000.safetensors", shard, "2")
    for told in fused(config).values():
        assert told.names == names and np.isfinite(told.probability).all()
    assert names[-1] in run.answer.read_text()


@pytest.mark.slow
def test_values_that_are_no_numbers_go_to_quarantine_and_stay_there(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=1)
    run = Run(config.run.folder)
    shard = store.load(run.features("line"))
    shard.utterance[4, 2] = np.nan
    store.write_shard(run.features("line") / "00000.safetensors", shard, "2")
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text() + "clip_x,joyful\n")
    for _ in range(2):
        fuse(config)
        found = {(row.stage, row.name, row.lost) for row in quarantine.read(run.quarantine)}
        assert found == {("fuse", "clip_0004", "text"), ("fuse", "clip_x", "clip")}


@pytest.mark.slow
def test_what_was_found_wrong_outlives_an_interruption(tmp_path, monkeypatch):
    config, _ = fusion_run.make(tmp_path, epochs=1, rounds=0)
    run = Run(config.run.folder)
    shard = store.load(run.features("line"))
    shard.utterance[4, 2] = np.nan
    store.write_shard(run.features("line") / "00000.safetensors", shard, "2")

    def stop(*_):
        raise Stopped("asked to stop")

    with monkeypatch.context() as patch:
        patch.setattr("mer_dist.fusion.self_training.self_train", stop)
        with pytest.raises(Stopped):
            fuse(config)
    fuse(config)
    assert [(row.name, row.lost) for row in quarantine.read(run.quarantine)] == [("clip_0004", "text")]


def test_what_is_known_of_an_unread_set_stays_whatever_its_reason_says(tmp_path):
    config = Config(run=RunConfig(folder=str(tmp_path)), fuse=FuseConfig(sets=["voice", "line", "line2"]))
    run = Run(tmp_path)
    rows = [
        Problem(stage="fuse", name=name, lost=lost, reason="told in other words", part=part)
        for name, lost, part in (
            ("a", "audio", "voice"),
            ("b", "text", "line"),
            ("c", "text", "fused no more"),
            ("of an earlier version", "text", ""),
            ("of its labels", "clip", ""),
        )
    ]
    quarantine.replace(run.quarantine, "fuse", rows)
    sets = stage._Sets(config, run, None, [], problems={"voice": []})
    sets.note()
    assert [row.name for row in quarantine.read(run.quarantine)] == ["b", "of an earlier version"]
    sets.problems |= {"line": [], "line2": rows[1:2]}
    sets.note()
    assert quarantine.read(run.quarantine) == rows[1:2]


@pytest.mark.slow
def test_rows_of_the_label_file_that_cannot_be_used_are_told_with_the_reason(tmp_path, caplog):
    config, _ = fusion_run.make(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace("angry", "bored", 2))
    fuse(config)
    assert "2 rows cannot be used and are left out" in caplog.text and "line 3: label 'bored'" in caplog.text
    assert len(quarantine.read(Run(config.run.folder).quarantine)) == 2


@pytest.mark.slow
def test_ctrl_c_ends_it_in_the_middle_of_a_round_and_the_next_call_goes_on(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=1000)
    run = Run(config.run.folder)
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "mer_dist", "fuse", run.config], stderr=said)
    while "linear probes:" not in (tmp_path / "said").read_text() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == REQUEUE and "stopped: asked to stop in AGT" in (tmp_path / "said").read_text()
    assert not run.answer.exists() and not run.round(0).folder.exists()
    config = with_values(config, **{"fuse.epochs": 3})
    fuse(config)
    assert run.answer.exists()


@pytest.mark.slow
def test_sets_that_have_no_clip_in_common_are_refused(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=1, rounds=0)
    config = with_values(config, **{"fuse.sets": ["voice", "face"]})
    run, names = Run(config.run.folder), fusion_run.names(210)
    for name, own in (("voice", set(names[::2])), ("face", set(names[1::2]))):
        shard = store.load(run.features(name)).only(own)
        store.write_shard(run.features(name) / "00000.safetensors", shard, "2")
    with pytest.raises(UserError, match="no clip has more than one of them"):
        fuse(config)


@pytest.mark.slow
def test_one_modality_without_the_guide_can_be_fused(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=2)
    config = with_values(config, **{"fuse.sets": ["line"]})
    assert "AGT" in fused(config)


@pytest.mark.slow
def test_sets_of_different_clips_are_joined_by_name_and_what_is_missing_is_counted(tmp_path, caplog):
    config, truth = fusion_run.make(tmp_path, epochs=20, rounds=0)
    run, names = Run(config.run.folder), fusion_run.names(210)
    for name, part in (("voice", slice(0, 150)), ("face", slice(60, 210))):
        shard = store.load(run.features(name)).only(set(names[part]))
        store.write_shard(run.features(name) / "00000.safetensors", shard, "2")
    with caplog.at_level("INFO", logger="mer_dist"):
        told = fused(config)["AGT"]
    assert "features voice: 60 of 210 clips have none" in caplog.text
    assert "features face: 60 of 210 clips have none" in caplog.text
    assert told.names == names and metrics.waf(truth[90:], told.answer[90:]) > 0.6
    fusion_run.write_set(run, "face", "video", ["other_1", "other_2"], np.zeros((2, 12)), "3")
    with pytest.raises(UserError, match="features face: none of its 2 clips"):
        fuse(config)


@pytest.mark.slow
def test_without_unlabelled_clips_there_are_predictions_and_an_empty_answer(tmp_path):
    config, truth = fusion_run.make(tmp_path, epochs=20, rounds=2, unlabeled=0)
    told = fused(config)
    assert list(told)[-2:] == ["AGT", "prior-aware vote"]
    assert metrics.waf(truth, told["prior-aware vote"].answer) > 0.6
    assert Run(config.run.folder).answer.read_text() == "name,discrete\n"


def with_frames(config: Config) -> Config:
    """One to eight frames a clip, each the clip's own vector, of which four tokens are fused."""
    run, names, random = Run(config.run.folder), fusion_run.names(210), np.random.default_rng(0)
    lengths = random.integers(1, 9, len(names))
    for name in config.fuse.sets:
        own = store.load(run.features(name))
        frame = np.repeat(own.utterance, lengths, 0)
        shard = FeatureSet(
            modality=own.modality,
            names=names,
            utterance=own.utterance,
            frame=frame,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
        )
        store.write_shard(run.features(name) / "00000.safetensors", shard, "2")
    return with_values(config, **{"fuse.level": "frame", "fuse.tokens": 4})


@pytest.mark.slow
def test_frames_are_fused_as_tokens(tmp_path):
    config = with_frames(fusion_run.make(tmp_path, epochs=2, rounds=0)[0])
    assert np.isfinite(fused(config)["AGT"].probability).all()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["utterance", "frame"])
def test_large_sets_are_kept_in_half_precision_and_say_what_they_say_in_single(tmp_path, monkeypatch, level):
    inputs, told = {}, {}
    for kind, bytes_of_large in (("single", 2**40), ("half", 0)):
        config, _ = fusion_run.make(tmp_path / kind, epochs=3, rounds=0)
        if level == "frame":
            config = with_frames(config)
        monkeypatch.setattr(stage, "LARGE", bytes_of_large)
        clips, _ = join.read_clips(config, Run(config.run.folder))
        sets = stage._Sets(config, Run(config.run.folder), clips, [])
        inputs[kind] = stage._inputs(config, sets, join.fused_sets(config))
        told[kind] = fused(config)["AGT"].probability
    for single, half in zip(inputs["single"].values, inputs["half"].values, strict=True):
        assert (str(single.dtype), str(half.dtype)) == ("torch.float32", "torch.float16")
        assert single.shape == half.shape and 0 < (single - half.float()).abs().max() < 2e-3
    assert 0 < np.abs(told["single"] - told["half"]).max() < 0.01


def test_what_cannot_be_fused_is_refused_with_a_clear_word(tmp_path):
    config, _ = fusion_run.make(tmp_path, epochs=1)
    with pytest.raises(UserError, match="features voice have no frame level.*fuse.level=utterance"):
        fuse(with_values(config, **{"fuse.level": "frame", "fuse.tokens": 4}))
    config = with_values(config, **{"fuse.sets": ["voice", "nothing"]})
    with pytest.raises(UserError, match="nothing: no feature set there"):
        fuse(config)
    (tmp_path / "labels.csv").write_text("name,label\nclip_0000,joyful\nclip_0001,\n")
    with pytest.raises(UserError, match="no clip has one of the labels"):
        fuse(config)
    (tmp_path / "labels.csv").write_text("name,label\nclip_0000,happy\nclip_0001,\n")
    with pytest.raises(UserError, match="every labelled clip is happy"):
        fuse(config)
    (tmp_path / "labels.csv").write_text("name,label\nclip_0000,happy\nclip_0001,angry\n")
    with pytest.raises(UserError, match="these labels have fewer clips: .* add clips of them"):
        fuse(config)


@pytest.mark.slow
def test_real_features_that_nobody_here_made_are_imported_and_fused(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import mosi

    data = tmp_path / "part"
    data.mkdir()
    lines = {
        name: (shared / "data" / "cmu-mosi" / f"{name}_test.csv").read_text("utf-8").splitlines()
        for name in ("names", *mosi.MODALITIES)
    }
    header = lines["names"].pop(0)
    videos = [line.split(",")[0].rpartition("_")[0] for line in lines["names"]]
    some = set(sorted(set(videos))[::2])
    for name, rows in lines.items():
        kept = [row for row, video in zip(rows, videos, strict=True) if video in some]
        files.write_text(data / f"{name}_test.csv", "\n".join([header] * (name == "names") + kept) + "\n")
    mosi.convert(data, tmp_path / "run")
    config = mosi.prepare(tmp_path / "run", overrides=("fuse.epochs=4", "fuse.seeds=1", "fuse.width=32"))
    told = fused(config)
    clips, _ = join.read_clips(config, Run(config.run.folder))
    fold_of_video = {(name.rpartition("_")[0], fold) for name, fold in clips.fold_of.items()}
    assert len(clips.names) > 300 and len(fold_of_video) == len({video for video, _ in fold_of_video})
    waf = {title: metrics.waf(clips.truth, one.answer) for title, one in told.items()}
    assert waf["text alone (text)"] > 0.65 and waf["prior-aware vote"] > 0.6
    assert load(tmp_path / "run" / "config.yaml") == config


def test_a_stage_called_by_another_program_leaves_its_signals_alone_and_stops_when_it_is_asked(tmp_path):
    config, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6, epochs=1, rounds=0)
    before, seen = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], []

    def should_stop() -> bool:
        seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
        return len(seen) == 3

    with pytest.raises(Stopped):
        fuse(config, should_stop)
    assert seen == [before] * 3 and not Run(config.run.folder).answer.exists()
