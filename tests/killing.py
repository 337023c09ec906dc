"""Commands killed at seeded instants and started again, until they end; what they leave is compared.

A kill comes some time after the start, after the n-th finished file, or as soon as the n-th temporary
file is seen, which is inside a write.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer_dist.core.errors import DONE
from mer_dist.processes import env
from mer_dist.storage import timings
from mer_dist.storage.files import digest
from mer_dist.storage.run_folder import Run

#: Not outputs: what was told and when, and what is made from all of it.
APART = {"logs", "status", "tracking", "report.html"}
#: A command that takes longer hangs.
SECONDS = 240


def outputs(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of everything in a run folder, leftovers of writes included."""
    paths = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in APART]
    return {str(path.relative_to(folder)): digest(path) for path in sorted(paths) if path.is_file()}


def start(cwd: Path, arguments: list[str], world: int = 1) -> list[subprocess.Popen]:
    """``mer-dist`` as ``world`` ranks, each in a process group of its own."""
    base = env.for_children(1) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ranks = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
        with open(cwd / f"said.{rank}", "ab") as said:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mer_dist", *arguments],
                    cwd=cwd,
                    env=base | own,
                    stderr=said,
                    stdout=said,
                    start_new_session=True,
                )
            )
    return ranks


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all that it started, worker processes included."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ends(ranks: list[subprocess.Popen]) -> list[int]:
    return [rank.wait(SECONDS) for rank in ranks]


@dataclass
class Disturbed:
    """A command in ``cwd``/run that is killed again and again."""

    cwd: Path
    arguments: list[str]
    reference: dict[str, str]
    #: Whether a path is a file that never changes once it is there.
    final: Callable[[str], bool]
    random: np.random.Generator
    #: Numbers of ranks that it may be started with.
    worlds: tuple[int, ...] = (1,)
    #: How many ranks were killed.
    killed: int = 0
    #: Pieces, as shards, that were made more than once.
    again: int = 0
    #: How the kills came.
    ways: Counter = field(default_factory=Counter)

    @property
    def folder(self) -> Path:
        return self.cwd / "run"

    def survive(self, kills: int, begin: Callable[[], None]) -> None:
        """Kill until ``kills`` have hit, then let it end and compare. ``begin`` makes the run folder."""
        begin()
        world = 0
        while self.ways.total() < kills:
            world = self._other(world)
            if not self._start_and_kill(world):
                self._complete(self._other(world))
                begin()
                self.killed = 0
        self._complete(self._other(world))

    def _other(self, world: int) -> int:
        others = [other for other in self.worlds if other != world]
        return int(self.random.choice(others or self.worlds))

    def _start_and_kill(self, world: int) -> bool:
        """Whether the kill hit, or the command was done before it came."""
        before = self._finished()
        way, due = self._instant()
        ranks = start(self.cwd, self.arguments, world)
        alive = self._wait(ranks, due)
        targets = ranks if world == 1 or self.random.random() < 0.6 else [ranks[self.random.integers(world)]]
        hit = [rank for rank in targets if rank.poll() is None] if alive else []
        for rank in hit:
            kill(rank)
        codes = ends([rank for rank in ranks if rank not in hit])
        assert set(codes) <= {DONE}, self._said()
        after = self._finished()
        wrong = {path for path, found in after.items() if self.reference.get(path) != found}
        assert not wrong, f"wrong after a kill: {wrong}"
        assert before.keys() <= after.keys(), "finished files were lost"
        if not hit:
            return False
        self.killed += len(hit)
        self.ways[way] += 1
        return True

    def _instant(self) -> tuple[str, Callable[[float], bool]]:
        """When the kill is due, asked with the seconds since the start."""
        way = str(self.random.choice(["time", "file", "write"], p=[0.2, 0.3, 0.5]))
        count, rest = int(self.random.integers(1, 6)), self.random.uniform(0, 0.03)
        if way == "time":
            due = self.random.uniform(0, 6)
            return way, lambda seconds: seconds > due
        if way == "file":
            wanted = len(self._finished()) + count - 1
            return way, self._then(lambda: len(self._names()) > wanted, rest)
        seen: set[str] = set()

        def writing() -> bool:
            seen.update(path for path in self._names(".tmp"))
            return len(seen) >= count

        return way, self._then(writing, rest / 10)

    @staticmethod
    def _then(condition: Callable[[], bool], rest: float) -> Callable[[float], bool]:
        """True once ``rest`` seconds have passed since ``condition`` was first met."""
        met: list[float] = []

        def due(seconds: float) -> bool:
            if not met and condition():
                met.append(seconds)
            return bool(met) and seconds - met[0] >= rest

        return due

    @staticmethod
    def _wait(ranks: list[subprocess.Popen], due: Callable[[float], bool]) -> bool:
        """False if all ranks ended before it was due."""
        started = time.monotonic()
        while not due(time.monotonic() - started):
            if all(rank.poll() is not None for rank in ranks):
                return False
            assert time.monotonic() - started < SECONDS
            time.sleep(0.0005)
        return True

    def _names(self, suffix: str = "") -> list[str]:
        """Files that are final, or those with a suffix: without reading them, many times a second."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if path.split(os.sep)[0] in APART:
                    continue
                if name.endswith(suffix) if suffix else self.final(path):
                    found.append(path)
        return found

    def _finished(self) -> dict[str, str]:
        return {path: digest(self.folder / path) for path in self._names()}

    def _complete(self, world: int) -> None:
        assert set(ends(start(self.cwd, self.arguments, world))) == {DONE}, self._said()
        found = outputs(self.folder)
        differing = {path for path in found | self.reference if found.get(path) != self.reference.get(path)}
        assert not differing, f"differing after {self.killed} kills: {sorted(differing)}"
        pieces = Counter(
            (spent.part, spent.piece) for spent in timings.read(Run(self.folder)) if spent.piece != "load"
        )
        self.again = pieces.total() - len(pieces)
        assert self.again <= self.killed, f"{self.again} pieces were made again after {self.killed} kills"

    def _said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.cwd.glob("said.*"))
