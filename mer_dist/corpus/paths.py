"""Files of the corpus: where they are, and why one cannot be read, as far as is known without opening it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: Names of file types that are not regular files.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def openface_folder(root: Path, name: str) -> Path:
    """Where OpenFace writes the faces of a clip."""
    return Path(root) / name / f"{name}_aligned"


def openface_array(root: Path, name: str) -> Path:
    """Where the challenges distribute the faces of a clip."""
    return Path(root) / name / f"{name}.npy"


def openface_table(root: Path, name: str) -> Path | None:
    """Where OpenFace wrote what it measured in each frame, in the folder of the clip or beside it."""
    places = (Path(root) / name / f"{name}.csv", Path(root) / f"{name}.csv")
    return next((path for path in places if path.is_file()), None)


def has_openface(root: Path, name: str) -> bool:
    """Whether there are faces of a clip, readable or not."""
    return openface_array(root, name).exists() or openface_folder(root, name).is_dir()


def fault(path: Path) -> str:
    """Empty if no fault is known. A named pipe is not opened: that would wait for a writer."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "a link to no file" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return "a link that leads back to itself"
        return getattr(error, "strerror", None) or str(error)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        return f"{_KINDS.get(kind, 'something else')}, not a file"
    if not status.st_size:
        return "the file is empty"
    return "" if os.access(path, os.R_OK) else "you have no right to read it"
