"""Imports the answers of an outside labeller: a CSV or Parquet file ``name,label[,confidence]`` or ``name,p_<label>…``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from mer_dist.config import config as configuration
from mer_dist.core import clip_names, metrics
from mer_dist.core.errors import UserError, reading
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.log import logger
from mer_dist.core.records import Problem
from mer_dist.corpus import cells, signs, table
from mer_dist.features import join
from mer_dist.fusion import recipes, teachers
from mer_dist.storage import parquet, quarantine
from mer_dist.storage.run_folder import Run

#: How far a row's probabilities may be from a sum of one.
ROUNDED = 0.02
SHOWN, KINDS = 3, 5
LABEL = ("label", "discrete")
#: Beginnings of names of columns that hold an answer, or how sure it is.
ANSWERS = ("pred", "answer", "output", "response", "guess")
SURENESS = ("confidence", "conf", "score", "prob", "certainty", "logit", "sure")
Row = dict[str, str]


def import_answers(run: Run, name: str, path: Path) -> None:
    """Read the answers and keep them as ``teachers/<name>.parquet``; ``vote.teachers`` uses them.

    A row that cannot be used is left out and told. Without a confidence a label counts as 90 % sure; the vote
    calibrates it.

    Raises:
        UserError: the run has no configuration yet, the file is not such a table, a name occurs twice, or no row, or
            none of a clip of this run, can be used.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"teacher {name!r}: a name is letters, digits, '.', '_' and '-'")
    if not run.config.exists():
        raise UserError(
            f"{run.folder}: it has no {run.config.name}, and so no labels yet; run shard or fuse first"
        )
    config = configuration.of_run(run)
    labels = list(config.corpus.labels)
    path = Path(path)
    rows, where, columns = _rows(path)
    convert = _converter(path, columns, labels)
    found: dict[str, np.ndarray] = {}
    bad: list[Problem] = []
    for clip, row in rows.items():
        probability, why = convert(row)
        if why:
            bad.append(Problem(stage="import", name=clip, lost="answer", reason=f"{where(clip)}: {why}"))
        else:
            found[clip] = probability
    if bad:
        logger.warning(
            "%s: %d of %d rows cannot be used; the first: %s", path, len(bad), len(rows), bad[0].reason
        )
        for kind in quarantine.kinds(bad)[:KINDS]:
            logger.warning("%s: %s", path.name, kind)
    if not found:
        raise UserError(f"{path}: no row can be used; {bad[0].reason if bad else 'it has none'}")
    known = join.labels_of(config, run)[0]
    others = sorted(found.keys() - known.keys())
    if len(others) == len(found):
        raise UserError(
            f"{path}: it covers none of the {len(known)} clips of {run.folder}; for example it has {others[0]!r}"
        )
    if others:
        some = ", ".join(others[:SHOWN]) + ", …" * (len(others) > SHOWN)
        logger.warning("%s: %d rows are of no clip of this run and are left out: %s", path, len(others), some)
    names = sorted(found.keys() & known.keys())
    teachers.write(run, name, labels, names, np.stack([found[clip] for clip in names]))
    _tell(name, labels, {clip: found[clip] for clip in names}, known)
    if name not in config.vote.teachers:
        logger.info("it joins the vote where the configuration says vote.teachers: [%s]", name)
    for line in recipes.stale_lines(run):
        logger.warning("%s", line)


def _rows(path: Path) -> tuple[dict[str, Row], Callable[[str], str], list[str]]:
    """name -> its cells, how to say where they stand, and the columns.

    Raises:
        UserError: it is no table with names, or one occurs twice.
    """
    if path.suffix.lower() != ".parquet":
        read = table.read(path, ("name",))
        if read.bad:
            logger.warning(
                "%s: %d rows cannot be read; the first: %s",
                path,
                len(read.bad),
                next(iter(read.bad.values())),
            )
        return read.rows, read.location, read.columns
    with reading(path, "save it again"):
        content = parquet.read(path)
        if "name" not in content.column_names:
            raise UserError(f"{path}: it lacks the column name; it has: {', '.join(content.column_names)}")
        columns = {column: content[column].to_pylist() for column in content.column_names}
    names = [clip_names.clean(str(name)) for name in columns["name"]]
    clip_names.check(zip(names, count()), lambda row: f"{path.name} row {row}")
    found = {
        name: {column: "" if values[row] is None else str(values[row]) for column, values in columns.items()}
        for row, name in enumerate(names)
    }
    row_of = {name: row for row, name in enumerate(names)}
    return found, lambda name: f"{path.name} row {row_of[name]}", [*columns]


def _converter(path: Path, columns: list[str], labels: list[str]) -> Callable[[Row], tuple[np.ndarray, str]]:
    """From a row to probabilities (C,), and why there are none.

    Raises:
        UserError: the columns hold no answers, or those of a label are missing.
    """
    shares = {column: column[2:] for column in columns if column.startswith("p_")}
    known = cells.Labels(labels, path.name)
    named = [column for column in LABEL if column in columns]
    _check_others(
        path, [column for column in columns if column not in (*shares, *named, "name", "confidence")], named
    )
    if not shares:
        column = cells.label_column(path, columns)
        return lambda row: _of_label(row, column, known, labels)
    column_of = {}
    for column, text in shares.items():
        label, why = known.read(text)
        if label is None:
            raise UserError(f"{path}: column {column}: {why}")
        column_of[label] = column
    if absent := [label for label in labels if label not in column_of]:
        raise UserError(f"{path}: it has columns p_… and lacks those of {', '.join(absent)}")
    return lambda row: _agreeing(
        row, named, known, labels, *_of_shares([row[column_of[label]] for label in labels])
    )


def _check_others(path: Path, others: list[str], named: list[str]) -> None:
    """Refuse columns that are hardly meant to be passed over; name all others.

    Raises:
        UserError: one may hold the answers beside a label, which then is the truth, or how sure they are.
    """
    for other in others:
        if named and other.startswith(ANSWERS):
            raise UserError(
                f"{path}: it has the columns {named[0]} and {other}: keep the one that holds the labeller's answer, as "
                "label; the truth must not pass for an answer"
            )
        if other.startswith(SURENESS):
            raise UserError(
                f"{path}: column {other!r} is not read: call it confidence, with numbers from 0 to 1, or take it out"
            )
    cells.tell_unused(path, others, ())


def _agreeing(
    row: Row, named: list[str], known: cells.Labels, labels: list[str], made: np.ndarray, why: str
) -> tuple[np.ndarray, str]:
    """The probabilities, unless a label beside them is another than the most probable one."""
    text = row.get(named[0], "").strip() if named else ""
    if why or not text:
        return made, why
    label, why = known.read(text)
    most = labels[int(made.argmax())]
    if label is not None and label != most:
        why = f"its label is {label}, and the most probable one {most}"
    return made, why


def _of_label(row: Row, column: str, known: cells.Labels, labels: list[str]) -> tuple[np.ndarray, str]:
    nothing = np.full(len(labels), np.nan)
    label, why = known.read(row[column])
    if label is None:
        return nothing, why
    sure, why = (
        _number(row.get("confidence", "")) if row.get("confidence", "").strip() else (teachers.SURE, "")
    )
    if not why and 0 <= sure < 1 / len(labels):
        return (
            nothing,
            f"confidence {sure:g} is below chance among {len(labels)} labels, and would speak against its label",
        )
    if why or not 0 <= sure <= 1:
        return nothing, why or f"confidence {row['confidence']}: it must be in [0, 1], as 0.87 and not 87"
    made = np.full(len(labels), (1 - sure) / (len(labels) - 1))
    made[labels.index(label)] = sure
    return made, ""


def _of_shares(texts: list[str]) -> tuple[np.ndarray, str]:
    found = [_number(text) for text in texts]
    made = np.array([value for value, _ in found])
    if faults := [why for _, why in found if why]:
        return made, faults[0]
    if (made < 0).any() or abs(made.sum() - 1) > ROUNDED:
        return made, f"its probabilities sum to {made.sum():.3g}" + " and some are negative" * bool(
            (made < 0).any()
        )
    return made / made.sum(), ""


def _number(text: str) -> tuple[float, str]:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if np.isfinite(value):
        return value, ""
    odd = signs.odd(text)
    return value, f"{text!r} is no number" + f": it has {odd}" * bool(odd)


def _tell(name: str, labels: list[str], found: dict[str, np.ndarray], known: dict[str, str | None]) -> None:
    """Log what it covers, and how it does on the labelled clips."""
    labeled = [clip for clip in found if known[clip] is not None]
    of = sum(label is not None for label in known.values())
    logger.info(
        "teacher %s: answers for %d of %d labelled and %d of %d unlabelled clips",
        name,
        len(labeled),
        of,
        len(found) - len(labeled),
        len(known) - of,
    )
    if labeled:
        truth = np.array([labels.index(str(known[clip])) for clip in labeled])
        answer = np.array([found[clip].argmax() for clip in labeled])
        logger.info(
            "teacher %s: WAF %.2f %% on these labelled clips; whether it has seen them, or their labels, cannot be known",
            name,
            100 * metrics.waf(truth, answer),
        )
    if len(labeled) < teachers.LEAST:
        logger.warning(
            "teacher %s: with fewer than %d labelled clips it has no say in the vote", name, teachers.LEAST
        )
