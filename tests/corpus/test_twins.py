"""Clips of several names that are one recording are told, and stay in one fold."""

import json
import os
import shutil

import numpy as np
import pytest
from media_files import ramp, remuxed, tone, write_csv, write_mp4

from mer_dist.config.config import Config
from mer_dist.config.sections import CorpusConfig, FoldConfig, RunConfig, ShardConfig
from mer_dist.core.records import Clip, Content
from mer_dist.corpus import twins
from mer_dist.crossfit import folds
from mer_dist.shards import shard_index
from mer_dist.stages.shard import shard
from mer_dist.storage.run_folder import Run


def job(folder, table, folds: int) -> Config:
    return Config(
        run=RunConfig(folder=f"{folder}/run"),
        corpus=CorpusConfig(path=str(table), format="manifest", labels=["calm", "tense"]),
        shard=ShardConfig(frames=4, image_size=32, faces="none", workers=1),
        folds=FoldConfig(count=folds),
    )


@pytest.mark.slow
def test_one_recording_under_several_names_is_told_and_stays_in_one_fold(tmp_path, caplog):
    for name, level in (("a", 30), ("b", 90), ("c", 150), ("d", 210)):
        write_mp4(tmp_path / f"{name}.mp4", np.full((5, 48, 48, 3), level, np.uint8))
    shutil.copy(tmp_path / "b.mp4", tmp_path / "copy of b.mp4")
    os.symlink(tmp_path / "c.mp4", tmp_path / "link to c.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"nothing of it")
    rows = [
        ["a1", "a.mp4", "", "x", "calm", ""],
        ["a2", "a.mp4", "", "x", "tense", ""],
        ["b1", "b.mp4", "", "x", "calm", ""],
        ["b2", "copy of b.mp4", "", "x", "calm", ""],
        ["c1", "c.mp4", "", "x", "tense", ""],
        ["c2", "link to c.mp4", "", "x", "", ""],
        ["d1", "d.mp4", "", "x", "tense", ""],
        ["e1", "broken.mp4", "", "x", "tense", ""],
        ["e2", "broken.mp4", "", "x", "", ""],
    ]
    header = ["name", "video", "audio", "transcript", "label", "split"]
    table = write_csv(tmp_path / "all.csv", [header, *rows])
    config = job(tmp_path, table, folds=3)
    shard(config)
    run = Run(tmp_path / "run")
    groups = [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
    assert shard_index.twins(run.shards) == groups
    stats = json.loads((run.shards / "stats.json").read_text())
    assert stats["remarks"][twins.SAME]["names"] == ["b1", "b2", "c1", "c2"]
    assert stats["remarks"][twins.DIFFERENT]["names"] == ["a1", "a2"]
    said = "6 clips are 3 recordings under several names, 1 of them with different labels, as a1 (calm) and a2 (ten"
    assert said in caplog.text
    labels = {row.name: row.label for row in shard_index.read(run.shards) if row.label}
    fold_of = folds.of_run(config, labels)
    assert fold_of["a1"] == fold_of["a2"] and fold_of["b1"] == fold_of["b2"] and len({*fold_of.values()}) == 3
    # What an earlier version made is looked at once more, and stays.
    tars = {path.name: path.stat().st_mtime_ns for path in run.shards.glob("*.tar")}
    (run.shards / "twins.json").unlink()
    shard(config)
    assert shard_index.twins(run.shards) == groups
    assert tars == {path.name: path.stat().st_mtime_ns for path in run.shards.glob("*.tar")}


def test_a_picture_that_stands_for_many_and_empty_files_are_no_twins(tmp_path):
    for name, content in (("face.jpg", b"face"), ("1.wav", b"one"), ("2.wav", b"two"), ("3.wav", b"one")):
        (tmp_path / name).write_bytes(content)
    for name in ("0.wav", "00.wav"):
        (tmp_path / name).write_bytes(b"")

    def clip(name, video, audio):
        video, audio = (part and tmp_path / part for part in (video, audio))
        return Clip(name=name, video=video, audio=audio, transcript=None, label=None, split="unlabeled")

    clips = [clip("a", "face.jpg", "1.wav"), clip("b", "face.jpg", "2.wav"), clip("c", "face.jpg", "3.wav")]
    clips += [
        clip("d", None, "0.wav"),
        clip("e", None, "00.wav"),
        clip("f", None, None),
        clip("g", None, "no.wav"),
    ]
    assert twins.find(clips) == [["a", "c"]] and twins.find(clips, copies=False) == []
    clips += [clip("h", "1.wav", "1.wav"), clip("i", None, "3.wav")]
    assert twins.find(clips) == [["a", "c", "h", "i"]], "their sound is one"


def test_two_cameras_on_one_speaker_are_one_recording_and_a_sound_that_stands_for_none_is_not(tmp_path):
    for name in ("mic0.wav", "mic1.wav", "silence.wav", *(f"{number}.mp4" for number in range(20))):
        (tmp_path / name).write_bytes(name.encode())

    def clip(name, video, audio):
        return Clip(
            name=name,
            video=tmp_path / video,
            audio=tmp_path / audio,
            transcript=None,
            label=None,
            split="unlabeled",
        )

    views = [
        clip("left", "0.mp4", "mic0.wav"),
        clip("right", "1.mp4", "mic0.wav"),
        clip("other", "2.mp4", "mic1.wav"),
    ]
    mute = [clip(f"m{number}", f"{number}.mp4", "silence.wav") for number in range(4, 20)]
    assert twins.find([*views, *mute]) == [["left", "right"]]
    mute.append(clip("again", "4.mp4", "silence.wav"))
    assert twins.find([*views, *mute]) == [["again", "m4"], ["left", "right"]]


def content(sound: str = "", pictures: str = "", moving: bool = True) -> Content:
    return Content(sound=sound, pictures=pictures, moving=moving)


def test_clips_whose_stored_sound_or_moving_pictures_are_equal_are_one_recording():
    stored = {
        "mp4": content("s1", "p1"),
        "fast": content("s1", "p2"),
        "mkv": content("s2", "p1"),
        "other length": content("s3", "p1"),
        "portrait a": content("s4", "p3", moving=False),
        "portrait b": content("s5", "p3", moving=False),
        "mute a": content(pictures="p4", moving=False),
        "mute b": content(pictures="p4", moving=False),
        "text": content(),
        "text too": content(),
        **{f"same {number}": content("s6", f"q{number}") for number in range(twins.MOST + 1)},
    }
    samples = dict.fromkeys(stored, 16_000) | {"mkv": 17_000, "other length": 30_000}
    assert twins.of_content(stored, samples) == [["fast", "mkv", "mp4"], ["mute a", "mute b"]]


@pytest.mark.slow
def test_a_copy_in_another_container_is_the_same_recording(tmp_path):
    for number, name in enumerate("abc"):
        frames = ramp(30)[:: -1 if number else 1] // (1 + number)
        write_mp4(tmp_path / f"{name}.mp4", frames, tone(300 + 50 * number, 1.2))
    remuxed(tmp_path / "a.mp4", tmp_path / "a2.mp4", lambda packet, number: True, movflags="faststart")
    remuxed(tmp_path / "b.mp4", tmp_path / "b2.mkv", lambda packet, number: True)
    rows = [
        [path.stem, path.name, "x", "calm" if path.stem[0] == "a" else "tense"]
        for path in tmp_path.glob("*.m*")
    ]
    table = write_csv(tmp_path / "all.csv", [["name", "video", "transcript", "label"], *sorted(rows)])
    config = job(tmp_path, table, folds=2)
    shard(config)
    assert shard_index.twins(Run(tmp_path / "run").shards) == [["a", "a2"], ["b", "b2"]]


@pytest.mark.slow
def test_silence_of_one_length_is_no_recording(tmp_path):
    for number, name in enumerate("ab"):
        write_mp4(tmp_path / f"{name}.mp4", ramp(25)[:: 1 - 2 * number], np.zeros(44_100, np.float32))
    rows = [[name, f"{name}.mp4", "x", label] for name, label in (("a", "calm"), ("b", "tense"))]
    table = write_csv(tmp_path / "all.csv", [["name", "video", "transcript", "label"], *rows])
    shard(job(tmp_path, table, folds=2))
    (record,) = shard_index.all_records(Run(tmp_path / "run").shards).values()
    assert [(own.sound, bool(own.pictures)) for own in record.content.values()] == [("", True)] * 2
    assert shard_index.twins(Run(tmp_path / "run").shards) == []
