"""Timings of a run: one line in ``logs/`` for every piece of work, as soon as it is done.

Outputs hold no times, so a run that was killed and restarted, on however many processes, gives the
same bytes as an undisturbed one; only these files differ. They grow and are never rewritten: a piece
that was made twice is listed twice. Work that a kill interrupted is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mer_dist.storage.files import named
from mer_dist.storage.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One piece of work."""

    stage: str
    #: The folder of the output, relative to the run folder: ``features/clip``.
    part: str
    #: A part of it, such as a shard or a linear probe; empty: all.
    piece: str
    rank: int
    #: Unix time.
    ended: float
    seconds: float
    clips: int


@dataclass(frozen=True, kw_only=True)
class Total:
    """Several pieces, of all starts and ranks."""

    #: Time during which at least one of them was in progress; parallel ranks count once.
    seconds: float
    #: Clips of a piece that was made twice count twice.
    clips: int
    #: When the last one ended, ISO 8601 in UTC.
    ended: str


def note(
    run: Run, stage: str, folder: Path, *, seconds: float, clips: int, piece: str = "", rank: int = 0
) -> None:
    """Record a piece of ``folder`` that took the last ``seconds``. Call it before the piece is published:
    so every published piece is recorded, and so is work that a kill then wastes.

    Raises:
        OSError: the disk is full; names the file.
    """
    part = run.relative(folder)
    spent = Spent(
        stage=stage,
        part=part,
        piece=piece,
        rank=rank,
        ended=round(time.time(), 3),
        seconds=round(seconds, 3),
        clips=clips,
    )
    path = run.timings(stage, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), open(path, "a", encoding="utf-8") as file:
        # The line break comes first: it ends a line that a kill left truncated.
        file.write("\n" + json.dumps(asdict(spent), ensure_ascii=False, sort_keys=True))


@contextmanager
def record(
    run: Run, stage: str, folder: Path, *, clips: int, piece: str = "", rank: int = 0
) -> Iterator[None]:
    """Record the time of the block inside, unless it raises. The arguments are those of :func:`note`.

    For a piece that one block of code makes. Work that runs on from piece to piece calls :func:`note` itself.
    """
    started = time.monotonic()
    yield
    note(run, stage, folder, seconds=time.monotonic() - started, clips=clips, piece=piece, rank=rank)


def read(run: Run) -> list[Spent]:
    """All records; truncated lines are skipped."""
    lines = (
        line
        for path in run.all_timings()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    return [spent for line in lines if (spent := _parsed(line))]


def _parsed(line: str) -> Spent | None:
    try:
        return Spent(**json.loads(line))
    except (ValueError, TypeError):
        return None


def total(pieces: Iterable[Spent]) -> Total | None:
    """The sum of the pieces; None without any."""
    spans = sorted((spent.ended - spent.seconds, spent.ended, spent.clips) for spent in pieces)
    if not spans:
        return None
    seconds, until = 0.0, float("-inf")
    for start, end, _ in spans:
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return Total(
        seconds=seconds,
        clips=sum(clips for _, _, clips in spans),
        ended=datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds"),
    )


def by_part(run: Run) -> dict[str, Total]:
    """The folder of each output, relative to the run folder -> all work on it."""
    pieces: dict[str, list[Spent]] = {}
    for spent in read(run):
        pieces.setdefault(spent.part, []).append(spent)
    return {part: found for part, own in pieces.items() if (found := total(own))}
