"""Clips at the edge of what a model can take, from media files through shards to features."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import media_files
import numpy as np
import pytest
import small_job
import small_models
import soundfile

from mer_dist.config.config import load
from mer_dist.config.section import with_values
from mer_dist.config.sections import FinetuneConfig, LoraConfig
from mer_dist.core.errors import QUARANTINED
from mer_dist.core.log import logger
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.models.tokenizer import BaichuanTokenizer
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard
from mer_dist.storage import quarantine
from mer_dist.storage.files import read_json
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.slow

LINE = "我说第3句话"
#: clip -> seconds of sound, scale of the sound, frames of the video, transcript.
CLIPS = {
    "plain": (0.5, 0.1, 10, LINE),
    "silent": (0.5, 0.0, 10, LINE),
    "blip": (0.01, 0.1, 10, LINE),
    "still": (0.5, 0.1, 1, LINE),
    "mute": (0.5, 0.1, 10, ""),
    "blank": (0.5, 0.1, 10, "  "),
    "speech": (0.5, 0.1, 10, "我" * 4000),
    "lecture": (0.5, 0.1, 10, "话" * 1000),
}
#: Absent on purpose, and so not in quarantine.
WORDLESS = [("mute", "text"), ("blank", "text")]
MODALITY = {"audio": "hubert", "video": "clip", "text": "baichuan"}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    small_models.make(folder / "models", [LINE, "话我" * 9])
    job = folder / "job.yaml"
    job.write_text(small_job.TEXT.format(folder=folder, processes=1), encoding="utf-8")
    rows = [["name", "video", "audio", "transcript", "label", "split"]]
    for name, (seconds, scale, frames, transcript) in CLIPS.items():
        wave = scale * np.random.default_rng(0).normal(0, 1, round(16_000 * seconds))
        soundfile.write(folder / f"{name}.wav", wave, 16_000)
        media_files.write_mp4(folder / f"{name}.mp4", media_files.ramp(frames))
        rows.append([name, f"{name}.mp4", f"{name}.wav", transcript, "happy", "labeled"])
    options = [
        "extractors.clip.finetune=null",
        "extractors.baichuan.finetune=null",
        "shard.clips=3",
        "corpus.format=manifest",
        f"corpus.path={media_files.write_csv(folder / 'clips.csv', rows)}",
        f"run.folder={folder}/odd",
    ]
    shard(load(job, options))
    done = small_job.mer_dist("extract", job, *options)
    config = load(job, options)
    run = Run(config.run.folder)
    return SimpleNamespace(
        code=done.returncode,
        log=done.stderr,
        config=config,
        sets={kind: store.load(run.features(name)) for kind, name in MODALITY.items()},
        lost={(row.name, row.lost): row.reason for row in quarantine.read(run.quarantine)},
    )


def test_only_what_cannot_be_used_is_left_out_and_each_has_a_reason(extracted):
    assert extracted.code == QUARANTINED, extracted.log
    # An empty transcript is no fault; its clip has no vector of text, and none of zeros.
    assert extracted.lost.keys() == {("blip", "audio")}
    assert "160 audio samples" in extracted.lost["blip", "audio"]
    for kind, found in extracted.sets.items():
        missing = {name for name, lost in [*extracted.lost, *WORDLESS] if lost == kind}
        assert set(found.names) == CLIPS.keys() - missing
        assert set(found.missing) == missing


def test_the_features_of_odd_clips_are_finite_and_as_many_as_they_have_parts(extracted):
    for found in extracted.sets.values():
        assert np.isfinite(found.utterance).all() and np.isfinite(found.frame).all()

    def count(kind: str, name: str) -> int:
        found = extracted.sets[kind]
        row = list(found.names).index(name)
        return int(found.offsets[row + 1] - found.offsets[row])

    assert count("video", "still") == 1 and count("video", "plain") == 4
    assert count("audio", "silent") == count("audio", "plain") == 24
    assert count("text", "speech") == count("text", "lecture") == 512


def test_cut_transcripts_are_counted_in_the_log(extracted):
    tokenizer = BaichuanTokenizer.from_pretrained(extracted.config.extractors["baichuan"].path)
    longest = len(tokenizer.encode(CLIPS["speech"][3]))
    assert longest >= 4000
    (line,) = (line for line in extracted.log.splitlines() if "max_tokens" in line)
    assert line.endswith(
        f"2 transcripts were longer than max_tokens 512 and were cut, the longest had {longest}"
    )


@pytest.mark.parametrize("name", ["hubert", "baichuan", "clip"])
def test_fine_tuning_leaves_out_what_cannot_be_fed_and_learns_from_the_rest(
    extracted, name, caplog, monkeypatch
):
    """Every clip is labelled; one that extraction refuses must not end a training either."""
    config = extracted.config
    tuning = FinetuneConfig(
        cross_fit=False,
        epochs=1,
        batch=4,
        micro_batch=2,
        precision="fp32",
        lora=LoraConfig(rank=2),
        validation=0.0,
    )
    own = replace(config.extractors[name], finetune=tuning)
    config = with_values(config, extractors={name: own})
    (planned,) = adapters.planned(config)
    lost = {clip for clip, modality in [*extracted.lost, *WORDLESS] if MODALITY[modality] == name}
    assert {row.name for row in planned.rows} == set(CLIPS) - lost
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level("INFO", logger="mer_dist"):
        finetune(config)
    history = read_json(planned.folder / "history.json")
    (epoch,) = history["epochs"]
    assert np.isfinite(epoch["train_loss"])
    # Nothing is held out, and nothing says that it was.
    assert history["held_out"] == 0
    assert "training clips' WAF" in caplog.text and "held-out" not in caplog.text
