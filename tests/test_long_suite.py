"""The long suite goes on where its last call stopped, and says how many tests are left."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from long_suite import KILLS, LEFT, MUTATIONS, kill_figures, note, short_of_what_is_wanted

TEXT = """
import os, time, pytest
from long_suite import MUTATIONS, cases, note, note_kills, record_folder

@pytest.mark.parametrize("case", cases(short=1, long=4))
def test_case(request, case):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    assert str(case) != os.environ.get("BAD")
    for stage in ("finetune", "extract"):
        note_kills(request, stage, [{}] * int(os.environ.get(stage, 0)))
    tried = {"message": int(os.environ.get("mutations", 0))}
    note(record_folder(request.config) / MUTATIONS, test=request.node.nodeid, format="csv", outcomes=tried)
"""


@pytest.fixture
def call(tmp_path):
    """pytest on a small test file that has the suite's own conftest; exit code and output."""
    (tmp_path / "test_small.py").write_text(TEXT)
    (tmp_path / "conftest.py").symlink_to(ROOT / "tests" / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = long: .\ntestpaths = .\n")

    def run(*options, whole=False, **environment):
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "--long-record",
                str(tmp_path / "record"),
                *options,
                *([] if whole else [str(tmp_path)]),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": path, **environment},
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.slow
def test_without_the_option_only_the_short_cases_run(call):
    code, output = call()
    assert code == 0 and "1 passed, 3 deselected" in output


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_test_that_failed_is_run_again_and_fails_the_call(call):
    code, output = call("--long", BAD="2")
    assert code == 1 and "1 failed, 2 passed" in output and "nothing is left" not in output
    code, output = call("--long")
    assert code == 0 and "1 passed" in output


@pytest.mark.slow
def test_the_whole_suite_fails_if_it_has_survived_too_little_although_every_test_passed(call):
    enough = {"finetune": "17", "extract": "17", "mutations": "334"}
    code, output = call("--long", whole=True, **enough | {"extract": "16"})
    assert code == 1 and "3 passed" in output and "nothing is left" in output
    assert "48 kills of extract on record, 50 are wanted" in output and output.count("are wanted") == 1
    # All of it has passed, and still it is too little; a part of the suite is not judged.
    assert call("--long", whole=True)[0] == 1
    assert call("--long")[0] == call("--long", "-k", "case", whole=True)[0] == 0


@pytest.mark.slow
def test_the_whole_suite_passes_with_what_is_wanted_of_all_its_slices_together(call):
    enough = {"finetune": "17", "extract": "17", "mutations": "334", "BAD": "3"}
    code, output = call("--long", whole=True, **enough)
    assert code == 1 and "1 failed" in output and "are wanted" not in output
    code, output = call("--long", whole=True, **enough | {"BAD": ""})
    assert code == 0 and "finetune: 51 kills survived" in output and "are wanted" not in output


def test_what_a_test_did_twice_counts_once(tmp_path):
    for _ in range(2):
        for stage in ("finetune", "extract"):
            note(tmp_path / KILLS, test=stage, stage=stage, kills=[{}] * 30)
        note(tmp_path / MUTATIONS, test="a", format="csv", outcomes={"message": 500, "harmless": 499})
    told = short_of_what_is_wanted(tmp_path)
    assert [line.split()[2] for line in told] == ["30", "30", "999"]


def test_kills_are_told_by_whom_they_hit(tmp_path):
    rows = [("rank", 2, 1.0), ("rank", 3, 3.0), ("rank", 2, 8.0), ("all", 1, 0.5)]
    path = tmp_path / KILLS
    told = [{"whom": whom, "processes": count, "seconds": seconds} for whom, count, seconds in rows]
    note(path, test="a", stage="finetune", kills=told[:1])
    note(path, test="b", stage="finetune", kills=told[1:])
    note(path, test="c", stage="extract", kills=[{"when": "time"}] * 3)
    extract, total, alone, rank = kill_figures(path)
    assert extract == "extract: 3 kills survived"
    assert total == "finetune: 4 kills survived" and "alone: 1 kills" in alone
    assert "rank: 3 kills" in rank and "3.00 s in the median, 8.00 s at most" in rank
    assert kill_figures(tmp_path / "none") == []
