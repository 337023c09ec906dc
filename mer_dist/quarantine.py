"""quarantine.parquet: every clip or modality that could not be used, with stage and reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist import parquet
from mer_dist.errors import reading
from mer_dist.files import atomic
from mer_dist.records import Problem

SCHEMA = pa.schema([(field, pa.string()) for field in ("stage", "name", "lost", "reason")])


def read(path: Path) -> list[Problem]:
    """All rows, or none if there is no such file yet."""
    if not Path(path).exists():
        return []
    with reading(path, "delete it and run again"):
        table = parquet.read(path, schema=SCHEMA)
        if any(column.null_count for column in table.columns):
            raise ValueError("fields are empty")
        return [Problem(**row) for row in table.to_pylist()]


def replace(path: Path, stage: str, problems: Iterable[Problem]) -> None:
    """Replace the rows of ``stage``; the rows of other stages stay.

    Called once the stage knows of all its problems; calling it twice with them changes nothing.
    """
    rows = [problem for problem in read(path) if problem.stage != stage] + list(problems)
    rows.sort(key=lambda problem: (problem.stage, problem.name, problem.lost))
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), temporary)
