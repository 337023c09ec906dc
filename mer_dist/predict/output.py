"""Predictions on disk: one file a part, and of all parts a table for people and one for programs."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.core.errors import reading
from mer_dist.core.records import Problem
from mer_dist.fusion.trained import FusedAnswers
from mer_dist.predict.predictor import Prediction
from mer_dist.storage import files, parquet

ANSWERS, ROWS = "predictions.csv", "predictions.parquet"
#: Column of a part, (K·C,) by the models of each fold of round 0; the result is without it.
BY_FOLD = "fold_predictions"
_RECORD = b"mer_dist.predict"
#: Rows of the CSV that exist as objects at a time.
_AT_ONCE = 4096


@dataclass
class Part:
    """What is known of the clips of a part."""

    table: pa.Table
    problems: list[Problem]
    #: Remark -> number of clips, though nothing of them was lost.
    remarks: Counter[str] = field(default_factory=Counter)


def table(made: Sequence[Prediction], answers: FusedAnswers) -> pa.Table:
    """The columns of ``predictions.parquet``; every clip has all of them."""
    first = made[0]
    columns = {
        "name": pa.array([one.name for one in made], pa.string()),
        "label": pa.array([one.label for one in made], pa.string()),
        "confidence": pa.array([one.confidence for one in made], pa.float64()),
    }
    for label in first.probability:
        columns[f"p_{label}"] = pa.array([one.probability[label] for one in made], pa.float64())
    columns["missing"] = pa.array([" ".join(one.missing) for one in made], pa.string())
    for name in first.alone:
        own = [max(one.alone[name].items(), key=lambda pair: pair[1], default=(None, None)) for one in made]
        columns[f"{name}_label"] = pa.array([label for label, _ in own], pa.string())
        columns[f"{name}_confidence"] = pa.array([value for _, value in own], pa.float64())
    for channel in first.gates:
        columns[f"gate_{channel}"] = pa.array([one.gates[channel] for one in made], pa.float64())
    if answers.fold_predictions is not None:
        by_clip = answers.fold_predictions.transpose(1, 0, 2).reshape(len(made), -1)
        columns[BY_FOLD] = pa.array(by_clip.tolist(), pa.list_(pa.float64()))
    return pa.table(columns)


def write_part(path: Path, part: Part, fingerprint: str) -> None:
    problems = [problem.as_values() for problem in part.problems]
    record = {"fingerprint": fingerprint, "problems": problems, "remarks": part.remarks}
    content = json.dumps(record, ensure_ascii=False).encode()
    with files.atomic(path) as temporary:
        pq.write_table(
            part.table.replace_schema_metadata({_RECORD: content}), temporary, write_page_checksum=True
        )


def is_done(path: Path, fingerprint: str) -> bool:
    """Whether there is a part that was made from this."""
    try:
        return json.loads(pq.read_metadata(path).metadata[_RECORD])["fingerprint"] == fingerprint
    except Exception:  # On damaged content the parser may raise anything; the part is computed again.
        return False


def read_parts(paths: Sequence[Path]) -> Part:
    """All parts as one.

    Raises:
        UserError: one is not readable.
    """
    tables, problems, remarks = [], [], Counter[str]()
    for path in paths:
        with reading(path, "delete it and predict again"):
            own = parquet.read(path)
            record = json.loads(own.schema.metadata[_RECORD])
            problems += [Problem(**problem) for problem in record["problems"]]
            remarks.update({str(kind): int(count) for kind, count in record["remarks"].items()})
            tables.append(own.replace_schema_metadata(None))
    return Part(pa.concat_tables(tables), problems, remarks)


def names(out: Path) -> set[str]:
    """Of the clips that have predictions there.

    Raises:
        UserError: they are not readable.
    """
    path = out / ROWS
    if not path.exists():
        return set()
    with reading(path, "delete it and predict again"):
        return {*parquet.read(path, ["name"])["name"].to_pylist()}


def write(out: Path, whole: pa.Table) -> None:
    """``predictions.parquet`` and ``predictions.csv``."""
    with files.atomic(out / ROWS) as temporary:
        pq.write_table(whole, temporary, write_page_checksum=True)
    with files.atomic(out / ANSWERS) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(whole.column_names)
        for batch in whole.to_batches(max_chunksize=_AT_ONCE):
            columns = [[_shown(value) for value in column.to_pylist()] for column in batch.columns]
            writer.writerows(zip(*columns, strict=True))


def _shown(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value


def probabilities(whole: pa.Table, labels: list[str]) -> np.ndarray:
    """(n, C)"""
    return np.stack([whole[f"p_{label}"].to_numpy() for label in labels], 1)
