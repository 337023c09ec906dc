"""The sandbox, and the count of what damage of each format came to."""

from __future__ import annotations

from collections import Counter

import long_suite
import pytest

from fuzz.sandbox import Sandbox

OUTCOMES = ("message", "quarantine", "made again", "harmless")
_COUNTS = pytest.StashKey[dict]()


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture
def count(request):
    """``count(format, outcomes)``: what each of this test's mutations of a format came to."""

    def note(kind: str, outcomes: list[str]) -> None:
        assert set(outcomes) <= set(OUTCOMES), outcomes
        path = long_suite.record_folder(request.config) / long_suite.MUTATIONS
        long_suite.note(path, test=request.node.nodeid, format=kind, outcomes=Counter(outcomes))

    return note


def pytest_terminal_summary(terminalreporter, config) -> None:
    """The table of all mutations on these sources, of earlier slices, too."""
    rows = long_suite.mutations(long_suite.record_folder(config))
    if not rows:
        return
    table: dict[str, Counter] = {}
    for row in rows:
        table.setdefault(row["format"], Counter()).update(row["outcomes"])
    table["all"] = sum(table.values(), Counter())
    terminalreporter.section("mutations tried on these sources")
    head = ["format".ljust(14), *(one.rjust(12) for one in (*OUTCOMES, "total"))]
    terminalreporter.write_line("".join(head))
    for kind, counts in table.items():
        figures = [*(counts[one] for one in OUTCOMES), counts.total()]
        terminalreporter.write_line("".join([kind.ljust(14), *(str(one).rjust(12) for one in figures)]))
