"""The shard stage on real files: same bytes always, nothing done twice, every fault accounted for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from media_files import ramp, tone, write_corpus, write_csv, write_mp4

from mer_dist import corpus as listed
from mer_dist.cli import main
from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.section import with_values
from mer_dist.config.sections import CorpusConfig, RunConfig, ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.corpus import texts
from mer_dist.inspect.verify import verify
from mer_dist.shards import replaced, shard_index
from mer_dist.shards.reader import Reader
from mer_dist.stages import shard as stage
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine, timings
from mer_dist.storage.run_folder import Run, ShardFolder


def config_of(run, corpus, **settings) -> Config:
    settings = {"clips": 3, "frames": 4, "image_size": 32, "faces": "none", "workers": 1, **settings}
    return Config(
        run=RunConfig(folder=str(run)), corpus=CorpusConfig(path=str(corpus)), shard=ShardConfig(**settings)
    )


def contents(run) -> dict[str, bytes]:
    """What must be equal: the tars and the manifest."""
    paths = [*sorted((run / "shards").glob("*.tar")), ShardFolder(run / "shards").index]
    return {path.name: path.read_bytes() for path in paths}


def written(run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "shards").iterdir()}


def reasons(run) -> dict[tuple[str, str], str]:
    return {(row.name, row.lost): row.reason for row in quarantine.read(Run(run).quarantine)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), labeled=5, unlabeled=3)


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    """A finished run over 8 clips in 3 shards; tests copy it."""
    run = tmp_path_factory.mktemp("done") / "run"
    shard(config_of(run, corpus))
    return run


@pytest.fixture
def run(done, tmp_path):
    return shutil.copytree(done, tmp_path / "run")


@pytest.fixture
def own_corpus(corpus, tmp_path):
    """A copy that a test may change; times are kept, so the finished run fits it."""
    return shutil.copytree(corpus, tmp_path / "corpus")


@pytest.mark.slow
def test_every_clip_is_in_the_shards_with_frames_in_order_its_tone_and_its_text(done):
    reader = Reader(done / "shards")
    assert [row.name for row in reader.rows] == [
        "a000",
        "a001",
        "a002",
        "a003",
        "a004",
        "u000",
        "u001",
        "u002",
    ]
    assert [row.shard for row in reader.rows] == [0, 0, 0, 1, 1, 1, 2, 2]
    for position, row in enumerate(reader.rows):
        sample = reader.read(row)
        brightness = sample.images().mean((1, 2, 3))
        assert len(brightness) == 4 and (np.diff(brightness) > 20).all()
        waveform = sample.waveform()
        spectrum = np.abs(np.fft.rfft(waveform))
        hertz = spectrum.argmax() * 16_000 / len(waveform)
        assert hertz == pytest.approx(300 + 20 * position, abs=4)
        assert sample.transcript == f"我说第{position}句话" and sample.missing == []
    assert [row.label for row in reader.rows[:3]] == ["neutral", "angry", "happy"]
    assert {row.label for row in reader.rows[5:]} == {None}


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(corpus, done, tmp_path):
    shard(config_of(tmp_path / "two", corpus, workers=2))
    assert contents(tmp_path / "two") == contents(done) and len(contents(done)) == 4


@pytest.mark.slow
def test_plain_webdataset_reads_the_shards(done):
    urls = sorted(str(path) for path in (done / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [
        row.name for row in shard_index.read(done / "shards")
    ]
    assert samples[0]["00.jpg"].shape == (32, 32, 3)
    assert samples[3]["json"]["transcript"] == "我说第3句话"


@pytest.mark.slow
def test_stats_and_mark_say_what_was_made(done):
    stats = json.loads((done / "shards" / "stats.json").read_text())
    assert (stats["clips"], stats["shards"], stats["splits"]) == (8, 3, {"labeled": 5, "unlabeled": 3})
    assert stats["labels"] == {"neutral": 1, "angry": 1, "happy": 1, "sad": 1, "worried": 1}
    assert stats["missing"] == {} and stats["quarantined"] == {} and stats["faceless"] == 0
    assert stats["bytes"] == sum(path.stat().st_size for path in (done / "shards").glob("*.tar"))
    assert files.read_marker(done / "shards")["clips"] == 8
    assert quarantine.read(Run(done).quarantine) == []


@pytest.mark.slow
def test_a_relaunch_with_nothing_to_do_touches_no_file(run, corpus):
    before = written(run)
    shard(config_of(run, corpus, workers=2))
    assert written(run) == before


def test_a_corpus_that_moved_as_a_whole_is_not_decoded_again(run, own_corpus):
    before = written(run)
    shard(config_of(run, own_corpus))
    assert written(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("lost", [["00002.tar"], ["00001.parquet", "00002.tar"], ["00000.tar"]])
def test_a_killed_run_goes_on_to_the_same_bytes(run, corpus, done, lost):
    folder = run / "shards"
    for name in (*lost, files.MARKER, "index.parquet", "stats.json"):
        (folder / name).unlink()
    (folder / ".00001.tar.99.tmp").write_bytes(b"half a tar")
    kept = {path.name for path in folder.glob("*.tar")} - {name[:5] + ".tar" for name in lost}
    before = written(run)
    shard(config_of(run, corpus))
    assert contents(run) == contents(done)
    assert not list(folder.glob(".*.tmp"))
    assert all(written(run)[name] == before[name] for name in kept)
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["clips"] == 8
    # Of all starts: eight clips of the first one, and those that were lost.
    again = {1, 2} if len(lost) == 2 else {int(lost[0][:5])}
    spent = timings.by_part(Run(run))["shards"]
    assert spent.clips == 8 + sum(2 if number == 2 else 3 for number in again)


CHILD = """
import sys
from mer_dist.config import config
from mer_dist.core.errors import Stopped
from mer_dist.processes import preempt
from mer_dist.stages.shard import shard
if __name__ == "__main__":
    try:
        with preempt.listening():
            shard(config.load(sys.argv[1]), should_stop=preempt.asked)
    except Stopped:
        sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_a_signal_ends_midway_is_resumed_to_the_same_bytes(corpus, done, tmp_path, number):
    config = config_of(tmp_path / "run", corpus)
    configuration.save(config, tmp_path / "config.yaml")
    (tmp_path / "child.py").write_text(CHILD)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "child.py", tmp_path / "config.yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    first = tmp_path / "run" / "shards" / "00000.parquet"
    while not first.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait(30) in ((-signal.SIGKILL,) if number == signal.SIGKILL else (0, 75))
    shard(config)
    assert contents(tmp_path / "run") == contents(done)


@pytest.mark.slow
def test_a_damaged_tar_is_noticed_by_its_size_and_written_again(run, corpus, done):
    tar = run / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    shard(config_of(run, corpus))
    assert contents(run) == contents(done)


@pytest.mark.slow
def test_one_new_clip_costs_one_new_shard(run, own_corpus):
    before = written(run)
    write_mp4(own_corpus / "video-unlabeled-with-test2noise" / "b000.mp4", ramp(6), tone(500, 0.3))
    shard(config_of(run, own_corpus))
    rows = shard_index.read(run / "shards")
    assert [(row.name, row.shard) for row in rows][-1] == ("b000", 3) and len(rows) == 9
    for number in range(3):
        assert written(run)[f"{number:05d}.tar"] == before[f"{number:05d}.tar"]
    assert json.loads((run / "shards" / "stats.json").read_text())["splits"]["unlabeled"] == 4


@pytest.mark.slow
def test_a_clip_that_is_gone_takes_only_its_shard_with_it(run, own_corpus):
    before = written(run)
    (own_corpus / "video-labeled" / "a004.mp4").unlink()
    shard(config_of(run, own_corpus))
    rows = shard_index.read(run / "shards")
    assert [row.name for row in rows if row.shard == 1] == ["a003", "u000"] and len(rows) == 7
    assert written(run)["00000.tar"] == before["00000.tar"]
    assert written(run)["00002.tar"] == before["00002.tar"]
    assert ("a004", "clip") in reasons(run)


def overwrite(path: Path) -> None:
    """Other bytes, which nothing decodes, of the same size and time."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.slow
def test_clips_beside_one_that_is_gone_or_changed_are_copied_and_not_decoded(own_corpus, tmp_path, caplog):
    labeled, unlabeled = own_corpus / "video-labeled", own_corpus / "video-unlabeled-with-test2noise"
    # One of each: a clip without sound, and a clip of which nothing decodes.
    write_mp4(labeled / "a003.mp4", ramp(6), None)
    (unlabeled / "u001.mp4").write_bytes(b"no video")
    shard(config_of(tmp_path / "run", own_corpus, clips=4, faces="cascade"))
    before = {row.name: row for row in shard_index.read(tmp_path / "run" / "shards")}
    (labeled / "a001.mp4").unlink()
    write_mp4(labeled / "a004.mp4", ramp(3), tone(500, 0.3))
    shutil.copytree(own_corpus, tmp_path / "now")
    for path in (*labeled.glob("*.mp4"), *unlabeled.glob("*.mp4")):
        if path.stem != "a004":
            overwrite(path)
    caplog.set_level("INFO", "mer_dist")
    shard(config_of(tmp_path / "run", own_corpus, clips=4, faces="cascade"))
    assert (
        "0 shards are kept, 2 copied without the clips that changed or went, 0 cut anew; 1 clips"
        in caplog.text
    )
    shard(config_of(tmp_path / "new", tmp_path / "now", clips=4, faces="cascade"))
    old, new = (
        {row.name: row for row in shard_index.read(tmp_path / name / "shards")} for name in ("run", "new")
    )
    assert (
        sorted(old) == ["a000", "a002", "a003", "a004", "u000", "u001", "u002"] and old.keys() == new.keys()
    )
    for name, row in old.items():
        assert row.checksum == new[name].checksum and row.missing == new[name].missing
        assert (row.checksum == before[name].checksum) == (name != "a004")
    assert reasons(tmp_path / "run") == reasons(tmp_path / "new")
    stats = [json.loads((tmp_path / name / "shards" / "stats.json").read_text()) for name in ("run", "new")]
    for key in ("clips", "missing", "faceless", "remarks", "quarantined", "duration"):
        assert stats[0][key] == stats[1][key], key
    assert verify(tmp_path / "run") == []


@pytest.mark.slow
def test_a_shard_that_loses_all_it_stored_leaves_no_tar(own_corpus, tmp_path):
    """What stays of it is a clip of which nothing can be stored, which is not tried again."""
    (own_corpus / "video-labeled" / "a004.mp4").write_bytes(b"no video")
    spoken = own_corpus / "label-transcription.csv"
    spoken.write_text(re.sub("^(a003|a004),.*", r"\1,", spoken.read_text(), flags=re.MULTILINE))
    run = tmp_path / "run"
    shard(config_of(run, own_corpus, clips=3))
    (stored,) = [row for row in shard_index.read(run / "shards") if row.name == "a003"]
    record = shard_index.record_of(run / "shards", stored.shard)
    for name in sorted(record.clips.keys() - {"a004"}):
        folder = "video-labeled" if name[0] == "a" else "video-unlabeled-with-test2noise"
        (own_corpus / folder / f"{name}.mp4").unlink()
    shard(config_of(run, own_corpus, clips=3, remove=True))
    assert not (run / "shards" / f"{stored.shard:05d}.tar").exists()
    assert shard_index.record_of(run / "shards", stored.shard).clips.keys() == {"a004"}
    assert ("a004", "clip") in reasons(run) and verify(run) == []


@pytest.mark.slow
def test_a_copied_clip_whose_bytes_a_disk_has_lost_is_named_and_nothing_is_taken_away(run, own_corpus):
    (row,) = [row for row in shard_index.read(run / "shards") if row.name == "a003"]
    tar, (offset, size) = run / "shards" / "00001.tar", row.members["flac"]
    with open(tar, "r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"\x00\x00\x00\x00")
    (own_corpus / "video-labeled" / "a004.mp4").unlink()
    with pytest.raises(UserError, match="00001.tar, clip a003: other bytes than were written; delete it"):
        shard(config_of(run, own_corpus))
    tar.unlink()
    shard(config_of(run, own_corpus))
    assert [one.name for one in shard_index.read(run / "shards") if one.shard == 1] == ["a003", "u000"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("label", "label", "surprise"),
        ("transcript", "transcript", "新的一句"),
        ("split", "label", None),
        ("file", "frames", 2),
    ],
)
def test_a_change_of_label_text_split_or_file_is_noticed(run, own_corpus, change, field, value):
    before = shard_index.shard_fingerprint(run / "shards", 0)
    labels, spoken = own_corpus / "label-disdim.csv", own_corpus / "label-transcription.csv"
    file = own_corpus / "video-labeled" / "a001.mp4"
    if change == "label":
        labels.write_text(labels.read_text().replace("a001,angry", "a001,surprise"))
    elif change == "transcript":
        spoken.write_text(spoken.read_text().replace("我说第1句话", "新的一句"))
    elif change == "split":
        file.rename(own_corpus / "video-unlabeled-with-test2noise" / "a001.mp4")
    else:
        write_mp4(file, ramp(2), tone(300, 0.2))
    shard(config_of(run, own_corpus))
    (row,) = [row for row in shard_index.read(run / "shards") if row.name == "a001"]
    assert getattr(row, field) == value
    # A label stands in the index alone: nothing is decoded again, and no feature is stale.
    assert (shard_index.shard_fingerprint(run / "shards", 0) == before) == (change == "label")


@pytest.mark.slow
def test_other_settings_make_other_shards_and_leave_nothing_of_the_old(run, corpus):
    shard(config_of(run, corpus, clips=8, frames=2))
    rows = shard_index.read(run / "shards")
    assert {row.shard for row in rows} == {0} and {row.frames for row in rows} == {2}
    assert [path.name for path in sorted((run / "shards").glob("*.tar"))] == ["00000.tar"]


def damaged_corpus(folder):
    """One healthy clip of each part and one of every fault."""
    write_corpus(folder, labeled=1, unlabeled=1)
    videos = folder / "video-labeled"
    write_mp4(videos / "novideo.mp4", None, tone(400, 0.5))
    write_mp4(videos / "noaudio.mp4", ramp(8))
    whole = write_mp4(folder / "whole.mp4", ramp(25), tone(440), faststart=True).read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    # An mp4 whose index would have stood at the end is lost whole.
    late = write_mp4(folder / "late.mp4", ramp(25), tone(440)).read_bytes()
    (videos / "noindex.mp4").write_bytes(late[: len(late) // 2])
    (videos / "empty.mp4").touch()
    (videos / "silentempty.mp4").touch()
    for name in ("mood", "nolabel", "badrow", "notext", "blank", "null"):
        shutil.copy(videos / "a000.mp4", videos / f"{name}.mp4")
    labels = ("novideo", "noaudio", "cut", "noindex", "empty", "silentempty", "notext", "blank", "null")
    with open(folder / "label-disdim.csv", "a") as file:
        file.writelines(f"{name},happy,0\n" for name in labels)
        file.write("mood,bored,0\nbadrow,happy\nghost,happy,0\n")
    texts = ("novideo", "noaudio", "cut", "noindex", "empty", "mood", "nolabel", "badrow")
    with open(folder / "label-transcription.csv", "a", encoding="utf-8") as file:
        file.writelines(f"{name},好,ok\n" for name in texts)
        file.write("blank,  ,\nnull,null,\n")


EXPECTED = {
    ("novideo", "video"): "novideo.mp4: no video stream",
    ("noaudio", "audio"): "noaudio.mp4: no audio stream",
    ("cut", "part of video"): "of 25 frames are there",
    ("cut", "part of audio"): "do not decode",
    ("noindex", "video"): "noindex.mp4: not readable",
    ("noindex", "audio"): "noindex.mp4: not readable",
    ("empty", "video"): "empty.mp4: the file is empty",
    ("empty", "audio"): "empty.mp4: the file is empty",
    ("silentempty", "clip"): "nothing of it can be used",
    ("mood", "clip"): "label 'bored' is not in corpus.labels",
    ("nolabel", "clip"): "has no row for it",
    ("badrow", "clip"): "2 fields instead of 3",
    ("ghost", "clip"): "has no file ghost.mp4",
    ("notext", "text"): "label-transcription.csv has no row for it",
}


@pytest.mark.slow
def test_a_damaged_corpus_loses_nothing_without_a_reason(tmp_path):
    damaged_corpus(tmp_path / "corpus")
    shard(config_of(tmp_path / "run", tmp_path / "corpus", workers=2))
    found = reasons(tmp_path / "run")
    assert found.keys() == EXPECTED.keys()
    for key, words in EXPECTED.items():
        assert words in found[key], key
    rows = {row.name: row for row in shard_index.read(tmp_path / "run" / "shards")}
    assert {name: row.missing for name, row in rows.items()} == {
        "a000": [],
        "u000": [],
        "null": ["text"],
        "cut": [],
        "novideo": ["video"],
        "noaudio": ["audio"],
        "noindex": ["audio", "video"],
        "empty": ["audio", "video"],
        "notext": ["text"],
        "blank": ["text"],
    }
    assert rows["null"].transcript is None and rows["cut"].frames == 4
    # What is missing is absent from the tar, not stored as zeros.
    assert [suffix for suffix in rows["novideo"].members] == ["flac", "json"]
    assert [suffix for suffix in rows["empty"].members] == ["json"]
    stats = json.loads((tmp_path / "run" / "shards" / "stats.json").read_text())
    assert stats["missing"] == {"video": 3, "audio": 3, "text": 3}
    assert stats["quarantined"] == {
        "video": 3,
        "audio": 3,
        "text": 1,
        "clip": 5,
        "part of video": 1,
        "part of audio": 1,
    }


@pytest.mark.slow
def test_remarks_on_transcripts_stand_beside_those_on_media(tmp_path, caplog):
    caplog.set_level("INFO", "mer_dist")
    rows = [
        ["name", "transcript", "label"],
        ["a", "texts/a.txt", "happy"],
        ["b", "hi", "sad"],
        ["c", "c.srt", ""],
    ]
    write_csv(tmp_path / "all.csv", rows)
    config = config_of(tmp_path / "run", tmp_path / "all.csv")
    config = with_values(config, **{"corpus.format": "manifest"})
    shard(config)
    stats = files.read_json(tmp_path / "run" / "shards" / "stats.json")
    assert stats["remarks"] == {texts.PATH: {"clips": 2, "names": ["a", "c"]}}
    assert f"2 clips: {texts.PATH} (a, c)" in caplog.messages


@pytest.mark.slow
def test_lost_clips_are_neither_tried_again_nor_forgotten(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", labeled=2, unlabeled=0)
    (corpus / "video-labeled" / "a001.mp4").write_bytes(b"")
    (corpus / "label-transcription.csv").unlink()
    config = config_of(tmp_path / "run", corpus)
    shard(config)
    before, rows = written(tmp_path / "run"), reasons(tmp_path / "run")
    assert ("a001", "clip") in rows
    shard(config)
    assert written(tmp_path / "run") == before
    Run(tmp_path / "run").quarantine.unlink()
    shard(config)
    assert reasons(tmp_path / "run") == rows


@pytest.mark.slow
def test_a_corpus_of_which_nothing_is_usable_ends_with_the_reason(tmp_path):
    (tmp_path / "c" / "video-labeled").mkdir(parents=True)
    (tmp_path / "c" / "video-labeled" / "a.mp4").touch()
    write_csv(tmp_path / "c" / "label-disdim.csv", [["name", "discrete"], ["a", "happy"]])
    with pytest.raises(UserError, match="nothing of the corpus can be used"):
        shard(config_of(tmp_path / "run", tmp_path / "c", without_media=True))
    assert ("a", "clip") in reasons(tmp_path / "run")


@pytest.mark.slow
def test_a_csv_corpus_and_openface_crops_go_the_same_way(tmp_path):
    import cv2

    write_mp4(tmp_path / "v" / "one.mp4", None, tone(400, 0.4))
    write_csv(
        tmp_path / "all.csv",
        [
            ["name", "video", "audio", "transcript", "label", "split"],
            ["x", "v/one.mp4", "", "hello", "happy", ""],
            ["y", "", "v/one.mp4", "there", "", ""],
        ],
    )
    crops = tmp_path / "faces" / "x" / "x_aligned"
    crops.mkdir(parents=True)
    for row in range(6):
        cv2.imwrite(str(crops / f"{row}.bmp"), np.full((40, 40, 3), 40 * row, np.uint8))
    config = config_of(
        tmp_path / "run", tmp_path / "all.csv", faces="openface", openface=str(tmp_path / "faces")
    )
    config = with_values(config, **{"corpus.format": "manifest"})
    shard(config)
    x, y = shard_index.read(tmp_path / "run" / "shards")
    assert (x.frames, x.missing, y.frames, y.missing) == (4, [], 0, ["video"])
    before = written(tmp_path / "run")
    shard(config)
    assert written(tmp_path / "run") == before
    # A crop that is added later is a change of the clip.
    cv2.imwrite(str(crops / "7.bmp"), np.full((40, 40, 3), 255, np.uint8))
    shard(config)
    assert written(tmp_path / "run")["00000.tar"] != before["00000.tar"]
    config = with_values(config, **{"shard.openface": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="shard.openface: there is no folder"):
        shard(config)


@pytest.mark.slow
def test_a_link_that_leads_nowhere_masks_the_clip_and_does_not_stop_the_run(run, own_corpus):
    path = own_corpus / "video-labeled" / "a000.mp4"
    path.unlink()
    path.symlink_to(path.parent / "gone.mp4")
    shard(config_of(run, own_corpus))
    assert reasons(run)[("a000", "video")] == f"{path}: a link to no file"
    rows = {row.name: row for row in shard_index.read(run / "shards")}
    assert rows["a000"].missing == ["audio", "video"]


@pytest.mark.slow
def test_remarks_are_told_counted_and_kept_through_a_resume_and_are_no_fault(tmp_path, caplog):
    names = ["a", "b", "c", "d", "short", "fine"]
    for number, name in enumerate(names):
        hum = tone(400, 0.3 if name == "short" else 1.0) * (len(name) > 1)
        write_mp4(tmp_path / f"{name}.mp4", ramp(25 + number), hum)
    rows = [
        ["name", "video", "audio", "transcript", "label", "split"],
        *([name, f"{name}.mp4", "", "words", "", ""] for name in names),
    ]
    config = config_of(tmp_path / "run", write_csv(tmp_path / "all.csv", rows))
    config = with_values(config, **{"corpus.format": "manifest"})
    with caplog.at_level("INFO", logger="mer_dist"):
        shard(config)
    told = [
        "4 clips: sound silent throughout (a, b, c, …)",
        "1 clip: sound far shorter than its video (short)",
    ]
    assert [line for line in caplog.messages if " clip: " in line or " clips: " in line] == told
    path = tmp_path / "run" / "shards" / "stats.json"
    assert json.loads(path.read_text())["remarks"] == {
        "sound silent throughout": {"clips": 4, "names": ["a", "b", "c", "d"]},
        "sound far shorter than its video": {"clips": 1, "names": ["short"]},
    }
    assert reasons(tmp_path / "run") == {}
    # A start that finds the first shard does not decode its clips again, and still knows of them.
    before, first = path.read_text(), written(tmp_path / "run")["00000.tar"]
    for name in ("00001.tar", files.MARKER, "index.parquet", "stats.json"):
        (tmp_path / "run" / "shards" / name).unlink()
    caplog.clear()
    with caplog.at_level("INFO", logger="mer_dist"):
        shard(config)
    assert written(tmp_path / "run")["00000.tar"] == first and path.read_text() == before
    assert caplog.messages[-2:] == told


HEADER = ["name", "video", "audio", "transcript", "label", "split"]


def manifest_of(run, path, rows, **settings) -> Config:
    config = config_of(run, write_csv(path, [HEADER, *rows]), **settings)
    config = with_values(config, **{"corpus.format": "manifest"})
    return config


def everything(run) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def only_the_new_clips(corpus):
    shutil.rmtree(corpus)
    return write_csv(corpus / "clips.csv", [HEADER, ["later0", "", "", "new", "happy", ""]])


def the_same_clips_under_other_names(corpus):
    for path in corpus.rglob("*.mp4"):
        path.rename(path.with_name(f"other_{path.name}"))
    for table in corpus.glob("*.csv"):
        text = table.read_text().splitlines()
        table.write_text("\n".join([text[0], *(f"other_{line}" for line in text[1:])]) + "\n")


def labelled_folder_under_another_name(corpus):
    (corpus / "video-labeled").rename(corpus / "video-unlabeled-1")
    (corpus / "video-labeled").mkdir()


def labels_in_another_language(corpus):
    table = corpus / "label-disdim.csv"
    table.write_text(
        table.read_text().replace("neutral", "ruhig").replace("angry", "wütend").replace("happy", "froh")
    )


def transcripts_left_behind(corpus):
    (corpus / "label-transcription.csv").unlink()


def disk_not_mounted(corpus):
    shutil.rmtree(corpus)
    corpus.mkdir()


def links_to_a_disk_not_mounted(corpus):
    for path in corpus.rglob("*.mp4"):
        path.unlink()
        path.symlink_to(f"/nowhere/{path.name}")


MISTAKES = {
    only_the_new_clips: "8 of 8 clips, 5 of 5 labels .* a run.folder of its own.*shard.remove=true",
    the_same_clips_under_other_names: r"8 of 8 clips.*for example a000, a001, a002",
    labelled_folder_under_another_name: r"^5 of 5 labels in the shards",
    labels_in_another_language: "3 of 8 clips, 3 of 5 labels.*"
    "1 x clip: label-disdim.csv: label 'froh' is not in",
    transcripts_left_behind: "^8 of 8 transcripts in the shards",
    disk_not_mounted: "no folder video-labeled",
    links_to_a_disk_not_mounted: "8 of 8 clips that were looked at are not, for example .*/a000.mp4: "
    "a link to no file.*shard.without_media=true",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_corpus_that_would_take_most_of_a_run_away_is_refused_and_no_byte_changes(run, own_corpus, mistake):
    before = everything(run)
    path = mistake(own_corpus) or own_corpus
    config = config_of(run, path)
    config = with_values(config, **{"corpus.format": "manifest" if path.suffix else "mer2024"})
    with pytest.raises(UserError, match=MISTAKES[mistake]):
        shard(config)
    assert everything(run) == before


def test_most_clips_go_if_asked_for_and_a_kill_midway_needs_not_be_asked_again(
    run, own_corpus, monkeypatch, caplog
):
    for name in ("a003", "a004", "u000", "u001", "u002"):
        (path,) = own_corpus.rglob(f"{name}.mp4")
        path.unlink()
    with pytest.raises(UserError, match="5 of 8 clips, 2 of 5 labels in the shards"):
        shard(config_of(run, own_corpus))
    before = written(run)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shard(config_of(run, own_corpus, remove=True))
    assert "5 of 8 clips" in caplog.text and "they are taken out" in caplog.text
    shard(config_of(run, own_corpus))
    assert [row.name for row in shard_index.read(run / "shards")] == ["a000", "a001", "a002"]
    assert written(run)["00000.tar"] == before["00000.tar"]
    # What is allowed is not what a shard is made from.
    before = written(run)
    shard(config_of(run, own_corpus, remove=True, without_media=True))
    assert written(run) == before


def test_a_few_clips_that_go_are_told_and_shards_of_another_version_count_too(run, own_corpus):
    (own_corpus / "video-labeled" / "a004.mp4").unlink()
    for path in (run / "shards").glob("[0-9]*.parquet"):
        rows = shard_index.read_rows(path)
        shard_index.write_rows(path, rows)  # without facts
    assert set(shard_index.all_records(run / "shards").values()) == {None}
    config = config_of(run, own_corpus)
    clips, unlisted = listed.clips(config.corpus)
    told = replaced.taken(config, clips, unlisted)
    assert told.startswith("1 of 8 clips, 1 of 5 labels in the shards of") and "a004" in told
    assert "1 x clip: label-disdim.csv: video-labeled has no file *.mp4" in told
    assert replaced.taken(config_of(run / "none", own_corpus), clips, unlisted) == ""


def test_folds_that_could_not_be_made_are_known_before_anything_is_replaced(run, own_corpus, tmp_path):
    write_mp4(own_corpus / "video-unlabeled-with-test2noise" / "b000.mp4", ramp(6))
    Run(run).folds.write_text("{}")
    before = everything(run)
    with pytest.raises(UserError, match="folds.count is 5, but these labels have fewer clips"):
        shard(config_of(run, own_corpus))
    assert everything(run) == before
    with pytest.raises(UserError, match="folds.count is 5"):
        shard(config_of(tmp_path / "fresh", own_corpus), fused=True)
    assert not (tmp_path / "fresh").exists()


@pytest.mark.slow
def test_media_of_which_nothing_decodes_are_refused_unless_asked_for(run, tmp_path):
    rows = []
    for number in range(3):
        path = tmp_path / "v" / f"x{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        rows.append([f"a00{number}", f"v/x{number}.mp4", "", "text", "happy", ""])
    before = everything(run)
    config = manifest_of(run, tmp_path / "all.csv", rows, remove=True)
    with pytest.raises(UserError, match="3 of 3 clips that were looked at are not, for example clip a000: "):
        shard(config)
    assert everything(run) == before
    config = with_values(config, **{"shard.without_media": True})
    shard(config)
    assert {tuple(row.missing) for row in shard_index.read(run / "shards")} == {("audio", "video")}
    assert len(reasons(run)) == 6


@pytest.mark.slow
def test_a_corpus_of_transcripts_has_no_problem_but_a_clip_with_nothing_at_all(tmp_path, caplog):
    rows = [
        ["a", "", "", "你好", "calm", ""],
        ["b", "", "", "气死我了", "tense", ""],
        ["c", "", "", "走吧", "", ""],
    ]
    config = manifest_of(tmp_path / "run", tmp_path / "all.csv", rows)
    config = with_values(config, **{"corpus.labels": ["calm", "tense"]})
    configuration.save(config, tmp_path / "job.yaml")
    job = ["shard", str(tmp_path / "job.yaml")]
    assert main(job) == 0
    assert quarantine.read(Run(tmp_path / "run").quarantine) == [] and verify(tmp_path / "run") == []
    stats = json.loads((tmp_path / "run" / "shards" / "stats.json").read_text())
    assert stats["clips"] == 3 and stats["missing"] == {"audio": 3, "video": 3}
    assert stats["quarantined"] == {}
    write_csv(tmp_path / "all.csv", [HEADER, *rows, ["d", "", "", " ", "", "unlabeled"]])
    assert main(job) == 3
    assert reasons(tmp_path / "run") == {
        ("d", "clip"): (
            "nothing of it can be used: video: the corpus names none; audio: the corpus names none; "
            "text: no transcript"
        )
    }
    assert verify(tmp_path / "run") == []


@pytest.mark.slow
def test_what_counts_as_an_unchanged_file_is_told_and_a_touch_has_it_cut_anew(
    run, own_corpus, caplog, capsys
):
    """A file repaired in place with its size and time kept is not seen; a copied or linked corpus is the same."""
    config = config_of(run, own_corpus)
    path = own_corpus / "video-labeled" / "a001.mp4"
    content, times_of = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times_of.st_atime_ns, times_of.st_mtime_ns))
    before = written(run)
    with caplog.at_level("INFO"):
        shard(config)
    assert written(run) == before
    rule = "counts as unchanged by its size and modification time: touch one that was repaired"
    assert f"shards are complete: 8 clips in 3 shards; a file of the corpus {rule}" in caplog.text
    path.touch()
    shard(config)
    assert written(run)["00000.tar"] != before["00000.tar"]
    with pytest.raises(SystemExit):
        main(["shard", "--help"])
    assert rule in " ".join(capsys.readouterr().out.split())
