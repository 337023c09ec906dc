"""Real processes that a test starts, finds and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from conftest import ROOT

from mer_dist.processes import env


def run(
    command: Sequence[str | Path], variables: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; after ``seconds`` it is killed with all that it started, and the test fails.

    Killed alone, a launcher leaves its ranks behind, which go on computing beside the next test.
    """
    started = subprocess.Popen(
        [str(word) for word in command],
        env=dict(variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, error = started.communicate(timeout=seconds)
    except BaseException:
        kill(psutil.Process(started.pid), *descendants(started.pid))
        started.communicate()
        raise
    return subprocess.CompletedProcess(command, started.returncode, out, error)


def launched(stage: int | None = None, processes: int | None = None) -> list[str]:
    """``accelerate launch`` on this machine, to be followed by a script or ``-m`` and a module; what is not told
    is as in the launch file: ZeRO-3, two processes. Stage 0 is plain data parallelism, without DeepSpeed."""
    processes = processes or (2 if stage == 0 else None)
    own = {
        "--zero_stage": stage or None,
        "--num_processes": processes,
        "--main_process_port": env.free_port(),
    }
    given = [word for option, value in own.items() if value is not None for word in (option, str(value))]
    file = str(ROOT / "launch" / ("ddp.yaml" if stage == 0 else "zero3-cpu.yaml"))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, *given]


def descendants(process: int) -> list[psutil.Process]:
    """Every process that came of this one, alive."""
    try:
        return [child for child in psutil.Process(process).children(recursive=True) if alive(child)]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ranks(process: int) -> dict[int, psutil.Process]:
    """rank -> its process, of those that a launcher started."""
    found = {}
    for child in descendants(process):
        try:
            variables = child.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if "RANK" in variables and "mer_dist" in child.cmdline():
            found[int(variables["RANK"])] = child
    return found


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    """How long it took; fails after ``limit`` seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, f"nothing came in {limit} s"
        time.sleep(0.02)
    return time.monotonic() - started
