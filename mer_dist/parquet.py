"""Parquet files of a run folder, read within bounds: a few bytes can unpack to more than the memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Bytes in memory and rows of the largest file that is read: room for a million clips in five folds.
BYTES, ROWS = 2 << 30, 10_000_000
#: Rows that are unpacked at a time. Columns that are coded in memory bring their dictionary each time.
_PLAIN, _CODED = 1024, 65536
#: Bytes that a number takes in memory, however small it is in the file.
_VALUE = 8


def read(path: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """The table in a file, with the metadata of the file.

    Args:
        columns: the only ones to read, in this order.
        schema: what they are to be; its columns are read.

    Raises:
        ValueError: it unpacks to more than :data:`BYTES` or :data:`ROWS`; found by what its footer tells, or,
            of what stands there once for many rows, when so much has been unpacked. A footer made to lie
            can have twice as much unpacked, or whatever one row holds.
        Exception: whatever pyarrow raises on a file that is not whole or lacks a column.
    """
    names = schema.names if schema is not None else columns
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        told = [max(chunk.total_uncompressed_size, _VALUE * chunk.num_values) for chunk in chunks]
        _check(sum(told), sum(group.num_rows for group in groups))
        coded = any(pa.types.is_dictionary(kind) for kind in file.schema_arrow.types)
        # No value is longer than all that its column holds in the file.
        at_once = max(1, min(_CODED if coded else _PLAIN, BYTES // max(told, default=1)))
        batches, size, rows = [], 0, 0
        for batch in file.iter_batches(at_once, columns=names):
            size, rows = size + batch.nbytes, rows + len(batch)
            _check(size, rows)
            batches.append(batch)
        table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
        table = table.select(names) if names else table
        if schema is not None:
            return table.cast(schema)
        return table.replace_schema_metadata(file.schema_arrow.metadata)


def _check(size: int, rows: int) -> None:
    if size > BYTES or rows > ROWS:
        raise ValueError(f"it unpacks to more than {BYTES >> 30} GiB or {ROWS:,} rows")
