"""The long suite goes on where its last call stopped, and says how many tests are left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from long_suite import KILLS, LEFT, kill_figures

TEXT = """
import os, time, pytest
from conftest import cases

@pytest.mark.parametrize("case", cases(short=1, long=4))
def test_case(case):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    assert str(case) != os.environ.get("BAD")
"""


@pytest.fixture
def call(tmp_path):
    """pytest on a small test file that has the suite's own conftest; exit code and output."""
    (tmp_path / "test_small.py").write_text(TEXT)
    (tmp_path / "conftest.py").symlink_to(ROOT / "tests" / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = long: .\n")

    def run(*options, **environment):
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--long-record",
             str(tmp_path / "record"), *options, str(tmp_path)],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PYTHONPATH": path, **environment})
        return done.returncode, done.stdout

    return run


def test_without_the_option_only_the_short_cases_run(call):
    code, output = call()
    assert code == 0 and "1 passed, 3 deselected" in output


def test_a_slice_stops_in_time_and_the_next_call_does_only_what_is_left(call):
    code, output = call("--long", "--long-minutes", "0.05", PAUSE="2")
    # How many fit depends on the machine; that all three are accounted for does not.
    left = int(re.search(r"(\d+) tests are left; call again", output)[1])
    assert code == LEFT and left > 0 and ("passed" not in output or f"{3 - left} passed" in output)
    code, output = call("--long")
    assert code == 0 and f"{left} passed" in output and "nothing is left" in output
    assert left == 3 or f"{3 - left} tests had passed before" in output
    code, output = call("--long")
    assert code == 0 and "passed before" in output and "nothing is left" in output


def test_a_test_that_failed_is_run_again_and_fails_the_call(call):
    code, output = call("--long", BAD="2")
    assert code == 1 and "1 failed, 2 passed" in output and "nothing is left" not in output
    code, output = call("--long")
    assert code == 0 and "1 passed" in output


def test_kills_are_told_by_whom_they_hit(tmp_path):
    rows = [("rank", 2, 1.0), ("rank", 3, 3.0), ("rank", 2, 8.0), ("all", 1, 0.5)]
    path = tmp_path / KILLS
    path.write_text("".join(json.dumps({"whom": whom, "processes": count, "seconds": seconds}) + "\n"
                            for whom, count, seconds in rows))
    total, alone, rank = kill_figures(path)
    assert total == "finetune: 4 kills survived" and "alone: 1 kills" in alone
    assert "rank: 3 kills" in rank and "3.00 s in the median, 8.00 s at most" in rank
    assert kill_figures(tmp_path / "none") == []
