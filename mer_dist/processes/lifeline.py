"""Ranks end with those who started them, and say in one line when they lose one another."""

from __future__ import annotations

import os
import threading
import time

from mer_dist.core.errors import FAILED
from mer_dist.core.log import logger
from mer_dist.processes import env
from mer_dist.storage import files

#: Seconds between two looks.
LOOK = 1.0


def end_with_launcher() -> None:
    """From now on this rank ends within about a second when its launcher, or the ``mer-dist run`` that
    called it, is gone.

    A launcher that is killed leaves its ranks behind: they would train on beside the next start, in
    the same run folder.
    """
    launcher, outer = os.getppid(), env.outer()

    def watch() -> None:
        while os.getppid() == launcher and (outer is None or files.lives(outer)):
            time.sleep(LOOK)
        logger.error(
            "the process that started this rank is gone, and so it ends; a relaunch goes on from what is done"
        )
        os._exit(FAILED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def lost(error: BaseException) -> str:
    """One line for an error that only means that another rank is gone or stuck; otherwise empty.

    The other rank's own log, or its launcher, says what became of it.
    """
    message = (str(error).splitlines() or [""])[0]
    words = message.lower()
    if not any(word in words for word in ("gloo", "nccl", "tcpstore", "distributed", "peer")):
        return ""
    if any(word in words for word in ("timed out", "timeout")):
        why = "does not answer (run.timeout_minutes)"
    elif any(
        word in words for word in ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
    ):
        why = "has ended"
    else:
        return ""
    return (
        f"another rank {why}, so this one ends, too; the other's log says more, and a relaunch goes on "
        f"from the newest checkpoint ({message})"
    )
