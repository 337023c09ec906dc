"""Random access: the same clips as the tar holds, from any process, in any order."""

import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
from test_writer import encoded, write

from mer_dist.core.errors import UserError
from mer_dist.shards import shard_index
from mer_dist.shards.reader import OPEN_TARS, Reader
from mer_dist.storage.run_folder import ShardFolder


@pytest.fixture
def folder(tmp_path):
    """Three shards of four clips."""
    rows = []
    for number in range(3):
        rows += write(tmp_path, [encoded(f"c{number}{row}", frames=8) for row in range(4)], number)
    shard_index.write_rows(ShardFolder(tmp_path).index, rows)
    return tmp_path


def test_every_clip_is_read_as_its_row_says_in_any_order(folder):
    reader = Reader(folder)
    order = np.random.default_rng(0).permutation(len(reader.rows))
    read = [reader.read(reader.rows[row]) for row in order]
    assert sorted(sample.name for sample in read) == sorted(row.name for row in reader.rows)
    for row, sample in zip(order, read, strict=True):
        assert sample.name == reader.rows[row].name
        assert shard_index.checksum(reader.members(reader.rows[row]).items()) == reader.rows[row].checksum


def test_images_come_in_time_order_and_a_count_takes_them_evenly(folder):
    reader = Reader(folder)
    sample = reader.read(reader.rows[5])
    images = sample.images()
    assert images.shape == (8, 16, 16, 3) and images.dtype == np.uint8
    assert np.allclose(images.mean((1, 2, 3)), 20 * np.arange(8), atol=2)
    assert np.allclose(sample.images(4).mean((1, 2, 3)), [20, 60, 100, 140], atol=2)
    assert len(sample.images(20)) == 8


def test_the_waveform_is_float32_between_minus_one_and_one(folder):
    reader = Reader(folder)
    waveform = reader.read(reader.rows[0]).waveform()
    assert waveform.dtype == np.float32
    assert np.allclose(waveform, np.arange(800) / 32768)


def test_a_missing_modality_is_empty_and_never_zeros(tmp_path):
    clip = encoded("a", frames=0)
    clip.missing = ["audio", "video"]
    del clip.members["flac"]
    shard_index.write_rows(ShardFolder(tmp_path).index, write(tmp_path, [clip]))
    reader = Reader(tmp_path)
    sample = reader.read(reader.rows[0])
    assert sample.missing == ["audio", "video"] and sample.flac is None
    assert sample.images().size == 0 and sample.waveform().size == 0


def _read_all(reader, results):
    results.put([len(reader.read(row).jpegs) for row in reversed(reader.rows)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_with_open_tars_works_in_another_process(folder, method):
    reader = Reader(folder)
    reader.read(reader.rows[0])
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_read_all, args=(reader, results))
    process.start()
    assert results.get(timeout=30) == [8] * 12
    process.join()
    assert len(reader.read(reader.rows[0]).jpegs) == 8


def test_a_pickled_reader_opens_its_own_tars(folder):
    reader = Reader(folder)
    reader.read(reader.rows[0])
    other = pickle.loads(pickle.dumps(reader))
    assert not other._tars and other.read(other.rows[3]).name == "c03"


def test_a_reader_never_holds_more_tars_open_than_allowed(folder, monkeypatch):
    monkeypatch.setattr("mer_dist.shards.reader.OPEN_TARS", 2)
    reader = Reader(folder)
    for row in [*reader.rows, *reader.rows[::-1]]:
        reader.read(row)
        assert len(reader._tars) <= 2
    assert OPEN_TARS < 1024


def test_a_missing_or_short_tar_is_named_with_the_clip(folder):
    reader = Reader(folder)
    (folder / "00001.tar").unlink()
    with pytest.raises(UserError, match="00001.tar, clip c10: cannot be read"):
        reader.read(reader.rows[4])
    tar = folder / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:4000])
    with pytest.raises(UserError, match="00002.tar, clip c23: the tar ends too early"):
        reader.read(reader.rows[11])


def test_labels_are_those_of_labelled_clips_and_none_of_these_may_lack_one(folder):
    rows = [replace(row, split="labeled", label="happy") for row in shard_index.read(folder)]
    assert shard_index.labels(rows[2:4]) == {"c02": "happy", "c03": "happy"}
    rows[3] = replace(rows[3], label=None)
    with pytest.raises(UserError, match="clip c03 is labeled and has no label; delete it and run shard"):
        shard_index.labels(rows)


def test_without_an_index_the_user_is_told_to_run_shard(tmp_path):
    with pytest.raises(UserError, match="run shard first"):
        _ = Reader(tmp_path).rows
    with pytest.raises(UserError, match="no such shard"):
        shard_index.shard_fingerprint(tmp_path, 3)
    ShardFolder(tmp_path).index.write_bytes(b"PAR1 half a file")
    with pytest.raises(UserError, match="not readable"):
        shard_index.read(tmp_path)


def test_an_index_gives_its_clips_in_any_way_that_rows_do(folder):
    index = shard_index.read(folder)
    rows = [row for number in range(3) for row in shard_index.read_rows(ShardFolder(folder).record(number))]
    assert list(index) == rows == [index[number] for number in range(-12, 0)] and index[2:5] == rows[2:5]
    with pytest.raises(IndexError):
        index[12]
    assert list(index.where(row.name in ("c03", "c11") for row in rows)) == [rows[3], rows[5]]
    assert {number: list(own) for number, own in index.by_shard().items()} == {
        number: rows[4 * number :][:4] for number in range(3)
    }
    assert not index.where([False] * 12) and index.where([False] * 12).by_shard() == {}


def test_rows_of_an_index_in_another_order_are_found_by_shard(folder):
    rows = list(shard_index.read(folder))[::-1]
    shard_index.write_rows(ShardFolder(folder).index, rows)
    parts = shard_index.read(folder).by_shard()
    assert [*parts] == [0, 1, 2] and list(parts[1]) == rows[4:8]


def test_a_picture_that_does_not_decode_is_an_error_that_names_shard_and_clip(folder):
    reader = Reader(folder)
    sample = reader.read(reader.rows[5])
    for damaged in (b"no picture", b""):
        sample.jpegs[3] = damaged
        with pytest.raises(UserError, match=rf"00001\.tar, clip {sample.name}: .*pictures"):
            sample.images()
    assert len(sample.images(2)) == 2  # the damaged one is not among them
