"""The two ways a command ends early, and the exit codes of the outer command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DONE = 0
FAILED = 1
USAGE = 2
QUARANTINED = 3
REQUEUE = 75


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Within this, whatever goes wrong is the fault of the file: one line that names it.

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
    """A preemption signal arrived; what was finished is kept and the next start goes on."""
