"""What is in quarantine, for people and for programs: reasons by count, rows, names."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.core.records import Problem
from mer_dist.core.text_table import aligned
from mer_dist.storage import quarantine
from mer_dist.storage.quarantine import SCHEMA, Kind
from mer_dist.storage.run_folder import Run

#: Number of names beside a reason.
SHOWN = 3
FORMS = {
    "rows": "every row, one per line",
    "names": "only the clip names, one per line, each once",
    "csv": "every row as CSV, for a table program or pandas",
    "json": "every row as JSON",
}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--stage", help="only what this stage left out, as shard")
    parser.add_argument("--lost", help="only where this was lost, as clip, video or label")
    parser.add_argument("--reason", help="only reasons that contain this text, in capitals or not")
    form = parser.add_mutually_exclusive_group()
    for name, text in FORMS.items():
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=text)


def text(folder: Path, stage: str | None, lost: str | None, reason: str | None, form: str | None) -> str:
    """The matching problems of a run, as text in one of :data:`FORMS`; None: reasons by count.

    Raises:
        UserError: the folder has no run, or its quarantine has no such stage or loss.
    """
    run = Run(folder)
    if not (run.config.exists() or run.quarantine.exists()):
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
    rows = quarantine.read(run.quarantine)
    for key, wanted in (("stage", stage), ("lost", lost)):
        known = sorted({getattr(row, key) for row in rows})
        if wanted is not None and rows and wanted not in known:
            there = ", ".join(known)
            raise UserError(f"--{key} {wanted}: not in quarantine; there is: {there}")
    if not rows and form is None:
        return "nothing is in quarantine"
    rows = [
        row
        for row in rows
        if stage in (None, row.stage)
        and lost in (None, row.lost)
        and (reason or "").casefold() in row.reason.casefold()
    ]
    return {None: _counts, "rows": _rows, "names": _names, "csv": _csv, "json": _json}[form](rows)


def show(text: str) -> None:
    """Print it, to a reader that may leave before the end, as ``head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The rest of the buffer would raise once more at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _counts(rows: list[Problem]) -> str:
    found = quarantine.kinds(rows)
    clips = len({row.name for row in rows})
    lines = [[f"{len(kind.names):,}", kind.stage, kind.lost, _reason(kind)] for kind in found]
    table = aligned([["count", "stage", "lost", "reason"], *lines])
    return f"{len(rows):,} problems of {clips:,} clips\n{table}"


def _reason(kind: Kind) -> str:
    more = ", …" if len(kind.names) > SHOWN else ""
    return f"{quarantine.shortened(kind.reason)} ({', '.join(kind.names[:SHOWN])}{more})"


def _rows(rows: list[Problem]) -> str:
    return aligned([[row.stage, row.name, row.lost, row.reason] for row in rows])


def _names(rows: list[Problem]) -> str:
    return "\n".join(sorted({row.name for row in rows}))


def _csv(rows: list[Problem]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue().rstrip("\n")


def _json(rows: list[Problem]) -> str:
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=1)
