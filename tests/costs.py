"""``--costs FILE``: what each phase of each test costs, a JSON list a line.

Test, phase, worker, wall seconds, CPU seconds of the worker, CPU seconds of what it started and waited for. The
sums by file and by worker: ``python tests/costs.py FILE``. Jobs of the local cluster are children of nobody here, and not counted.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest


class Costs:
    """To be registered as a plugin in every worker."""

    def __init__(self, path: Path):
        self.path = path

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._measured(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._measured(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._measured(item, "teardown"))

    def _measured(self, item: pytest.Item, phase: str) -> Iterator[None]:
        before = _now()
        try:
            return (yield)
        finally:
            spent = [round(after - start, 2) for start, after in zip(before, _now(), strict=True)]
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps([item.nodeid, phase, os.environ.get("PYTEST_XDIST_WORKER", "alone"), *spent])
                    + "\n"
                )


def _now() -> tuple[float, float, float]:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.monotonic(), own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def sums(path: Path) -> Iterator[str]:
    """A line a file of tests, the dearest first, and one a worker: how many, wall and CPU seconds."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for column in (lambda row: row[0].partition("::")[0], lambda row: row[2], lambda row: "all"):
        tests, wall, cpu = defaultdict(set), defaultdict(float), defaultdict(float)
        for row in rows:
            title = column(row)
            tests[title].add(row[0])
            wall[title] += row[3]
            cpu[title] += row[4] + row[5]
        for title in sorted(cpu, key=cpu.__getitem__, reverse=True):
            yield f"{title:44}{len(tests[title]):6} tests {wall[title]:8.0f} s {cpu[title]:8.0f} CPU s"


if __name__ == "__main__":
    print("\n".join(sums(Path(sys.argv[1]))))
