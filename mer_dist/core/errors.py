"""How a command ends early, and the exit codes of the outer command."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DONE = 0
FAILED = 1
USAGE = 2
QUARANTINED = 3
REQUEUE = 75
#: From best to worst: ranks end at different times, and the worst of their codes counts.
GRAVITY = (DONE, QUARANTINED, REQUEUE, USAGE, FAILED)
#: System errors that the user can fix, and how.
_MENDING = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "have it mounted for writing, or set run.folder to another folder",
    errno.EACCES: "give yourself the right to it, or set run.folder to another folder",
    errno.EPERM: "give yourself the right to it, or set run.folder to another folder",
    errno.ENOENT: "check the name, or run the stage that makes it",
    errno.ESTALE: "the network file system lost it; see that it is mounted and steady",
    errno.EIO: "the disk cannot be read or written; have it checked",
}


class UserError(Exception):
    """An error that the user can fix. The message names the fault, where it is, and what to do."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Blame any error in the block on the file, in one line that names it.

    Raises:
        UserError: in place of any other error, with ``remedy``: what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # On damaged content a parser may raise anything at all.
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not readable ({type(error).__name__}: {why}); {remedy}") from None


class Stopped(Exception):
    """A preemption signal arrived; finished work is kept, and the next start continues."""


def mending(error: OSError) -> str | None:
    """The fault, where it is, and what to do, in one line; None if a user cannot fix it."""
    if error.errno not in _MENDING or error.filename is None:
        return None
    how = _MENDING[error.errno]
    return f"{error.filename}: {error.strerror}; {how}, and start again: what was finished is kept"


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error."""
    if isinstance(error, Stopped):
        return REQUEUE
    mended = isinstance(error, UserError) or (isinstance(error, OSError) and mending(error) is not None)
    return USAGE if mended else FAILED
