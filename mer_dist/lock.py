"""One command at a time in a run folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mer_dist.errors import UserError
from mer_dist.log import logger


@contextmanager
def held(path: Path, command: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run folder while a command works there.

    The system gives the lock back when the process ends, however it ends, so none is ever left
    behind. Of the ranks of a launcher only rank 0 takes it, and none where ``mer-dist run`` holds it.

    Args:
        patience: seconds to wait for it.

    Raises:
        UserError: another command holds it; says which, where, and what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file, patience)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another command"
            raise UserError(f"{path}: {who} is at work in this run folder; wait for its end or stop it, or "
                            "set run.folder to another place") from None
        except OSError as error:
            # Some network file systems know no locks.
            logger.warning("%s: no lock can be had here (%s); see to it that no other command works in this "
                           "run folder", path, error.strerror)
        else:
            file.truncate(0)
            # Past the buffer, which on a full disk would be tried again at the end, when all is done.
            with suppress(OSError):
                os.write(file.fileno(), f"mer-dist {command} (process {os.getpid()} on "
                                        f"{socket.gethostname()})".encode())
        yield


def _lock(file: TextIO, patience: float) -> None:
    ends = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends:
                raise
            time.sleep(0.5)
