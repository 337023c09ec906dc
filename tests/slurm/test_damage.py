"""Damaged files of submitted jobs: one line that names the file, code 2, and no other job cancelled.

The programs of Slurm are small ones that answer for one running job and write down what they are told.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, cases
from fuzz.mutations import mutate

from mer_dist import cli
from mer_dist.core.errors import DONE, USAGE
from mer_dist.slurm import jobs
from mer_dist.slurm.rank import Step
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

HOSTILE = (
    "1; rm -rf /",
    "--all",
    "-u",
    "--user=root",
    "",
    " 7",
    "7 8",
    "7,8",
    "7_1",
    "07",
    "0",
    "-7",
    "٧",
    "7\n",
    "$(id)",
    "9" * 5000,
    7,
    7.0,
    True,
    None,
    ["7"],
    {"7": 7},
)
#: What may be wrong with the other values of a job.
WRONG = [
    ("stage", "../../x"),
    ("stage", None),
    ("stage", ["fuse"]),
    ("tasks", 0),
    ("tasks", 2**70),
    ("tasks", True),
    ("tasks", "3"),
    ("tasks", 2.0),
    ("log", None),
    ("log", "a\nb"),
    ("log", "\x1b[2J"),
    ("log", "\ud800"),
    ("other", 1),
]
#: What may stand in the place of the whole file.
WHOLE = (
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"jobs": []}',
    '{"jobs": {}}',
    '{"jobs": null}',
    '{"jobs": "7"}',
    '{"jobs": [[]]}',
    '{"jobs": [{}]}',
    "[" * 9000,
    "\0\0",
    '{"jobs": [{"id": "7"',
)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """Job 7, an extraction of three tasks that runs; job 8 is somebody else's, 9 another of this user."""
    programs = {
        "squeue": "printf '7_0|RUNNING|None|mer-extract\\n9|RUNNING|None|other\\n'",
        "scancel": f'printf "%s\\n" "$@" >> {tmp_path}/cancelled',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    made = Run(tmp_path / "run")
    write(made)
    for task in range(3):
        jobs.ended(made, "extract", Step(f"7_{task}", 1, task, True), DONE)
    return made


def write(run: Run, **changed) -> None:
    job = {"stage": "extract", "id": "7", "tasks": 3, "log": "7_*_0_log.out"} | changed
    files.write_json(run.slurm_jobs, {"submitted": "2026-01-01T00:00:00+00:00", "jobs": [job]})


def cancelled(run: Run) -> list[str]:
    told = run.folder.parent / "cancelled"
    return told.read_text().splitlines() if told.exists() else []


def refused(run: Run, path, capsys, *commands: str) -> None:
    for command in commands:
        assert cli.main([command, str(run.folder)]) == USAGE
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and str(path) in said.err
    assert cancelled(run) == []


def test_the_jobs_of_a_run_are_shown_and_cancelled_and_no_others(run, capsys):
    assert cli.main(["slurm-status", str(run.folder)]) == DONE
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "extract",
        "7",
        "RUNNING",
        "3/3",
        "3",
        "7_*_0_log.out",
    ]
    assert cli.main(["slurm-cancel", str(run.folder)]) == DONE
    assert cancelled(run) == ["7"]


def test_a_job_that_has_come_to_an_old_id_is_not_cancelled(run, capsys):
    write(run, id="9")
    assert cli.main(["slurm-cancel", str(run.folder)]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "job 9 is RUNNING, named 'other'" in line and cancelled(run) == []
    assert cli.main(["slurm-status", str(run.folder)]) == DONE
    assert "RUNNING, named 'other'" in capsys.readouterr().out


def test_a_stage_that_is_submitted_by_hand_besides_does_not_change_what_is_told_of_the_graph(run, capsys):
    jobs.started(run, "extract", Step("12_0", 0, 0, True))
    assert cli.main(["slurm-status", str(run.folder)]) == DONE
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize("number", HOSTILE, ids=lambda value: repr(value)[:20])
def test_an_id_that_slurm_never_gave_is_refused(run, capsys, number):
    write(run, id=number)
    refused(run, run.slurm_jobs, capsys, "slurm-status", "slurm-cancel")


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_job_with_a_wrong_value_is_refused(run, capsys, key, value):
    run.slurm_jobs.write_text(
        json.dumps({"jobs": [{"stage": "extract", "id": "7", "tasks": 3, "log": "7.out"} | {key: value}]})
    )
    refused(run, run.slurm_jobs, capsys, "slurm-status", "slurm-cancel")


@pytest.mark.parametrize("text", WHOLE, ids=range(len(WHOLE)))
def test_a_list_of_jobs_that_is_damaged_as_a_whole_is_refused(run, capsys, text):
    run.slurm_jobs.write_text(text)
    refused(run, run.slurm_jobs, capsys, "slurm-status", "slurm-cancel")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{}",
        '{"restarts": "1", "code": 0}',
        '{"code": 0}',
        '{"restarts": -1, "code": 0}',
        '{"restarts": 1, "code": true}',
        '{"restarts": 1, "code": [0]}',
        '{"restarts": 1, "code": 64}',
        '{"restarts": 1, "code": 0, "other": 1}',
    ],
)
def test_a_damaged_note_of_a_task_is_named(run, capsys, text):
    note = run.slurm_note("extract", "7_1")
    note.write_text(text)
    refused(run, note, capsys, "slurm-status")
    note.unlink()
    assert cli.main(["slurm-status", str(run.folder)]) == DONE
    assert "2/3" in capsys.readouterr().out
    assert cli.main(["slurm-cancel", str(run.folder)]) == DONE, "which does not need it"


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=2, long=20))
def test_whatever_happens_to_these_files_there_is_a_table_or_one_line(run, capsys, seed):
    lines = 0
    victims = [run.slurm_jobs, run.slurm_note("extract", "7_0")]
    whole = {path: path.read_bytes() for path in victims}
    for number in range(25):
        for path, before in whole.items():
            path.write_bytes(mutate(before, ".json", f"{seed} {number}")[1])
            for command in ("slurm-status", "slurm-cancel"):
                code = cli.main([command, str(run.folder)])
                said = capsys.readouterr()
                assert code in (DONE, USAGE) and said.err.count("\n") == (code == USAGE), said.err
                assert code == DONE or str(path) in said.err
                lines += code == USAGE
            path.write_bytes(before)
    assert lines > 50
    assert set(cancelled(run)) == {"7"}


def task(run: Run, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """``slurm-task`` as srun starts it: the exit code, and what it said."""
    own = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "mer_dist", "slurm-task", *arguments],
        cwd=run.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **own},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.processes
def test_a_task_refuses_what_no_srun_tells_it_and_writes_its_note_over_a_damaged_one(run):
    job = run.folder / "job.yaml"
    job.write_text("run: {folder: .}\ncorpus: {path: nowhere}\n")
    for name, value in (("SLURM_JOB_ID", "7; true"), ("SLURM_RESTART_COUNT", "x"), ("SLURM_NTASKS", "")):
        code, said = task(run, "shard", str(job), **{name: value})
        assert code == USAGE and len(said) == 1 and name in said[0]
    note = run.slurm_note("shard", "7")
    note.write_text("[")
    code, said = task(run, "shard", str(job))
    assert code == USAGE and len(said) == 1 and "nowhere" in said[0]
    assert files.read_json(note) == {"restarts": 0, "code": USAGE}
    assert not re.search("Traceback", "\n".join(said))
