"""``--long``: the tests marked ``long`` and no others, in slices, each test until it has passed once.

What passed is a line in ``runs/long-suite/<fingerprint_of>/passed.txt``, and the next call leaves it
out; a change of mer_dist/ or tests/ is another fingerprint and starts again. Without ``--long`` the
marked tests are deselected.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Exit code of a call that ran out of its slice: nothing failed, call again.
LEFT = 75
#: Beside what passed, written by the tests themselves: every kill, and what the mutations of files came to.
KILLS, MUTATIONS = "kills.jsonl", "mutations.jsonl"
#: What the whole suite must have on record.
WANTED = {"finetune": 50, "extract": 50, "mutations": 1000}
MINUTES = 25


def cases(short: int, long: int) -> list:
    """Case numbers for ``parametrize``: ``short`` that always run, up to ``long`` in the long suite."""
    return [*range(short), *(pytest.param(number, marks=pytest.mark.long) for number in range(short, long))]


def addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long suite")
    group.addoption("--long", action="store_true", help="only the tests marked long that have not passed")
    group.addoption(
        "--long-minutes",
        type=float,
        default=MINUTES,
        help="start no further test after this time (default: %(default)s)",
    )
    group.addoption(
        "--long-record",
        type=Path,
        default=ROOT / "runs" / "long-suite",
        help="where to note what has passed (default: runs/long-suite)",
    )


def record_folder(config: pytest.Config) -> Path:
    """Notes on the sources as they are now."""
    digest = hashlib.sha256()
    for part in ("mer_dist", "tests"):
        for path in sorted((ROOT / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return config.getoption("--long-record") / digest.hexdigest()[:16]


def note_kills(request: pytest.FixtureRequest, stage: str, kills: list[dict]) -> None:
    """What a test of the long suite has survived, one dictionary a kill."""
    if request.config.getoption("--long"):
        note(record_folder(request.config) / KILLS, test=request.node.nodeid, stage=stage, kills=kills)


def note(path: Path, **facts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def noted(path: Path, *key: str) -> list[dict]:
    """What was noted, of each key the last: a test that ran twice did the same twice."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return list({tuple(row[name] for name in key): row for row in rows}.values())


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
        # A part of the suite has a part of the figures.
        options = ("keyword", "markexpr", "ignore", "ignore_glob", "deselect", "lf")
        self.whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not any(
            config.getoption(option, None) for option in options
        )
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
        if session.exitstatus == pytest.ExitCode.OK and self.missed():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def missed(self) -> list[str]:
        """Where the whole suite has passed with less than is wanted of it."""
        if not self.whole or self.left or self.faults:
            return []
        return short_of_what_is_wanted(self.record.parent)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        say = terminalreporter.write_line
        if self.before:
            say(f"long suite: {len(self.before)} tests had passed before on these sources")
        if self.left:
            say(f"long suite: {len(self.left)} tests are left; call again (exit code {LEFT})")
        elif not self.faults:
            say("long suite: nothing is left")
        for line in [*kill_figures(self.record.with_name(KILLS)), *self.missed()]:
            say(line)


def short_of_what_is_wanted(folder: Path) -> list[str]:
    found = Counter(mutations=sum(sum(row["outcomes"].values()) for row in mutations(folder)))
    for row in noted(folder / KILLS, "test", "stage"):
        found[row["stage"]] += len(row["kills"])
    names = {"finetune": "kills of finetune", "extract": "kills of extract"}
    return [
        f"long suite: {found[kind]} {names.get(kind, kind)} on record, {wanted} are wanted; it starts "
        f"again when {folder} is deleted"
        for kind, wanted in WANTED.items()
        if found[kind] < wanted
    ]


def mutations(folder: Path) -> list[dict]:
    return noted(folder / MUTATIONS, "test", "format")


def kill_figures(path: Path) -> list[str]:
    """How often each stage was killed; where it is known, by whom, and in how many seconds all others had
    ended."""
    stages: dict[str, list[dict]] = {}
    for row in noted(path, "test", "stage"):
        stages.setdefault(row["stage"], []).extend(row["kills"])
    lines = []
    for stage, kills in sorted(stages.items()):
        lines.append(f"{stage}: {len(kills)} kills survived")
        found: dict[str, list[float]] = {}
        for one in kills:
            if "seconds" in one:
                found.setdefault("alone" if one["processes"] == 1 else one["whom"], []).append(one["seconds"])
        lines += [
            f"  {whom}: {len(seconds)} kills, others ended within {statistics.median(seconds):.2f} s in the "
            f"median, {max(seconds):.2f} s at most"
            for whom, seconds in sorted(found.items())
        ]
    return lines
