"""Parquet files of a run folder, read within limits: a few bytes can unpack to more than fits in memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Limits of a file that is read, in bytes in memory and rows: room for a million clips in five folds.
BYTES, ROWS = 2 << 30, 10_000_000
#: Rows unpacked at a time. Dictionary-encoded columns bring their dictionary each time.
_PLAIN, _CODED = 1024, 1 << 20
#: Bytes of a number in memory, however few it takes in the file.
_VALUE = 8


def read(path: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """The table in a file, with the metadata of the file.

    Args:
        columns: the only columns to read, in this order.
        schema: the expected schema; its columns are read.

    Raises:
        ValueError: it unpacks to more than :data:`BYTES` or :data:`ROWS`; found from its footer, or, for
            values stored once for many rows, while unpacking. A forged footer can cause twice as much to
            be unpacked, or whatever one row holds.
        Exception: whatever pyarrow raises on a file that is incomplete or lacks a column.
    """
    names = schema.names if schema is not None else columns
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        stated = sum(max(chunk.total_uncompressed_size, _VALUE * chunk.num_values) for chunk in chunks)
        _check(stated, sum(group.num_rows for group in groups))
        at_once = max(1, min(_PLAIN if _is_plain(file) else _CODED, BYTES // _longest(file, groups)))
        batches, size, rows = [], 0, 0
        for batch in file.iter_batches(at_once, columns=names):
            size, rows = size + batch.nbytes, rows + len(batch)
            _check(size, rows)
            batches.append(batch)
        table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
        table = table.select(names) if names else table
        if schema is not None:
            # Casting imports all of pyarrow.compute, an eighth of the time of verify.
            same = table.schema.equals(schema)
            return table.replace_schema_metadata(schema.metadata) if same else table.cast(schema)
        return table.replace_schema_metadata(file.schema_arrow.metadata)


def _is_plain(file: pq.ParquetFile) -> bool:
    return not any(pa.types.is_dictionary(kind) for kind in file.schema_arrow.types)


def _longest(file: pq.ParquetFile, groups: list[pq.RowGroupMetaData]) -> int:
    """An upper bound on the bytes of one value in memory.

    Numbers and dictionary-encoded strings have a fixed size. No list or other string is longer than its
    column in the file.
    """
    coded = {field.name for field in file.schema_arrow if pa.types.is_dictionary(field.type)}
    columns = [file.schema.column(number) for number in range(len(file.schema))]
    paths = [column.path for column in columns]
    longest = _VALUE
    for number, column in enumerate(columns):
        # If two columns share a path, one may be nested in another column.
        is_coded = column.path in coded and paths.count(column.path) == 1
        if column.max_repetition_level or (column.physical_type.endswith("BYTE_ARRAY") and not is_coded):
            chunks = [group.column(number) for group in groups]
            longest = max(
                [longest, *(max(one.total_uncompressed_size, _VALUE * one.num_values) for one in chunks)]
            )
    return longest


def _check(size: int, rows: int) -> None:
    if size > BYTES or rows > ROWS:
        raise ValueError(f"it unpacks to more than {BYTES >> 30} GiB or {ROWS:,} rows")
