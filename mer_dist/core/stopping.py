"""The request to stop, handed down from the command line to whatever takes long.

A stage takes ``should_stop``, looks at it at every boundary, between two clips, steps or draws, and keeps what is
finished. Called from a notebook, without it, it installs nothing and runs to its end.
"""

from __future__ import annotations

from collections.abc import Callable

from mer_dist.core.errors import Stopped

ShouldStop = Callable[[], bool]


def never() -> bool:
    return False


def boundary(should_stop: ShouldStop, where: str) -> None:
    """Leave the work at hand here if that is asked for.

    Args:
        where: in the message, as "in the vote".

    Raises:
        Stopped: it is.
    """
    if should_stop():
        raise Stopped(f"asked to stop {where}; the next start goes on from what is finished")
