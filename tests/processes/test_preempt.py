"""Signals are requests while a stage works, and nothing of it stays in the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import SIGNALS, taken_back

from mer_dist.core.errors import Stopped
from mer_dist.core.stopping import boundary
from mer_dist.processes import preempt


def actions() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", preempt.REQUESTS)
def test_a_signal_is_a_request_within_and_does_what_it_did_before_after(number):
    before, seen = actions(), []
    signal.signal(number, lambda *_: seen.append(number))
    own = actions()
    with pytest.raises(Stopped, match="asked to stop in the middle"), preempt.listening():
        boundary(preempt.asked, "too early")
        signal.raise_signal(number)
        assert preempt.asked() and not seen
        boundary(preempt.asked, "in the middle")
    assert actions() == own
    signal.raise_signal(number)
    assert seen == [number]
    signal.signal(number, before[SIGNALS.index(number)])


def test_the_outermost_one_decides_and_forgets_an_older_request():
    @preempt.listening()
    def stage() -> bool:
        return preempt.asked()

    before = actions()
    with preempt.listening():
        signal.raise_signal(signal.SIGTERM)
        assert stage()
        # The stage has not given the signal back to what would end the process.
        signal.raise_signal(signal.SIGTERM)
    assert actions() == before and not stage() and actions() == before


def test_a_stage_works_in_a_thread_which_signals_cannot_reach():
    before, told = actions(), []

    def work() -> None:
        with preempt.listening():
            told.append(actions())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [before]


def test_a_handler_that_a_test_leaves_is_named_and_taken_back():
    before = dict(zip(SIGNALS, actions(), strict=True))
    preempt.install()
    left = taken_back(before)
    assert [text.split()[0] for text in left] == ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"]
    assert actions() == [*before.values()] and taken_back(before) == []


@pytest.mark.slow
def test_a_signal_to_a_command_that_is_done_does_not_spoil_its_code():
    """Slurm and launchers send it to every process, also to one that is just about to end."""
    code = (
        "import atexit, os, signal; from mer_dist import __main__\n"
        "atexit.register(lambda: [os.kill(os.getpid(), one) for one in (signal.SIGTERM, signal.SIGUSR1)])\n"
        "__main__.main = lambda: 3\n"
        "__main__.process()"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 3
