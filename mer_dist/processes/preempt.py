"""Stop on request: a signal only sets a flag, and work ends at the next boundary."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mer_dist.core.log import logger

#: Seconds within which a second Ctrl-C is the same one: a launcher hands on what the terminal has sent
#: to its ranks already.
SAME = 2.0
#: What batch systems, launchers and users send to a process that is to stop.
REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_asked = False
_interrupted = float("-inf")


@contextmanager
def listening() -> Iterator[None]:
    """Within this, or a function that it decorates, signals are taken as :func:`install` says; then they do
    again what they did before.

    A request from before the outermost one is forgotten. Signals reach the main thread alone; in another one
    this changes nothing.
    """
    global _asked, _interrupted
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _ask:
        yield
        return
    before = {name: signal.getsignal(name) for name in (*REQUESTS, signal.SIGINT)}
    _asked, _interrupted = False, float("-inf")
    install()
    try:
        yield
    finally:
        for name, action in before.items():
            # None: one that Python does not know of.
            signal.signal(name, signal.SIG_DFL if action is None else action)


def install() -> None:
    """For the rest of the process, take SIGTERM, SIGUSR1, SIGUSR2 and a first Ctrl-C as the request to stop
    at the next boundary; a second Ctrl-C interrupts."""
    for name in REQUESTS:
        signal.signal(name, _ask)
    signal.signal(signal.SIGINT, _interrupt)


def nothing_left() -> None:
    """The work of the process is done: requests to stop it would only spoil its exit code."""
    for name in REQUESTS:
        signal.signal(name, signal.SIG_IGN)


def _ask(number: int, frame: object) -> None:
    global _asked
    _asked = True


def _interrupt(number: int, frame: object) -> None:
    global _asked, _interrupted
    if _asked and time.monotonic() - _interrupted > SAME:
        raise KeyboardInterrupt
    if not _asked:
        logger.warning("stopping at the next boundary; Ctrl-C again ends it at once")
    _asked, _interrupted = True, time.monotonic()


def asked() -> bool:
    return _asked
