"""Parquet files are read as they were written, and not if they would fill the memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_dist.core.errors import UserError
from mer_dist.shards import shard_index
from mer_dist.storage import parquet

TABLE = pa.table(
    {
        "name": [f"c{row}" for row in range(3000)],
        "suffixes": [["flac", "json"]] * 3000,
        "label": pa.array(["sad", None, "happy"] * 1000).dictionary_encode(),
        "p": np.arange(3000.0),
    },
    metadata={"title": "fused"},
)


def test_a_table_comes_back_with_its_types_and_metadata_over_many_batches(tmp_path):
    pq.write_table(TABLE, tmp_path / "a", row_group_size=1700)
    made = parquet.read(tmp_path / "a")
    assert made.to_pydict() == TABLE.to_pydict() and made.schema.metadata == {b"title": b"fused"}
    assert made["label"].type == TABLE["label"].type
    two = parquet.read(tmp_path / "a", ["p", "suffixes"])
    assert two.column_names == ["p", "suffixes"]
    assert two.to_pydict() == TABLE.select(["p", "suffixes"]).to_pydict()
    pq.write_table(TABLE[:0], tmp_path / "b")
    none = parquet.read(tmp_path / "b")
    assert len(none) == 0 and none.schema == made.schema and none.schema.metadata == made.schema.metadata
    wanted = pa.schema([("p", pa.float32()), ("label", pa.string())])
    assert parquet.read(tmp_path / "a", schema=wanted).schema.equals(wanted)
    with pytest.raises(KeyError):
        parquet.read(tmp_path / "a", ["gone"])


@pytest.mark.slow
def test_what_the_footer_owns_up_to_is_refused_before_it_is_read(tmp_path):
    path, zeros = tmp_path / "index.parquet", pa.table({"name": np.zeros(1 << 23)})
    with pq.ParquetWriter(path, zeros.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(parquet.BYTES // zeros.nbytes + 1):
            writer.write_table(zeros)
    assert path.stat().st_size < 4 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match="index.parquet: .*unpacks to more than 2 GiB.*run shard"):
        shard_index.read_rows(path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_rows_that_take_no_room_in_the_file_are_counted(tmp_path):
    nothing = pa.table({"name": pa.nulls(parquet.ROWS + 1)})
    pq.write_table(nothing, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="10,000,000 rows"):
        parquet.read(tmp_path / "a")


def test_one_row_with_many_numbers_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Equal numbers take no room in the file."""
    monkeypatch.setattr(parquet, "BYTES", 20 << 20)
    pq.write_table(pa.table({"p": [np.zeros(4 << 20)]}), tmp_path / "a", compression="zstd")
    assert (tmp_path / "a").stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="unpacks to more"):
        parquet.read(tmp_path / "a")
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.slow
def test_one_long_text_again_and_again_is_refused_while_it_is_unpacked(tmp_path, monkeypatch):
    """The footer counts the text once."""
    monkeypatch.setattr(parquet, "BYTES", 20 << 20)
    pq.write_table(pa.table({"name": ["x" * 200_000] * 1_000}), tmp_path / "a")
    metadata = pq.read_metadata(tmp_path / "a")
    assert sum(metadata.row_group(row).total_byte_size for row in range(metadata.num_row_groups)) < 1 << 20
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    with pytest.raises(ValueError, match="unpacks to more"):
        parquet.read(tmp_path / "a")
    pa.set_memory_pool(before)
    assert pool.max_memory() < 4 * parquet.BYTES
