"""A saved configuration of a run that now names another run folder."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from mer_dist.config import yaml_reader
from mer_dist.core.errors import UserError
from mer_dist.storage.run_folder import Run


def check(path: Path, named: str) -> None:
    """Refuse the saved configuration of one run folder if it names another one.

    A copied run would overwrite the original, and a renamed run would start again in another folder.

    Args:
        path: of the configuration, or a link to it.
        named: its ``run.folder``.

    Raises:
        UserError: with that folder, and what to write.
    """
    for candidate in (path, path.resolve()):
        run = Run(candidate.parent)
        if candidate != run.config or not run.begun or _same(run.folder, Path(named)):
            continue
        other = os.path.abspath(named)
        here = "" if other == named else f", here {other}"
        raise UserError(
            f"{path}: it was saved by the run in {run.folder.resolve()}, but names run.folder {named!r}{here}, "
            "which would be worked in: the run was copied or renamed, or the command is called from another "
            f"working directory; write {_word(run.folder)} behind it, or {_word(Path(other))} if that is meant"
        )


def _same(first: Path, second: Path) -> bool:
    """Whether both are the same folder, also through links or mounts."""
    try:
        return first.samefile(second)
    except OSError:
        return False  # The first exists, so the second does not.


def _word(folder: Path) -> str:
    """The command-line word that selects that folder."""
    # YAML would read the folder 2024 as a number, and "." changes with the working directory.
    absolute = str(folder.absolute())
    ways = [str(folder)] * bool(folder.name) + [absolute]
    text = next(filter(_is_text, ways), json.dumps(absolute, ensure_ascii=False))
    return shlex.quote(f"run.folder={text}")


def _is_text(text: str) -> bool:
    try:
        return yaml_reader.parse(text, "") == text
    except UserError:
        return False
