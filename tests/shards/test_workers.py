"""Worker processes: order, bounded memory, and a process that is killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mer_dist.shards.workers import AHEAD, in_order


def _slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.2 if item == 0 else 0.0)
    return item, os.getpid()


MUCH = 2**20


def _much_but_dies_on_five(item: int) -> bytes:
    _kills_itself_on_five(item)
    return bytes(MUCH)


def _kills_itself_on_five(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return item


def _hangs_on_two(item: int) -> int:
    while item == 2:
        time.sleep(0.1)
    return item


def _raises(item: int) -> int:
    raise ValueError(f"no {item}")


def _waits_for_the_next(folder: Path, item: int) -> tuple[int, int]:
    """Item 0 ends only after item 1 has begun, which takes a second process."""
    (folder / str(item)).touch()
    while item == 0 and not (folder / "1").exists():
        time.sleep(0.01)
    return item, os.getpid()


@pytest.mark.slow
def test_results_come_in_order_from_several_processes(tmp_path):
    results = list(in_order(partial(_waits_for_the_next, tmp_path), range(30), 2, crashed=None))
    assert [item for item, _ in results] == list(range(30))
    processes = {process for _, process in results}
    assert len(processes) == 2 and os.getpid() not in processes


@pytest.mark.slow
def test_no_more_items_are_taken_than_the_workers_need():
    taken = []
    results = in_order(_slow_first, (taken.append(item) or item for item in range(1000)), 1, None)
    next(results)
    assert len(taken) <= AHEAD + 1
    results.close()


@pytest.mark.slow
def test_workers_outlive_the_signals_with_which_slurm_warns_every_process_of_a_job():
    results = in_order(_slow_first, range(20), 2, crashed=None)
    seen = [next(results) for _ in range(3)]
    for _, process in seen:
        os.kill(process, signal.SIGUSR2)
        os.kill(process, signal.SIGUSR1)
    rest = list(results)
    assert [item for item, _ in seen + rest] == list(range(20))
    assert {process for _, process in seen} <= {process for _, process in rest}, "no worker was replaced"


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_clip_that_killed_it():
    results = list(in_order(_kills_itself_on_five, range(12), 2, crashed=lambda item: -item))
    assert results == [0, 1, 2, 3, 4, -5, 6, 7, 8, 9, 10, 11]


@pytest.mark.slow
def test_a_killed_worker_is_got_over_while_others_are_handing_over_much():
    """More than a pipe holds: nobody reads it any more when the pool ends the others."""
    results = list(in_order(_much_but_dies_on_five, range(12), 2, crashed=lambda item: bytes(item)))
    assert [len(result) for result in results] == [MUCH] * 5 + [5] + [MUCH] * 6


@pytest.mark.slow
def test_a_task_that_hangs_is_killed_after_its_time():
    results = list(in_order(_hangs_on_two, range(4), 1, crashed=lambda item: -item, seconds=1))
    assert results == [0, 1, -2, 3]


@pytest.mark.slow
def test_an_error_of_the_task_itself_is_not_hidden():
    with pytest.raises(ValueError, match="no 0"):
        list(in_order(_raises, range(3), 1, crashed=None))


PARENT = """
import os, signal, sys, time
from mer_dist.shards.workers import in_order
if __name__ == "__main__":
    results = in_order(os.path.exists, ["/"] * 9, 2, crashed=None)
    next(results)
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(script: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, script],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = run_script(script)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    workers = [int(pid) for pid in parent.stdout.split()]
    assert workers
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_script_without_main_guard_gets_a_clear_error_and_no_endless_try(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text(
        "from mer_dist.shards.workers import in_order\nprint(list(in_order(abs, [1, 2], 1, crashed=None)))\n"
    )
    result = run_script(script)
    assert result.returncode == 1
    assert "worker processes cannot be started" in result.stderr
