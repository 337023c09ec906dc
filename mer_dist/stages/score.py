"""The result table. This is the only code that may read the truth of the unlabelled clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_dist import config as configuration
from mer_dist import files, joined, metrics, predictions
from mer_dist.corpus import table as csv_table
from mer_dist.errors import UserError
from mer_dist.layout import Run
from mer_dist.log import logger


def score(run_folder: Path, truth_csv: Path | None = None) -> list[dict]:
    """Score every prediction file of a run, write ``scores.json`` and return its rows.

    A row has ``title``, ``file``, ``oof_waf`` and ``oof_interval`` (on the labelled clips, out of
    fold), with a truth file also ``waf`` and ``interval`` (on the unlabelled clips that it
    names), all in [0, 1], and ``helped``: whether it beats the step before it (None if there is
    no such step).

    Args:
        truth_csv: ``name,discrete`` or ``name,label``; without it only out-of-fold figures.

    Raises:
        UserError: there is no run or no prediction, or the truth file does not fit them.
    """
    run = Run(run_folder)
    if not run.config.exists():
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
    config = configuration.load(run.config)
    paths = predictions.all_of(run)
    if not paths:
        raise UserError(f"{run.folder}: there are no predictions yet; run fuse first")
    labeled = {name: label for name, label in joined.labels_of(config, run)[0].items() if label}
    truth = _read_truth(truth_csv, config.corpus.labels) if truth_csv else {}
    rows = []
    for path in paths:
        told = predictions.read(path)
        row = {"title": told.title, "file": str(path.relative_to(run.folder))}
        row |= _judge(told, labeled, told.labeled, "oof_waf", "oof_interval")
        row |= _judge(told, truth, ~told.labeled, "waf", "interval")
        rows.append(row)
    if truth_csv and not any("waf" in row for row in rows):
        raise UserError(f"{truth_csv}: it names none of the unlabelled clips of {run.folder}")
    _compare(rows)
    files.write_json(run.scores, rows)
    return rows


def _read_truth(path: Path, labels: list[str]) -> dict[str, str]:
    rows = csv_table.read(path, ("name",)).rows
    truth = {name: row.get("discrete", row.get("label", "")).strip() for name, row in rows.items()}
    unknown = sorted({label for label in truth.values() if label not in labels})
    if unknown:
        shown = ", ".join(map(repr, unknown[:5]))
        raise UserError(f"{path}: labels outside corpus.labels: {shown}; they stand in its column discrete "
                        "or label")
    return truth


def _judge(told, truth: dict[str, str], mask: np.ndarray, key: str, interval: str) -> dict:
    """WAF and its interval on the clips in ``mask`` whose truth is known; empty if none is."""
    index = {label: row for row, label in enumerate(told.labels)}
    rows = [row for row in np.flatnonzero(mask) if told.names[row] in truth]
    if not rows:
        return {}
    true = np.array([index[truth[told.names[row]]] for row in rows])
    if len(rows) < mask.sum():
        logger.info("%s: the truth of %d of %d clips is known", told.title, len(rows), mask.sum())
    return {key: metrics.waf(true, told.answer[rows]),
            interval: list(metrics.waf_interval(true, told.answer[rows]))}


def _compare(rows: list[dict]) -> None:
    """Mark each step of the recipe that does not beat the one before it.

    Fine-tuned features are compared with the frozen ones of the same extractor, AGT with the best
    probe, that of all sets among them, a round with the round before it, the vote with the last round.
    """
    probes = [row for row in rows if row["file"].startswith("probes/")]
    for row in rows:
        row["helped"] = None
        frozen = row["file"].replace(f"{joined.TUNED}.parquet", ".parquet")
        if row in probes:
            before = [other for other in probes if other["file"] == frozen and other is not row]
        elif row["file"].startswith("rounds/00"):
            before = probes
        else:
            before = rows[rows.index(row) - 1 : rows.index(row)]
        if before:
            row["helped"] = _figure(row) > max(map(_figure, before))


def _figure(row: dict) -> float:
    return row.get("waf", row.get("oof_waf", 0.0))


def table(rows: list[dict]) -> str:
    """The rows as aligned text, in percent, each figure with its 95 % interval."""
    lines = [("", "out of fold", "unlabelled truth", "")]
    for row in rows:
        note = "no gain" if row["helped"] is False else ""
        lines.append((row["title"], _cell(row, "oof_waf", "oof_interval"),
                      _cell(row, "waf", "interval"), note))
    columns = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(cell.ljust(size) for cell, size in zip(line, columns, strict=True)).rstrip()
             for line in lines]
    return "\n".join(["WAF in %, 95 % bootstrap interval", *shown])


def _cell(row: dict, key: str, interval: str) -> str:
    if key not in row:
        return "-"
    low, high = row[interval]
    return f"{100 * row[key]:6.2f}  ({100 * low:.2f} to {100 * high:.2f})"
