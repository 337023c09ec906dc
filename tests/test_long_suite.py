"""The long suite goes on where its last call stopped, and says how many tests are left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from long_suite import LEFT

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
    code, output = call("--long", "--long-minutes", "0.01", PAUSE="0.4")
    assert code == LEFT and "2 passed" in output and "1 tests are left; call again" in output
    code, output = call("--long")
    assert code == 0 and "1 passed" in output and "2 tests had passed before" in output
    code, output = call("--long")
    assert code == 0 and "passed before" in output and "nothing is left" in output


def test_a_test_that_failed_is_run_again_and_fails_the_call(call):
    code, output = call("--long", BAD="2")
    assert code == 1 and "1 failed, 2 passed" in output and "nothing is left" not in output
    code, output = call("--long")
    assert code == 0 and "1 passed" in output
