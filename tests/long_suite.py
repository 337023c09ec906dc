"""``--long``: the tests marked ``long`` and no others, in slices, each test until it has passed once.

What passed is a line in ``runs/long-suite/<fingerprint>/passed.txt``, and the next call leaves it
out; a change of mer_dist/ or tests/ is another fingerprint and starts again. Without ``--long`` the
marked tests are deselected.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Exit code of a call that ran out of its slice: nothing failed, call again.
LEFT = 75
#: Beside what passed: every kill of a fine-tuning, written by its test.
KILLS = "finetune-kills.jsonl"
MINUTES = 25


def cases(short: int, long: int) -> list:
    """Case numbers for ``parametrize``: ``short`` that always run, up to ``long`` in the long suite."""
    return [*range(short), *(pytest.param(number, marks=pytest.mark.long) for number in range(short, long))]


def addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long suite")
    group.addoption("--long", action="store_true", help="only the tests marked long that have not passed")
    group.addoption("--long-minutes", type=float, default=MINUTES,
                    help="start no further test after this time (default: %(default)s)")
    group.addoption("--long-record", type=Path, default=ROOT / "runs" / "long-suite",
                    help="where to note what has passed (default: runs/long-suite)")


def record_folder(config: pytest.Config) -> Path:
    """Notes on the sources as they are now."""
    digest = hashlib.sha256()
    for part in ("mer_dist", "tests"):
        for path in sorted((ROOT / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return config.getoption("--long-record") / digest.hexdigest()[:16]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other suite; with ``--long`` those that have passed, too."""
    wanted = config.getoption("--long")
    chosen = [item for item in items if (item.get_closest_marker("long") is not None) == wanted]
    if wanted:
        chosen = config.pluginmanager.get_plugin("slice").not_passed(chosen)
    left_out = set(items) - set(chosen)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = chosen


class Slice:
    """One call of the long suite."""

    def __init__(self, config: pytest.Config):
        self.record = record_folder(config) / "passed.txt"
        self.ends = time.monotonic() + 60 * config.getoption("--long-minutes")
        self.before: list[str] = []
        self.left: list[str] = []
        self.faults: set[str] = set()

    def not_passed(self, items: list[pytest.Item]) -> list[pytest.Item]:
        done = set(self.record.read_text().splitlines()) if self.record.exists() else set()
        self.before = [item.nodeid for item in items if item.nodeid in done]
        return [item for item in items if item.nodeid not in done]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if time.monotonic() < self.ends:
            return None
        self.left.append(item.nodeid)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.faults.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self.faults:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with open(self.record, "a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        nothing_ran = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        if exitstatus == pytest.ExitCode.OK and self.left:
            session.exitstatus = LEFT
        elif nothing_ran and self.before:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter) -> None:
        say = terminalreporter.write_line
        if self.before:
            say(f"long suite: {len(self.before)} tests had passed before on these sources")
        if self.left:
            say(f"long suite: {len(self.left)} tests are left; call again (exit code {LEFT})")
        elif not self.faults:
            say("long suite: nothing is left")
        for line in kill_figures(self.record.with_name(KILLS)):
            say(line)


def kill_figures(path: Path) -> list[str]:
    """By whom a fine-tuning was killed: how often, and in how many seconds all others had ended."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault("alone" if row["processes"] == 1 else row["whom"], []).append(row["seconds"])
    total = [f"finetune: {len(rows)} kills survived"] if rows else []
    return total + [
        f"  {whom}: {len(seconds)} kills, others ended within {statistics.median(seconds):.2f} s in the "
        f"median, {max(seconds):.2f} s at most" for whom, seconds in sorted(found.items())]
