"""The exit code that a stage leaves for the command that started it, ``status/<stage>.json``.

Launchers turn every non-zero code of a rank into 1. A stage without a launcher also leaves its code, for
later commands.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mer_dist.core.errors import FAILED, GRAVITY, UserError, mending
from mer_dist.core.log import logger
from mer_dist.storage import files


def read(path: Path) -> int | None:
    """The exit code that was left, or None.

    Raises:
        UserError: the file holds something else.
        OSError: it cannot be read.
    """
    try:
        content = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        content = None
    code = content.get("code") if isinstance(content, dict) else None
    # True is not a code, though it equals 1.
    if type(code) is not int or code not in GRAVITY:
        raise UserError(f"{path}: it holds no exit code; see the logs of the run, and start the stage again")
    return code


def forget(path: Path, before: float) -> None:
    """Remove a code older than ``before``; a newer one comes from a faster rank of the same start."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.stat().st_mtime < before:
            path.unlink()


def leave(path: Path, code: int) -> int:
    """Leave the code, unless another rank has left a worse one; returns :data:`FAILED` if the write fails."""
    try:
        other = read(path)
    except (UserError, OSError):
        other = None
    try:
        files.write_json(path, {"code": max((code, code if other is None else other), key=GRAVITY.index)})
    except OSError as error:
        logger.error("%s", mending(error) or error)
        return FAILED
    return code


def note(path: Path, code: int) -> None:
    """Leave the code of a single-process stage, which ends with it; a full disk is reported elsewhere."""
    with suppress(OSError):
        files.write_json(path, {"code": code})
