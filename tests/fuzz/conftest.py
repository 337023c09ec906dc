"""The sandbox, and the count of what damage of each format came to."""

from __future__ import annotations

import json
from collections import Counter

import long_suite
import pytest
from fuzz.sandbox import Sandbox

OUTCOMES = ("message", "quarantine", "made again", "harmless")
_COUNTS = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def sandbox():
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture
def count(request):
    """``count(format, outcomes)``: what each of this test's mutations of a format came to."""

    def note(kind: str, outcomes: list[str]) -> None:
        assert set(outcomes) <= set(OUTCOMES), outcomes
        path = long_suite.record_folder(request.config) / "mutations.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"test": request.node.nodeid, "format": kind, "outcomes": Counter(outcomes)}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return note


def pytest_terminal_summary(terminalreporter, config) -> None:
    """The table of all mutations on these sources, of earlier slices, too."""
    path = long_suite.record_folder(config) / "mutations.jsonl"
    if not path.exists():
        return
    # A test that ran twice tried the same mutations twice.
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    rows = {(line["test"], line["format"]): line["outcomes"] for line in lines}
    table: dict[str, Counter] = {}
    for (_, kind), outcomes in rows.items():
        table.setdefault(kind, Counter()).update(outcomes)
    table["all"] = sum(table.values(), Counter())
    terminalreporter.section("mutations tried on these sources")
    terminalreporter.write_line("".join(["format".ljust(14), *(one.rjust(12) for one in (*OUTCOMES, "total"))]))
    for kind, counts in table.items():
        figures = [*(counts[one] for one in OUTCOMES), counts.total()]
        terminalreporter.write_line("".join([kind.ljust(14), *(str(one).rjust(12) for one in figures)]))
