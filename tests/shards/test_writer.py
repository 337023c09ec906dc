"""Tars: what plain webdataset reads of them, and when a shard is full."""

import io
import itertools
import json
import tarfile
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip, Problem
from mer_dist.shards import shard_index, writer
from mer_dist.shards.encode import Encoded, encode
from mer_dist.shards.reader import Reader
from mer_dist.storage.run_folder import ShardFolder


def encoded(name: str, frames: int = 3, **facts) -> Encoded:
    clip = Clip(name=name, video=None, audio=None, transcript="你好", label="happy", split="labeled")
    images = [np.full((16, 16, 3), 20 * row % 256, np.uint8) for row in range(frames)]
    return encode(
        clip,
        frames=images,
        samples=np.arange(800, dtype=np.int16),
        seconds=0.5,
        face=True,
        missing=[],
        problems=[],
        **facts,
    )


def lost(name: str) -> Encoded:
    clip = Clip(name=name, video=None, audio=None, transcript=None, label=None, split="unlabeled")
    return Encoded(clip=clip, problems=[Problem(stage="shard", name=name, lost="clip", reason="bad")])


def write(folder, batch, number=0):
    sources = {clip.clip.name: "s" for clip in batch}
    return writer.write(folder, number, batch, fingerprint="m", sources=sources)


NAMES = ["a", "with blank", "名前" * 30, "x" * 150, "_b", "__c__"]


def test_plain_webdataset_reads_every_member_of_every_clip(tmp_path):
    write(tmp_path, [encoded(name) for name in NAMES])
    samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == NAMES
    for sample in samples:
        assert {"00.jpg", "01.jpg", "02.jpg", "flac", "json"} <= sample.keys()
        told = json.loads(sample["json"])
        assert told["name"] == sample["__key__"]
        assert (told["transcript"], told["frames"]) == ("你好", 3) and not {"label", "split"} & told.keys()


def test_the_offsets_are_those_that_tarfile_finds_also_behind_long_and_foreign_names(tmp_path):
    rows = write(tmp_path, [encoded(name) for name in NAMES])
    with tarfile.open(tmp_path / "00000.tar") as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    told = {f"{row.name}.{suffix}": place for row in rows for suffix, place in row.members.items()}
    assert told == found


def test_names_with_dots_and_hyphens_are_read_by_plain_webdataset_and_stand_whole_in_its_json(tmp_path):
    odd = {
        "ep01.s03": "ep01%2Es03",
        "-x07": "-x07",
        "a..b.": "a%2E%2Eb%2E",
        "100%": "100%",
        "a%20b": "a%20b",
        "a%2Eb": "a%252Eb",
        "a.b": "a%2Eb",
        "%25": "%2525",
        "名.前": "名%2E前",
        "--help": "--help",
    }
    rows = write(tmp_path, [encoded(name) for name in odd])
    assert [row.name for row in rows] == [*odd]
    samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [*odd.values()]
    assert [json.loads(sample["json"])["name"] for sample in samples] == [*odd]
    assert all({"00.jpg", "01.jpg", "02.jpg", "flac", "json"} <= sample.keys() for sample in samples)
    shard_index.write_rows(ShardFolder(tmp_path).index, rows)
    reader = Reader(tmp_path)
    for row in reader.rows:
        assert json.loads(reader.members(row, "json")["json"])["name"] == reader.read(row).name == row.name


@pytest.mark.slow
def test_every_name_has_a_key_of_its_own_that_gives_it_back():
    letters = ("%", ".", "2", "5", "E", "e", "a")
    texts = ["".join(some) for length in range(1, 7) for some in itertools.product(letters, repeat=length)]
    keys = [writer.key(text) for text in texts]
    assert len(set(keys)) == len(texts) and not any("." in key for key in keys)
    assert [writer.name_of(key) for key in keys] == texts
    plain = [text for text in texts if "." not in text and "%2" not in text]
    assert [writer.key(text) for text in plain] == plain, "ordinary names give the bytes they always gave"


def test_equal_clips_give_equal_bytes_and_equal_fingerprints_at_any_time(tmp_path, monkeypatch):
    write(tmp_path / "one", [encoded("a")])
    monkeypatch.setattr("time.time", lambda: 2e9)
    write(tmp_path / "two", [encoded("a")])
    write(tmp_path / "three", [encoded("a", frames=2)])
    one, two, three = (shard_index.shard_fingerprint(tmp_path / name, 0) for name in ("one", "two", "three"))
    contents = [(tmp_path / name / "00000.tar").read_bytes() for name in ("one", "two")]
    assert contents[0] == contents[1] and one == two != three


def test_rows_and_facts_come_back_as_they_were_written(tmp_path):
    rows = write(tmp_path, [encoded("a"), lost("b"), encoded("c", frames=101)], number=7)
    assert shard_index.read_rows(ShardFolder(tmp_path).record(7)) == rows
    assert [(row.name, row.shard, row.frames, row.samples) for row in rows] == [
        ("a", 7, 3, 800),
        ("c", 7, 101, 800),
    ]
    assert list(rows[1].members)[:2] == ["000.jpg", "001.jpg"]
    facts = shard_index.all_records(tmp_path)[7]
    assert facts.clips == {"a": "s", "b": "s", "c": "s"} and facts.fingerprint == "m"
    assert [problem.name for problem in facts.problems] == ["b"]
    assert facts.bytes == (tmp_path / "00007.tar").stat().st_size


def test_remarks_come_back_by_kind_and_shards_written_before_there_were_any_stay_readable(tmp_path):
    write(
        tmp_path, [encoded("a", remarks=["silent", "tracks"]), encoded("b"), encoded("c", remarks=["silent"])]
    )
    path = ShardFolder(tmp_path).record(0)
    facts = shard_index.read_record(path)
    assert facts.remarks == {"silent": ["a", "c"], "tracks": ["a"]}
    before = {**asdict(facts), "problems": []}
    del before["remarks"]
    table = pq.read_table(path).replace_schema_metadata({b"mer_dist.shard": json.dumps(before)})
    pq.write_table(table, path)
    assert shard_index.read_record(path) == replace(facts, remarks={})


def test_a_shard_is_closed_at_its_clips_or_its_size_whichever_comes_first():
    def cut(clips, mebibytes, items):
        return [[clip.clip.name for clip in batch] for batch in writer.batches(items, clips, mebibytes)]

    clips = [encoded(name) for name in "abcde"]
    assert cut(2, 256, clips) == [["a", "b"], ["c", "d"], ["e"]]
    for clip in clips:
        clip.members["flac"] = bytes(400 << 10)
    assert cut(99, 1, clips) == [["a", "b", "c"], ["d", "e"]]
    # A clip that is not stored takes no place and never makes a shard of its own.
    items = [lost("x"), *clips[:2], lost("y"), clips[2], lost("z")]
    assert cut(2, 256, items) == [["x", "a", "b", "y"], ["c", "z"]]
    assert cut(2, 256, []) == []


def test_a_shard_of_lost_clips_only_has_facts_but_no_tar(tmp_path):
    assert write(tmp_path, [lost("a")]) == []
    assert not (tmp_path / "00000.tar").exists()
    facts = shard_index.all_records(tmp_path)[0]
    assert facts.sha256 == "" and facts.clips == {"a": "s"}


def test_a_damaged_facts_file_counts_as_none(tmp_path):
    write(tmp_path, [encoded("a")])
    path = ShardFolder(tmp_path).record(0)
    path.write_bytes(path.read_bytes()[:-20])
    assert shard_index.all_records(tmp_path) == {0: None}
    with pytest.raises(UserError, match=r"00000\.parquet: no such shard; run shard"):
        shard_index.record_of(tmp_path, 0)


def test_jpeg_and_flac_keep_colour_and_every_sample(tmp_path):
    import soundfile

    clip = encoded("a")
    noise = np.random.default_rng(0).integers(-32768, 32767, 5000).astype(np.int16)
    from mer_dist.shards.encode import flac, jpeg

    samples, rate = soundfile.read(io.BytesIO(flac(noise)), dtype="int16")
    assert rate == 16_000 and (samples == noise).all()
    import cv2

    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 220
    bgr = cv2.imdecode(np.frombuffer(jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    assert bgr[..., 2].mean() == pytest.approx(220, abs=3) and bgr[..., 0].mean() < 5
    assert clip.members["00.jpg"][:2] == b"\xff\xd8"
