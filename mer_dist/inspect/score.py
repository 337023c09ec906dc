"""The result table. This is the only code that may read the truth of the unlabelled clips."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError, reading
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.log import logger
from mer_dist.core.records import LABELED
from mer_dist.core.text_table import aligned
from mer_dist.corpus import cells
from mer_dist.corpus import table as csv_table
from mer_dist.crossfit import folds
from mer_dist.features import join
from mer_dist.fusion import predictions, recipes
from mer_dist.fusion.predictions import Predictions
from mer_dist.interop.answers import ANSWERS
from mer_dist.shards import shard_index
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

SHOWN = 3
#: Clips without an answer that a row names.
NAMED = 20
#: The label index of a clip without an answer: no class, so it is wrong.
NO_ANSWER = -1


def score(run_folder: Path, truth_csv: Path | None = None) -> list[dict]:
    """Write the rows of :func:`scored` to ``scores.json`` and return them.

    Raises:
        UserError: as there.
    """
    rows = scored(run_folder, truth_csv)
    files.write_json(Run(run_folder).scores, rows)
    return rows


def scored(run_folder: Path, truth_csv: Path | None = None) -> list[dict]:
    """Score every prediction file of a run; writes nothing.

    A row has ``title``, ``file``, ``oof_waf`` and ``oof_interval`` (on the ``oof_clips`` labelled
    clips, out of fold), with a truth file also ``waf`` and ``interval`` (on its ``clips`` that are not
    labelled here; ``unanswered`` of them have no answer and count as wrong, as in any scorer;
    ``unanswered_names`` are the first of these, ``confusion`` counts the others by truth and answer), all
    scores in [0, 1], and ``helped``: whether it beats the step before it (None if there is no such step).

    Args:
        truth_csv: ``name,discrete`` or ``name,label``; None: only out-of-fold values.

    Raises:
        UserError: there is no run or no prediction, or the truth file does not match them.
    """
    run = Run(run_folder)
    if not run.config.exists():
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
    config = configuration.of_run(run)
    paths = predictions.all_of(run)
    if not paths:
        raise UserError(f"{run.folder}: there are no predictions yet; run fuse first")
    _check_fresh(config, run)
    voted = predictions.voted(run)
    labeled = {name: label for name, label in join.labels_of(config, run)[0].items() if label}
    truth = _read_truth(truth_csv, config.corpus.labels) if truth_csv else {}
    if truth_csv:
        _check_truth(run, truth_csv, truth, voted)
    known = labeled.keys() | _lost_labeled(run).keys()
    asked = {name: label for name, label in truth.items() if name not in known}
    _tell_unused(truth_csv, truth.keys() - asked.keys(), truth, labeled)
    rows: list[dict] = []
    parts: _Parts | None = None
    for path in paths:
        found = predictions.read(path)
        if parts is None or not parts.of(found):
            parts = _Parts.make(found, labeled, asked, config.folds.group)
        row = {"title": found.title, "file": run.relative(path)}
        row |= _judge(found, parts.labeled, {}, "oof_")
        if parts.asked.rows.size:
            # With vote.names, answer.csv names clips that are not fused, too.
            more = voted if path == run.vote.predictions else {}
            row |= _judge(found, parts.asked, more, "")
        rows.append(row)
    if truth_csv and not any("waf" in row for row in rows):
        raise UserError(f"{truth_csv}: it names none of the unlabelled clips of {run.folder}")
    _compare(run, rows)
    _note_answering(run, rows)
    return rows


def _check_fresh(config: Config, run: Run) -> None:
    """Log what is stale: its scores belong to its former inputs.

    Raises:
        UserError: the labels are not those used in training, so out-of-fold scores would mix both.
    """
    found = recipes.stale(config, run)
    if recipes.labels_changed(config, run, found):
        raise UserError(
            f"{config.fuse.labels or run.shards}: the labels, or how they are split into folds, are not those "
            f"that the predictions of {run.folder} were learned from, and cannot be scored together; run fuse, "
            "or restore the labels"
        )
    for one in found:
        logger.warning("%s", one)
    if how := predictions.edited(run):
        logger.warning("%s differs from the vote's answer, which is scored: %s", run.answer, how)


def _check_truth(run: Run, path: Path, truth: dict[str, str], answers: dict[str, str]) -> None:
    """
    Raises:
        UserError: it is the answer of this run, which has the columns of a truth.
    """
    own = [answer for answer in (run.answer, run.vote.answer) if answer.exists()]
    content = Path(path).read_bytes()
    if any(content == answer.read_bytes() for answer in own):
        raise UserError(f"{path}: this is the answer of {run.folder}, not the truth, and would score 100")
    if truth.keys() & answers.keys() and all(answers.get(name) == label for name, label in truth.items()):
        logger.warning(
            "%s: it has the run's answer for every clip; if it was made from the answer, its scores say nothing",
            path,
        )


def _tell_unused(
    path: Path | None, unused: Collection[str], truth: dict[str, str], labeled: dict[str, str]
) -> None:
    """Log which rows of the truth are ignored: those of labelled clips, which are scored out of fold."""
    if not unused:
        return
    others = sorted(name for name in unused if labeled.get(name, truth[name]) != truth[name])
    against = f"; {len(others)} of them have another label here, as {others[0]}" if others else ""
    logger.warning(
        "%s: %d rows are of labelled clips and are not used: %s%s%s",
        path,
        len(unused),
        ", ".join(sorted(unused)[:SHOWN]),
        ", …" * (len(unused) > SHOWN),
        against,
    )


def _read_truth(path: Path, labels: list[str]) -> dict[str, str]:
    read = csv_table.read(path, ("name",))
    if read.bad:
        logger.warning(
            "%s: %d rows cannot be read, and their clips are not scored; the first: %s",
            path,
            len(read.bad),
            next(iter(read.bad.values())),
        )
    column = cells.label_column(path, read.columns)
    answers = [other for other in read.columns if other.startswith(ANSWERS)]
    if answers:
        logger.warning(
            "%s: column %s is not read: the answers of the run are scored, against %s; other answers are compared by "
            "import-answers",
            path,
            ", ".join(map(repr, answers)),
            repr(column),
        )
    cells.tell_unused(path, read.columns, ("name", column, *answers))
    truth, known, without = {}, cells.Labels(labels, read.file), []
    for name, row in read.rows.items():
        if not known.cell(row[column]):
            without.append(name)
            continue
        label, why = known.read(row[column])
        if label is None:
            raise UserError(f"{path}: line {read.lines[name]}: {why}")
        truth[name] = label
    known.tell()
    if without:
        logger.warning(
            "%s: %d clips have no label there and are not scored; for example %s",
            path,
            len(without),
            ", ".join(without[:SHOWN]),
        )
    return truth


def _lost_labeled(run: Run) -> dict[str, str]:
    """Labelled clips that could not be stored: they have no prediction and need no answer."""
    if not run.shards.exists():
        return {}
    splits = shard_index.unstored(run.shards) or {}
    return {name: split for name, split in splits.items() if split == LABELED}


@dataclass(frozen=True)
class _Part:
    """Clips of one split whose truth is known, with a prediction or not."""

    #: (n,) rows of the predictions, of ``own`` in this split.
    rows: np.ndarray
    own: int
    #: Names that have no row there.
    others: list[str]
    #: (n + others,): index of the label.
    true: np.ndarray
    #: Of each of them: the clips of a group are drawn together; None: each by itself.
    groups: list[str] | None

    @classmethod
    def make(cls, found: Predictions, own: np.ndarray, truth: dict[str, str], pattern: str) -> _Part:
        """
        Args:
            own: (N,) bool, the clips of this split.
            truth: name -> label of all that are scored.
            pattern: ``folds.group``.
        """
        index = {label: row for row, label in enumerate(found.labels)}
        rows = [row for row in np.flatnonzero(own).tolist() if found.names[row] in truth]
        names = [found.names[row] for row in rows]
        others = sorted(truth.keys() - set(names))
        names += others
        true = np.array([index[truth[name]] for name in names], int)
        groups = [folds.group_of(name, pattern) or name for name in names] if pattern else None
        return cls(np.array(rows, int), int(own.sum()), others, true, groups)


@dataclass(frozen=True)
class _Parts:
    """Both splits of the clips of a prediction file; most files of a run have the same clips."""

    predicted: Predictions
    labeled: _Part
    asked: _Part

    @classmethod
    def make(cls, found: Predictions, labeled: dict[str, str], asked: dict[str, str], pattern: str) -> _Parts:
        known = {name: labeled[name] for name in found.names if name in labeled}
        return cls(
            found,
            _Part.make(found, found.labeled, known, pattern),
            _Part.make(found, ~found.labeled, asked, pattern),
        )

    def of(self, found: Predictions) -> bool:
        """Whether ``found`` has the same clips."""
        ours = self.predicted
        same = ours.names == found.names and ours.labels == found.labels
        return same and np.array_equal(ours.labeled, found.labeled)


def _judge(predicted: Predictions, part: _Part, more: dict[str, str], key: str) -> dict:
    """WAF, its interval and the number of clips, over all of ``part``, with an answer or not.

    Args:
        more: answers of other clips.
    """
    if not part.true.size:
        return {}
    if len(part.rows) < part.own:
        logger.info("%s: the truth of %d of %d clips is known", predicted.title, len(part.rows), part.own)
    index = {label: row for row, label in enumerate(predicted.labels)}
    beside = [index.get(more.get(name, ""), NO_ANSWER) for name in part.others]
    without = [name for name, row in zip(part.others, beside, strict=True) if row == NO_ANSWER]
    if without:
        logger.warning(
            "%s: %d of %d clips with a known truth have no answer and count as wrong; for example %s",
            predicted.title,
            len(without),
            len(part.true),
            ", ".join(without[:SHOWN]),
        )
    answer = np.concatenate([predicted.answer[part.rows], np.array(beside, int)])
    judged = {
        f"{key}waf": metrics.waf(part.true, answer),
        f"{key}interval": list(metrics.waf_interval(part.true, answer, groups=part.groups)),
        f"{key}clips": len(part.true),
        f"{key}unanswered": len(without),
    }
    if not key:
        answered = answer != NO_ANSWER
        counts = metrics.confusion(part.true[answered], answer[answered], len(predicted.labels))
        judged |= {"unanswered_names": without[:NAMED], "confusion": counts.tolist()}
    return judged


def _compare(run: Run, rows: list[dict]) -> None:
    """Set ``helped`` of each step of the recipe: whether it beats the one before it.

    Fine-tuned features are compared with the frozen ones of the same extractor, AGT with the best
    linear probe (including that of all sets), a round with the one before, the vote with the last.
    """
    of_probes = {*map(run.relative, run.linear_probes.all_predictions())}
    linear_probes = [row for row in rows if row["file"] in of_probes]
    for row in rows:
        row["helped"] = None
        if row in linear_probes:
            before = [other for other in linear_probes if other["file"] == _frozen(row["file"])]
        elif row["file"] == run.relative(run.round(0).predictions):
            before = linear_probes
        else:
            before = rows[rows.index(row) - 1 : rows.index(row)]
        if before:
            row["helped"] = _figure(row) > max(map(_figure, before))


def _note_answering(run: Run, rows: list[dict]) -> None:
    """Mark the row that answers, where it is another than the vote."""
    with reading(run.vote.prior, predictions.AGAIN):
        prior = files.read_json(run.vote.prior) if run.vote.prior.exists() else {}
        title = prior.get("answered_by_row", {}).get("title")
    for row in rows:
        if row["title"] == title:
            row["answers"] = True


def _frozen(file: str) -> str:
    """The linear probe of the same extractor's frozen features; empty if ``file`` is not of tuned ones."""
    path = Path(file)
    try:
        own = FeatureSetId.parse(path.stem)
    except UserError:  # That of all sets side by side, or a foreign file.
        return ""
    return str(path.with_stem(own.name)) if own.is_tuned else ""


def _figure(row: dict) -> float:
    return row.get("waf", row.get("oof_waf", 0.0))


def table(rows: list[dict]) -> str:
    """The rows as aligned text, in percent, each with its 95 % interval, and the numbers of clips."""
    lines = [("", "out of fold", "unlabelled truth", "")]
    for row in rows:
        notes = [f"{row['unanswered']} without an answer"] if row.get("unanswered") else []
        notes += ["no gain"] if row["helped"] is False else []
        notes += ["this row is answer.csv"] if row.get("answers") else []
        lines.append(
            (
                row["title"],
                _cell(row, "oof_waf", "oof_interval"),
                _cell(row, "waf", "interval"),
                ", ".join(notes),
            )
        )
    counts = [
        f"{what} n = {max(row[key] for row in rows if key in row)}"
        for key, what in (("oof_clips", "out of fold"), ("clips", "unlabelled truth"))
        if any(key in row for row in rows)
    ]
    return "\n".join(["; ".join(["WAF in %, 95 % bootstrap interval", *counts]), aligned(lines)])


def _cell(row: dict, key: str, interval: str) -> str:
    if key not in row:
        return "-"
    low, high = row[interval]
    return f"{100 * row[key]:6.2f}  ({100 * low:.2f} to {100 * high:.2f})"
