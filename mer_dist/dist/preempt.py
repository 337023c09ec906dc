"""Stop on request: a signal only sets a flag, and work ends at the next boundary."""

from __future__ import annotations

import signal
import subprocess

_asked = False


def install() -> None:
    """Take SIGTERM, SIGUSR1 and SIGUSR2 as the request to stop at the next boundary."""
    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, _ask)


def _ask(number: int, frame: object) -> None:
    global _asked
    _asked = True


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
