"""Who may do what with files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_umask(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def rights(folder: Path) -> dict[str, int]:
    """Path -> mode of everything in a folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def others(folder: Path, umask: int) -> dict[str, str]:
    """What has other rights than the umask gives: path -> mode."""
    usual = {False: 0o666 & ~umask, True: 0o777 & ~umask}
    return {
        name: oct(mode) for name, mode in rights(folder).items() if mode != usual[(folder / name).is_dir()]
    }
