"""Ranks end with those who started them, and say in one line when they lose one another."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from mer_dist.dist import env
from mer_dist.errors import FAILED
from mer_dist.log import logger

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
        while os.getppid() == launcher and (outer is None or _alive(outer)):
            time.sleep(LOOK)
        logger.error("the process that started this rank is gone, and so it ends; a relaunch goes on from "
                     "what is done")
        os._exit(FAILED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _alive(process: int) -> bool:
    """Whether it runs: one that is dead may stay in the table until its parent has asked for it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def lost(error: BaseException) -> str:
    """One line for an error that only means that another rank is gone or stuck; otherwise empty.

    Its own log, or the launcher, says what became of the other rank.
    """
    told = str(error)
    of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    if not (of_torch or "gloo" in told or "NCCL" in told):
        return ""
    late = any(word in told.lower() for word in ("timed out", "timeout"))
    why = "did not answer in time (run.patience_minutes)" if late else "has ended"
    return (f"another rank {why}, so this one ends, too; its log says more, and a relaunch goes on from the "
            "newest checkpoint")
