"""List and copy the files that come with mer-dist: configurations, launch files and batch scripts."""

from __future__ import annotations

import difflib
import re
from pathlib import Path, PurePosixPath

from mer_dist.config import config as configuration
from mer_dist.core.errors import UserError
from mer_dist.core.text_table import aligned
from mer_dist.storage import files

#: The same as in the wheel (setup.cfg). The scripts of launch/ set up a checkout, and stay there.
PATTERNS = ("configs/**/*.yaml", "launch/*.yaml", "slurm/*.sbatch", "slurm/*.sh", "constraints.txt")
#: The first sentence of a text.
_SENTENCE = re.compile(r".*?\.(?=\s|$)", re.DOTALL)


def names() -> list[str]:
    """Every such file by its path in the repository, sorted."""
    root = files.shipped()
    return sorted(path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern))


def listing() -> str:
    """Each name and purpose of a file, one per line."""
    return aligned([[name, purpose(_text(name))] for name in names()])


def purpose(text: str) -> str:
    """The first sentence of a file's first comment, on one line."""
    lines = text.splitlines()
    if lines and lines[0].startswith("#!"):
        del lines[0]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.strip("# "))
    sentences = " ".join(" ".join(comment).split())
    found = _SENTENCE.match(sentences)
    return found[0] if found else sentences


def copy(name: str, folder: Path) -> list[str]:
    """Copy a file, or all of a folder, to the same path below ``folder``, with the files that it names, so
    that these paths are valid for commands started in ``folder``.

    Returns:
        What was done, and what is left to do, one per line.

    Raises:
        UserError: there is no such file, or another one has its path; nothing was written.
    """
    asked = _asked(name)
    beside = sorted(_named_by(asked) - set(asked))
    for own in asked:
        target = folder / own
        _check_folders(target, folder)
        if target.exists() and not _same(own, target):
            raise UserError(
                f"{target}: is there already and is another one, so nothing is written; move it away, or "
                "name another folder"
            )
    lines = [_copied(own, folder) for own in [*asked, *beside]]
    return [*lines, *_to_do(asked, folder)]


def _text(name: str) -> str:
    return files.shipped(name).read_text(encoding="utf-8")


def _asked(name: str) -> list[str]:
    """The files of ``name``: a file or a folder, by its path or the end of it.

    Raises:
        UserError: there is none.
    """
    parts = PurePosixPath(name).parts
    paths = {other: PurePosixPath(other) for other in names()}
    found = [
        other
        for other, path in paths.items()
        if parts and any(part.parts[-len(parts) :] == parts for part in (path, *path.parents))
    ]
    if found:
        return found
    called = {word: other for other, path in paths.items() for word in (path.stem, path.name, other)}
    like = difflib.get_close_matches(name, called, n=1, cutoff=0.7)
    hint = f"do you mean {called[like[0]]}?" if like else "mer-dist config list names those that there are"
    raise UserError(f"no file {name!r} comes with mer-dist; {hint}")


def _named_by(asked: list[str]) -> set[str]:
    """The files that are named in these, directly or indirectly."""
    found, left = set(asked), list(asked)
    while left:
        text = _text(left.pop())
        new = {name for name in names() if "/" in name and name in text} - found
        found |= new
        left += new
    return found


def _check_folders(target: Path, folder: Path) -> None:
    """
    Raises:
        UserError: something else than a folder has the path of a folder.
    """
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{parent}: is no folder; name another one")
        if parent == folder:
            break


def _same(name: str, target: Path) -> bool:
    return target.is_file() and target.read_bytes() == files.shipped(name).read_bytes()


def _copied(name: str, folder: Path) -> str:
    target = folder / name
    if _same(name, target):
        return f"{target}: there already"
    if target.exists():
        return f"{target}: another one is there already; left as it is"
    files.write_bytes(target, files.shipped(name).read_bytes())
    return f"{target}: written"


def _to_do(asked: list[str], folder: Path) -> list[str]:
    """Where to start, and which paths of the configurations do not exist yet."""
    lines = []
    if folder.resolve() != Path.cwd().resolve():
        lines.append(f"paths in them are relative to where mer-dist is started: cd {folder} first")
    for name in asked:
        if name.startswith("configs/"):
            config = configuration.load(files.shipped(name))
            paths = {"corpus.path": config.corpus.path}
            paths |= {f"extractors.{key}.path": item.path for key, item in config.extractors.items()}
            absent = [f"{key} ({path})" for key, path in paths.items() if not (folder / path).exists()]
            if absent:
                lines.append(f"{folder / name}: lead nowhere yet, edit them: {', '.join(absent)}")
    return lines
