"""The request to stop, passed from the command line to all long work.

A stage takes ``should_stop``, checks it at every boundary, between two clips, steps or draws, and keeps
finished work. Called without it, as from a notebook, it installs no handler and runs to its end.
"""

from __future__ import annotations

from collections.abc import Callable

from mer_dist.core.errors import Stopped

ShouldStop = Callable[[], bool]


def never() -> bool:
    return False


def boundary(should_stop: ShouldStop, where: str) -> None:
    """Stop the work here if requested.

    Args:
        where: for the message, as "in the vote".

    Raises:
        Stopped: a stop is requested.
    """
    if should_stop():
        raise Stopped(f"asked to stop {where}; the next start goes on from what is finished")
