"""A configuration that a run has saved, and that names another run folder by now."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from mer_dist.config import yaml_reader
from mer_dist.core.errors import UserError
from mer_dist.storage.run_folder import Run


def check(path: Path, named: str) -> None:
    """Refuse the saved configuration of one run folder that would have another one worked in.

    A copy would overwrite what it was copied from, and a renamed run would begin anew beside what it has.

    Args:
        path: of the configuration, or a link to it.
        named: the folder that it names, as ``run.folder``.

    Raises:
        UserError: which folder that would be, and what to write.
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
    """Whether both are one folder, be it by links or by mounts."""
    try:
        return first.samefile(second)
    except OSError:
        return False  # The first is there, so the second is not.


def _word(folder: Path) -> str:
    """What to write on a command line to have that folder worked in."""
    # Of the folder 2024 YAML would make a number, and "." is another one tomorrow.
    whole = str(folder.absolute())
    ways = [str(folder)] * bool(folder.name) + [whole]
    text = next(filter(_is_text, ways), json.dumps(whole, ensure_ascii=False))
    return shlex.quote(f"run.folder={text}")


def _is_text(text: str) -> bool:
    try:
        return yaml_reader.parse(text, "") == text
    except UserError:
        return False
