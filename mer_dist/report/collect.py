"""Read a run folder into plain values for the page.

A run may have stopped anywhere, so every part may be absent: then it is None or empty. A file
that exists and cannot be parsed becomes a note on the page; it never stops the report.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import ReportConfig
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.natural_order import natural
from mer_dist.core.records import LABELED, UNLABELED, Modality
from mer_dist.crossfit import folds
from mer_dist.fusion import predictions, recipes
from mer_dist.fusion.predictions import Predictions
from mer_dist.report.collect_clips import Tables, collect_clips
from mer_dist.report.run_data import (
    Adapter,
    Confusion,
    Corpus,
    Curve,
    Disputed,
    Interval,
    Prior,
    Round,
    RunData,
    Score,
    Teacher,
    Timing,
)
from mer_dist.report.run_files import RunFiles
from mer_dist.shards import shard_index
from mer_dist.storage import parquet, quarantine, timings
from mer_dist.storage.files import read_json, read_marker
from mer_dist.storage.run_folder import AdapterFolder, RoundFolder, Run, ShardFolder


def collect(run_folder: Path, clips: int | None = None, sound: str | None = None) -> RunData:
    """Read the run.

    Args:
        clips, sound: in place of ``report.clips`` and ``report.sound``.

    Raises:
        UserError: there is no such folder.
    """
    run = Run(run_folder)
    if not run.folder.is_dir():
        raise UserError(f"{run.folder}: no such run folder; give the folder named by run.folder")
    reader = RunFiles(run)
    config = reader.read(run.config, lambda _: configuration.of_run(run))
    settings = config.report if config else ReportConfig()
    settings = ReportConfig(
        clips=settings.clips if clips is None else clips, sound=settings.sound if sound is None else sound
    )
    order = config.corpus.labels if config else []
    corpus = reader.read(ShardFolder(run.shards).index, lambda path: _corpus(path, order))
    truth = dict(corpus.truth) if corpus else {}
    if config is not None and config.fuse.labels:
        truth.update(reader.read(Path(config.fuse.labels), lambda path: _labels(path, config)) or {})
    tables = [
        (path, table)
        for path in predictions.all_of(run)
        if (table := reader.read(path, predictions.read)) is not None
    ]
    stats, remarks = reader.read(ShardFolder(run.shards).stats, _statistics) or (None, {})
    adapters = reader.each([one.history for one in run.adapters()], _adapter)
    scores = _scores(reader, tables, truth, config.folds.group if config else "")
    reader.notes += recipes.stale_lines(run, config)
    return RunData(
        name=run.folder.resolve().name,
        config_text=reader.read(run.config, lambda path: path.read_text(encoding="utf-8")),
        corpus=corpus,
        stats=stats,
        problems=reader.read(run.quarantine, quarantine.read) or [],
        remarks=remarks,
        adapters=adapters,
        rounds=reader.each([one.folder for one in run.rounds()], _round),
        scores=scores,
        confusion=_confusion(tables, truth),
        test_confusion=_test_confusion(scores, tables),
        clips=collect_clips(reader, config, settings, tables, truth, corpus),
        prior=_prior(reader, tables, truth),
        teachers=reader.read(run.vote.prior, _teachers) or [],
        disputed=reader.read(run.vote.disputed, _disputed) or [],
        consensus=config.self_train.teachers if config else [],
        timings=_timings(reader),
        answers=reader.read(run.answer, _rows_of_csv),
        notes=reader.notes,
    )


def _corpus(path: Path, order: list[str]) -> Corpus:
    table = parquet.read(path, ["name", "shard", "split", "label", "missing", "duration"])
    names, shards, splits, labels, absent, seconds = (column.to_pylist() for column in table.columns)
    counts: dict[str, Counter[str]] = {}
    missing: dict[str, Counter[str]] = {}
    for split, label, modalities in zip(splits, labels, absent, strict=True):
        counts.setdefault(split, Counter())[label or ""] += 1
        missing.setdefault(split, Counter()).update(modalities or [])
    unstored = Counter((shard_index.unstored(path.parent) or {}).values())
    if lost := unstored[UNLABELED]:
        counts.setdefault(UNLABELED, Counter())[""] += lost
        missing.setdefault(UNLABELED, Counter()).update(dict.fromkeys(Modality, lost))
    found = {label for per_label in counts.values() for label in per_label if label}
    return Corpus(
        labels=[label for label in order if label in found] + sorted(found - set(order)),
        counts=counts,
        missing=missing,
        unstored=unstored,
        seconds=sum(duration or 0.0 for duration in seconds),
        shards=len({*shards}),
        truth={
            name: label
            for name, label, split in zip(names, labels, splits, strict=True)
            if split == LABELED and label
        },
        shard_of={
            name: shard
            for name, shard, modalities in zip(names, shards, absent, strict=True)
            if len(modalities or ()) < len(Modality)
        },
    )


def _statistics(path: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Counts of the shards, and separately every remark with the names of its clips."""
    stats = dict(read_json(path))
    # Shards of an earlier version have no remarks.
    found = stats.pop("remarks", {})
    return stats, {str(kind): [str(name) for name in remark["names"]] for kind, remark in found.items()}


def _labels(path: Path, config: Config) -> dict[str, str]:
    from mer_dist.features.join import read_labels

    found, _ = read_labels(path, config.corpus.labels, config.corpus.encoding, tell=False)
    return {name: label for name, label in found.items() if label is not None}


def _rows_of_csv(path: Path) -> int:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON of a diverged training has NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _adapter(path: Path) -> Adapter:
    history, folder = read_json(path), AdapterFolder(path.parent)
    epochs = history["epochs"]

    def curve(key: str) -> Curve:
        return [_number(epoch.get(key)) for epoch in epochs]

    return Adapter(
        extractor=folder.extractor,
        variant=folder.variant,
        train_loss=curve("train_loss"),
        validation_loss=curve("validation_loss"),
        validation_waf=curve("validation_waf"),
        best_epoch=history.get("best_epoch"),
        held_out=history.get("held_out") != 0,
    )


def _round(folder: Path) -> Round:
    own = RoundFolder(folder)
    folds = read_json(own.curves)["folds"] if own.curves.exists() else []

    def all_of(key: str) -> list[Curve]:
        return [[_number(value) for value in fold[key]] for fold in folds if fold.get(key)]

    return Round(
        number=own.number,
        train_loss=all_of("train_loss"),
        waf=all_of("waf"),
        pseudo_labeled=_lent(own.pseudo_label_log) if own.pseudo_label_log.exists() else None,
    )


def _lent(path: Path) -> int:
    """Number of unlabelled clips that the models of at least one fold trained on."""
    rows = parquet.read(path, ["name", "selected"])
    return len(rows.filter(rows["selected"])["name"].unify_dictionaries().unique())


def _scores(reader: RunFiles, tables: Tables, truth: dict[str, str], pattern: str) -> list[Score]:
    """The saved scores if they match these predictions, otherwise out-of-fold values.

    Args:
        pattern: ``folds.group``.
    """
    folders = {reader.run.linear_probes.folder: "probe", reader.run.vote.folder: "vote"}
    kinds = {table.title: folders.get(path.parent, "round") for path, table in tables}
    rows = []
    for _, table in tables:
        true, answer = _judged(table, truth)
        if len(true):
            rows.append(
                Score(
                    title=table.title,
                    kind=kinds[table.title],
                    oof=metrics.waf(true, answer),
                    oof_interval=metrics.waf_interval(true, answer, groups=_groups(table, truth, pattern)),
                    oof_clips=len(true),
                )
            )
    saved = reader.read(reader.run.scores, _saved_scores)
    if not saved:
        return rows
    now = {row.title: row.oof for row in rows}
    for row in saved:
        row.kind = kinds.get(row.title, "")
        before, current = row.oof, now.get(row.title)
        if before is not None and current is not None and abs(before - current) > 1e-4:
            reader.notes.append(
                f"scores.json is of other predictions ({row.title}: {100 * before:.2f}, now "
                f"{100 * current:.2f}) and is left out; run mer-dist score again"
            )
            return rows
    return saved


def _saved_scores(path: Path) -> list[Score]:
    def interval(value: Any) -> Interval:
        edges = [_number(edge) for edge in value or ()]
        low, high = edges if len(edges) == 2 else (None, None)
        return None if low is None or high is None else (low, high)

    def count(value: Any) -> int | None:
        number = _number(value)
        return None if number is None else int(number)

    return [
        Score(
            title=str(row["title"]),
            oof=_number(row.get("oof_waf")),
            oof_interval=interval(row.get("oof_interval")),
            test=_number(row.get("waf")),
            test_interval=interval(row.get("interval")),
            oof_clips=count(row.get("oof_clips")),
            test_clips=count(row.get("clips")),
            unanswered=count(row.get("unanswered")),
            unanswered_names=[str(name) for name in row.get("unanswered_names") or ()],
            confusion=row.get("confusion"),
        )
        for row in read_json(path)
    ]


def _judged(table: Predictions, truth: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted label indices of the labelled clips whose truth is known."""
    index = {label: row for row, label in enumerate(table.labels)}
    pairs = [
        (index[truth[name]], answer)
        for name, labeled, answer in zip(table.names, table.labeled, table.answer, strict=True)
        if labeled and truth.get(name) in index
    ]
    true, answer = np.array(pairs, dtype=int).reshape(-1, 2).T
    return true, answer


def _groups(table: Predictions, truth: dict[str, str], pattern: str) -> list[str] | None:
    """The group of each clip of :func:`_judged` by ``folds.group``; None without it."""
    if not pattern:
        return None
    labeled = (name for name, own in zip(table.names, table.labeled, strict=True) if own)
    names = (name for name in labeled if truth.get(name) in table.labels)
    return [folds.group_of(name, pattern) or name for name in names]


def _confusion(tables: Tables, truth: dict[str, str]) -> Confusion | None:
    for _, table in reversed(tables):
        true, answer = _judged(table, truth)
        if len(true):
            counts = metrics.confusion(true, answer, len(table.labels))
            return Confusion(title=table.title, labels=table.labels, counts=counts.tolist())
    return None


def _test_confusion(scores: list[Score], tables: Tables) -> Confusion | None:
    """Of the last row that was scored against a truth file."""
    labels_of = {table.title: table.labels for _, table in tables}
    for row in reversed(scores):
        counts, labels = np.array(row.confusion or []), labels_of.get(row.title, [])
        if counts.size and counts.shape == (len(labels), len(labels)):
            return Confusion(title=row.title, labels=labels, counts=counts.astype(int).tolist())
    return None


def _prior(reader: RunFiles, tables: Tables, truth: dict[str, str]) -> Prior | None:
    saved = reader.read(reader.run.vote.prior, _saved_prior)
    if saved is None and not tables:
        return None
    labels = saved.labels if saved else tables[-1][1].labels
    series = list(saved.series) if saved else []
    if not saved and truth:
        counts = Counter(truth.values())
        series.append(("labelled clips", _shares([counts[label] for label in labels])))
    for path, table in tables[-1:]:
        answered = Counter(
            label
            for label, labeled in zip((table.labels[row] for row in table.answer), table.labeled, strict=True)
            if not labeled
        )
        if answered:
            source = "vote" if path == reader.run.vote.predictions else table.title
            shares = _shares([answered[label] for label in labels])
            series.append((f"answers, unlabelled clips ({source})", shares))
    remarks = saved.remarks if saved else []
    intervals = saved.intervals if saved else {}
    return Prior(labels=labels, series=series, remarks=remarks, intervals=intervals) if series else None


def _saved_prior(path: Path) -> Prior:
    saved = read_json(path)
    labels = [str(label) for label in saved["labels"]]
    series = [("labelled clips", saved.get("labeled"))]
    estimated = saved.get("estimated") or {}
    for name in sorted(estimated, reverse=True):
        series.append((f"estimate, {name.upper()}", estimated[name]))
    intervals = {
        f"estimate, {name.upper()}": [(float(low), float(high)) for low, high in zip(*edges, strict=True)]
        for name, edges in (saved.get("intervals") or {}).items()
    }
    remarks = []
    for key in ("origin", "tried", "applied", "decided_by", "reason", "answered_by"):
        value = saved.get(key)
        if isinstance(value, list):
            series.append((key, value))
        elif value not in (None, ""):
            shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            remarks.append(f"{key.replace('_', ' ')}: {shown}")
    return Prior(
        labels=labels,
        remarks=remarks,
        intervals={name: edges for name, edges in intervals.items() if len(edges) == len(labels)},
        series=[
            (name, _shares(shares))
            for name, shares in series
            if shares is not None and len(shares) == len(labels)
        ],
    )


def _teachers(path: Path) -> list[Teacher]:
    return [
        Teacher(
            name=str(name),
            labeled=int(told["labeled"]),
            unlabeled=int(told["unlabeled"]),
            weight=float(told["weight"]),
        )
        for name, told in (read_json(path).get("teachers") or {}).items()
    ]


def _disputed(path: Path) -> list[Disputed]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            Disputed(**{field.name: row[field.name] for field in fields(Disputed)})
            for row in csv.DictReader(file)
        ]


def _shares(values: list[float]) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def _timings(reader: RunFiles) -> list[Timing]:
    """One row for each folder with a marker, in the order of the stages: the work of all starts."""
    run, none = reader.run, timings.Total(seconds=0.0, clips=0, ended="")
    spent = reader.read(run.timings("", 0).parent, lambda _: timings.by_part(run)) or {}
    folders_of = [
        ("shard", [run.shards]),
        ("finetune", [one.folder for one in run.adapters()]),
        ("extract", run.feature_sets()),
        ("fuse", [run.linear_probes.folder]),
        ("fuse", [one.folder for one in run.rounds()]),
        ("vote", [run.vote.folder]),
    ]
    rows = []
    for stage, folders in folders_of:
        for folder in sorted(folders, key=lambda path: natural(str(path))):
            run_data = read_marker(folder)
            if run_data is None:
                continue
            own = spent.get(run.relative(folder), none)
            seconds, clips = own.seconds or None, own.clips or _number(run_data.get("clips"))
            rows.append(
                Timing(
                    stage=stage,
                    part=" / ".join(folder.relative_to(run.folder).parts[1:]),
                    seconds=seconds,
                    clips=None if clips is None else int(clips),
                    made_at=own.ended,
                    fingerprint=str(run_data.get("fingerprint", "")),
                )
            )
    return rows
