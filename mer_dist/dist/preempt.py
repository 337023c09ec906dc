"""Stop on request: a signal only sets a flag, and work ends at the next boundary."""

from __future__ import annotations

import signal
import subprocess
import time

from mer_dist.log import logger

#: Seconds within which a second Ctrl-C is the same one: a launcher hands on what the terminal has sent
#: to its ranks already.
SAME = 2.0

_asked = False
_interrupted = float("-inf")


def install() -> None:
    """Take SIGTERM, SIGUSR1, SIGUSR2 and a first Ctrl-C as the request to stop at the next boundary; a
    second Ctrl-C interrupts."""
    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, _ask)
    signal.signal(signal.SIGINT, _interrupt)


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


def wait(child: subprocess.Popen) -> int:
    """Wait for a launcher, passing a request to stop on to it once; returns its exit status."""
    passed_on = False
    while True:
        if _asked and not passed_on:
            # Launchers pass only SIGTERM on to their ranks.
            child.terminate()
            passed_on = True
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            continue
