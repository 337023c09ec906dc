"""Damaged media files go through the shard stage: each clip is used or in quarantine, and it adds up."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
import soundfile
from conftest import cases
from media_files import ramp, tone, write_csv, write_mp4

from fuzz.mutations import mutate
from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import CorpusConfig, RunConfig, ShardConfig
from mer_dist.inspect.verify import verify
from mer_dist.shards.reader import Reader
from mer_dist.stages.shard import shard
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run

FILES = 12
KINDS = ("mp4", "wav", "jpg")


@functools.cache
def originals(folder: Path) -> dict[str, list[Path]]:
    """Healthy files of each kind, of several encodings; quick, and the same in every process."""
    return {
        "mp4": [
            write_mp4(folder / "a.mp4", ramp(12), tone(440, 0.4)),
            write_mp4(folder / "b.mp4", ramp(12), tone(440, 0.4), faststart=True),
            write_mp4(folder / "c.mp4", ramp(12), tone(440, 0.4), codec="mpeg4"),
        ],
        "wav": [
            _sound(folder / "a.wav", "WAV"),
            _sound(folder / "b.flac", "FLAC"),
            _sound(folder / "c.ogg", "OGG"),
        ],
        "jpg": [_picture(folder / f"a{suffix}") for suffix in (".jpg", ".png", ".bmp")],
    }


def _sound(path: Path, form: str) -> Path:
    soundfile.write(path, tone(300, 0.4, 16_000), 16_000, format=form)
    return path


def _picture(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    cv2.imwrite(str(path), noise)
    return path


def attack(folder: Path, seed: int) -> dict[str, list[str]]:
    """A corpus of ``FILES`` damaged files of each kind, sharded and verified; the outcomes by kind."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    kinds = originals(whole)
    rows, names = [["name", "video", "audio", "transcript", "label", "split"]], {}
    for kind in KINDS:
        for number in range(FILES):
            name = f"{kind}{number:03d}"
            random = Random(f"{seed} {name}")
            original = random.choice(kinds[kind])
            damage, content = mutate(original.read_bytes(), original.suffix, f"{seed} {name}")
            path = folder / f"{name}{random.choice([original.suffix, '.mp4', '.wav'])}"
            if kind == "jpg":
                path = folder / "faces" / name / f"{name}_aligned" / f"0{original.suffix}"
                path.parent.mkdir(parents=True)
            path.write_bytes(content)
            media = {"mp4": [path.name, ""], "wav": ["", path.name], "jpg": ["", "whole/a.wav"]}[kind]
            rows.append([name, *media, random.choice(["", "some words"]), "", "unlabeled"])
            names[name] = f"{kind} {damage}"
    rows.append(["healthy", "whole/a.mp4", "", "words", "happy", "labeled"])
    config = Config(
        run=RunConfig(folder=str(folder / "run")),
        corpus=CorpusConfig(path=str(write_csv(folder / "all.csv", rows)), format="manifest"),
        shard=ShardConfig(
            frames=4, image_size=32, faces="openface", openface=str(folder / "faces"), workers=1
        ),
    )
    run = Run(config.run.folder)
    configuration.save(config, run.config)
    shard(config)
    assert verify(run.folder) == []
    return judged(run, names)


def judged(run: Run, names: dict[str, str]) -> dict[str, list[str]]:
    """What came of each clip; every one that is in the shards can be read there."""
    lost = quarantine.read(run.quarantine)
    assert all(row.reason and "\n" not in row.reason for row in lost), lost
    gone = {row.name for row in lost if row.lost == "clip"}
    reader = Reader(run.shards)
    for row in reader.rows:
        sample = reader.read(row)
        assert len(sample.images()) == row.frames and len(sample.waveform()) == row.samples
        assert len(row.missing) < 3 and (row.samples > 0) == ("audio" not in row.missing)
    assert {row.name for row in reader.rows} | gone == {*names, "healthy"}
    assert not {row.name for row in reader.rows} & gone and "healthy" not in {row.name for row in lost}
    # A clip of pictures has no video but them, and a sound file comes without any.
    parts = {"mp4": ("audio", "video"), "wav": ("audio",), "jpg": ("video",)}
    noted = {(row.name, row.lost.removeprefix("part of ")) for row in lost} | {
        (name, part) for name in gone for part in parts[name[:3]]
    }
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        damaged = any((name, part) in noted for part in parts[name[:3]])
        found[name[:3]].append("quarantine" if damaged else "harmless")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=1, long=14))
def test_a_damaged_media_file_costs_what_does_not_decode_and_no_clip_is_lost(tmp_path, sandbox, count, seed):
    for kind, outcomes in sandbox.call(attack, tmp_path, seed, seconds=300).items():
        assert "quarantine" in outcomes
        count(kind, outcomes)
