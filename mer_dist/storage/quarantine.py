"""quarantine.parquet: every clip or modality that could not be used, with stage and reason.

Columns: ``stage``, ``name``, ``lost``, ``reason`` and ``part``; see :class:`mer_dist.core.records.Problem`.
All that stages need is in the columns: the reason is for people, and no stage parses it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.core.errors import reading
from mer_dist.core.log import logger
from mer_dist.core.records import Problem
from mer_dist.storage import parquet
from mer_dist.storage.files import atomic

SCHEMA = pa.schema([(field, pa.string()) for field in ("stage", "name", "lost", "reason", "part")])
_WITHOUT_PART = pa.schema([field for field in SCHEMA if field.name != "part"])
#: Kinds that a stage logs at its end, and characters of each.
TOLD, LONGEST = 8, 160
#: A file name that starts a reason or a part of it, as in ``a.mp4: no such file``.
_FILE = re.compile(r"(?!features )(?:^|(?<=: )|(?<=; ))[^:;]*(\.\w{1,5})(?=: )")
#: Stands for the clip's name, and its file with the folders before it.
_NAME = "\0"
_OWN = re.compile(rf"(?:\S*/)?(?<![^\s/]){_NAME}(?=\.\w)")
_SUFFIX = re.compile(r"\*\.\w+")
_LINE, _NUMBER = re.compile(r" line \d+"), re.compile(r"(?<!\w)\d+(?:\.\d+)?(?!\w)")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Problems that differ in nothing but the clip."""

    stage: str
    lost: str
    #: With ``*`` for the clip's file and for suffixes that differ, and without line numbers of tables. Where they
    #: differ in other numbers, which may be the point, it is one of them after ``as``.
    reason: str
    #: Of the clips, sorted; each once, however many of its parts are affected.
    names: list[str]

    def __str__(self) -> str:
        return f"{len(self.names):,} x {self.lost}: {shortened(self.reason)}"


def read(path: Path, *stages: str) -> list[Problem]:
    """The rows of these stages, or all of them; none if there is no such file yet."""
    table = _table(path)
    if stages and len(table):
        import pyarrow.compute as pc

        table = table.filter(pc.is_in(table["stage"], pa.array(stages)))
    return [Problem(**row) for row in table.to_pylist()]


def _table(path: Path) -> pa.Table:
    """All rows; files of earlier versions have no ``part``."""
    if not Path(path).exists():
        return SCHEMA.empty_table()
    with reading(path, "delete it and run again"):
        known = pq.read_schema(path).names
        table = parquet.read(path, schema=SCHEMA if "part" in known else _WITHOUT_PART)
        if any(column.null_count for column in table.columns):
            raise ValueError("fields are empty")
        if "part" not in known:
            table = table.append_column("part", pa.array([""] * len(table), pa.string()))
        return table


def replace(path: Path, stage: str, problems: Iterable[Problem]) -> None:
    """Replace the rows of ``stage``; the rows of other stages stay.

    Call it once the stage knows all its problems; a second call with the same ones changes nothing.
    """
    import pyarrow.compute as pc

    table = _table(path)
    own = pa.Table.from_pylist([asdict(problem) for problem in problems], SCHEMA)
    table = pa.concat_tables([table.filter(pc.not_equal(table["stage"], stage)), own])
    order = [(column, "ascending") for column in ("stage", "name", "lost", "part")]
    with atomic(path) as temporary:
        # Of other stages there may be a million rows, which stay in columns.
        pq.write_table(table.sort_by(order).replace_schema_metadata(None), temporary)


def kinds(problems: Iterable[Problem]) -> list[Kind]:
    """The problems by stage, what was lost and why, the most frequent first."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for problem in problems:
        why = _plain(problem)
        key = problem.stage, problem.lost, _no_number(_no_suffix(why))
        groups.setdefault(key, []).append((why, problem.name))
    found = [
        Kind(
            stage=stage,
            lost=lost,
            names=sorted({name for _, name in rows}),
            reason=_common([why for why, _ in rows]),
        )
        for (stage, lost, _), rows in groups.items()
    ]
    return sorted(found, key=lambda kind: (-len(kind.names), kind.stage, kind.lost, kind.reason))


def _common(reasons: list[str]) -> str:
    """What they have in common, or the first of them as an example."""
    for generalized in (str, _no_suffix):
        if len(texts := {generalized(why) for why in reasons}) == 1:
            return texts.pop()
    return f"as {reasons[0]}"


def _no_number(text: str) -> str:
    return _NUMBER.sub("N", text)


def _no_suffix(text: str) -> str:
    return _SUFFIX.sub("*", text)


def _plain(problem: Problem) -> str:
    """The reason without what is specific to the clip: names of its files and line numbers of tables."""
    # One pattern for all names: there may be 100,000, and compiling a pattern is slower than using it.
    marked = " ".join(problem.reason.split()).replace(problem.name, _NAME)
    return _LINE.sub("", _FILE.sub(r"*\1", _OWN.sub("*", marked).replace(_NAME, problem.name)))


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def tell(path: Path, *stages: str) -> int:
    """Log the reasons of these stages' problems by count.

    Returns:
        The number of their problems.
    """
    own = read(path, *stages)
    if own:
        only = f" --stage {stages[0]}" if len(stages) == 1 else ""
        logger.warning(
            "%d problems in quarantine; all of them: mer-dist quarantine %s%s",
            len(own),
            shlex.quote(str(Path(path).parent)),
            only,
        )
    tell_kinds(own)
    return len(own)


def tell_kinds(problems: Iterable[Problem]) -> None:
    """Log their reasons, one line each, the most frequent first."""
    found = kinds(problems)
    for kind in found[:TOLD]:
        logger.warning("  %s", kind)
    if len(found) > TOLD:
        logger.warning("  and %d rarer reasons", len(found) - TOLD)
