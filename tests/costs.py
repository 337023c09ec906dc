"""``--costs FILE``: what each phase of each test costs, a JSON list a line.

Test, phase, wall seconds, CPU seconds of the worker, CPU seconds of what it started and waited for. The sums by
file: ``python tests/costs.py FILE``. Jobs of the local cluster are children of nobody here, and not counted.
"""

from __future__ import annotations

import json
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
                file.write(json.dumps([item.nodeid, phase, *spent]) + "\n")


def _now() -> tuple[float, float, float]:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.monotonic(), own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def by_file(path: Path) -> Iterator[str]:
    """A line a file of tests, the dearest first: how many, wall and CPU seconds."""
    tests, sums = defaultdict(set), defaultdict(lambda: [0.0, 0.0])
    for line in path.read_text("utf-8").splitlines():
        test, _, wall, own, others = json.loads(line)
        file = test.partition("::")[0]
        tests[file].add(test)
        sums[file][0] += wall
        sums[file][1] += own + others
    for file, (wall, cpu) in sorted(sums.items(), key=lambda pair: -pair[1][1]):
        yield f"{file:44}{len(tests[file]):6} tests {wall:8.0f} s {cpu:8.0f} CPU s"
    yield f"{'all':44}{sum(map(len, tests.values())):6} tests {'':10} {sum(cpu for _, cpu in sums.values()):8.0f} CPU s"


if __name__ == "__main__":
    print("\n".join(by_file(Path(sys.argv[1]))))
