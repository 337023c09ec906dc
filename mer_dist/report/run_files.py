"""Files of a run that may be absent or damaged: what cannot be read becomes a note on the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mer_dist.core.errors import UserError
from mer_dist.core.natural_order import natural
from mer_dist.storage.run_folder import Run

Value = TypeVar("Value")
#: Errors from reading a file with wrong content; pyarrow's errors derive from these.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, UserError)


class RunFiles:
    """Reads existing files and notes those that cannot be parsed."""

    def __init__(self, run: Run):
        self.run = run
        self.notes: list[str] = []

    def read(self, path: Path, how: Callable[[Path], Value]) -> Value | None:
        if not path.exists():
            return None
        try:
            return how(path)
        except _UNREADABLE as error:
            inside = path.is_relative_to(self.run.folder)
            where = path.relative_to(self.run.folder) if inside else path
            # Several sections may read one file, which is noted once.
            if not any(note.startswith(f"{where} cannot be read") for note in self.notes):
                self.notes.append(f"{where} cannot be read: {type(error).__name__}: {error}")
            return None

    def each(self, paths: list[Path], how: Callable[[Path], Value]) -> list[Value]:
        """The readable ones of these, fold-10 after fold-9."""
        found = [self.read(path, how) for path in sorted(paths, key=lambda path: natural(str(path)))]
        return [value for value in found if value is not None]
