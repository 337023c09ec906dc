"""One command at a time in a run folder: a process, or all the ranks of a job."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger

#: Seconds between two tries.
AGAIN = 0.5


class Busy(UserError):
    """Another command is at work in the run folder."""


@contextmanager
def held(path: Path, command: str) -> Iterator[None]:
    """Hold the lock of a run folder while a command works there.

    The system releases the lock when the process ends, however it ends, so none is ever left behind.

    Raises:
        Busy: another command holds it; the message names it, where it runs, and what to do.
    """
    with _opened(path) as file:
        _take(path, 0, lambda: None if _locked(file, fcntl.LOCK_EX) else file)
        _sign(file, _who(command))
        yield


@contextmanager
def shared(path: Path, command: str, job: str, rank: int, patience: float = 0.0) -> Iterator[None]:
    """A rank's share in the lock of its job: the first rank takes it and writes the owner, the others join,
    and it is free once the last of them has ended, however it ends.

    Every rank also holds a file of its own, so that a second job with the same ``job`` text cannot join
    the first.

    Args:
        job: text that only the ranks of one job share.
        patience: seconds to wait for others to leave.

    Raises:
        Busy: another command, another job, or another process with this rank is at work.
    """
    signed = f"{_who(command)}, the first of its processes\n{job}"
    with _opened(path) as file, _opened(_of_rank(path, rank)) as own:

        def in_the_way() -> TextIO | None:
            if not _locked(own, fcntl.LOCK_EX):
                return own
            return None if _joined(file, signed, job) else file

        _take(path, patience, in_the_way)
        _sign(own, _who(command))
        yield


def at_work(path: Path, ranks: Iterable[int]) -> set[int] | None:
    """The ranks that hold their part of the lock now; None where locks are not supported."""
    found = set()
    for rank in ranks:
        try:
            with open(_of_rank(path, rank), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            found.add(rank)
        except OSError:
            return None
    return found


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.{rank}")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        yield file


def _who(command: str) -> str:
    return f"mer-dist {command} (process {os.getpid()} on {socket.gethostname()})"


def _take(path: Path, patience: float, in_the_way: Callable[[], TextIO | None]) -> None:
    """Try until no file is in the way: one that another process holds and has signed."""
    ends = time.monotonic() + patience
    try:
        while file := in_the_way():
            if time.monotonic() >= ends:
                who = _read(file).partition("\n")[0] or "another command"
                raise Busy(
                    f"{path}: {who} is at work in this run folder; wait for its end or stop it, or "
                    "set run.folder to another folder"
                )
            time.sleep(AGAIN)
    except OSError as error:
        # Some network file systems do not support locks.
        logger.warning(
            "%s: locks are not supported here (%s); make sure that no other command works in this run folder",
            path,
            error.strerror,
        )


def _locked(file: TextIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _joined(file: TextIO, signed: str, job: str) -> bool:
    """Take the lock for the job if it is free, or share it if the job has it."""
    if _locked(file, fcntl.LOCK_EX):
        _sign(file, signed)
    # Between the two kinds of lock it is free for a moment, so the owner written in the file counts.
    if not _locked(file, fcntl.LOCK_SH):
        return False
    # It is empty if the disk was full when the owner signed.
    if _read(file).partition("\n")[2] in (job, ""):
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def _sign(file: TextIO, text: str) -> None:
    file.truncate(0)
    # Bypass the buffer: on a full disk its flush would be tried again at the end, when the work is done.
    with suppress(OSError):
        os.write(file.fileno(), text.encode())
