"""Files that are either whole or absent, and marks that say what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mer_dist.core.errors import UserError

MARKER = "complete.json"
#: What people are sent to in messages and configurations; setup.cfg puts it into the wheel.
SHIPPED = ("configs", "launch", "slurm", "constraints.txt")
#: What :func:`size_and_mtime` means to people.
UNCHANGED = (
    "a file of the corpus counts as unchanged by its size and modification time: touch one that was repaired "
    "and has kept both"
)
#: In a mark: the fingerprint of all else that stands there.
_CHECKSUM = "checksum"
#: Bytes that are read at a time.
_BLOCK = 1 << 20
#: How a library that is not written in Python tells the number of a system's error.
_NUMBER = re.compile(r"\[?(?:os error|errno) (\d+)\b", re.IGNORECASE)
#: Seconds after which the rest of a write whose process cannot be seen from here is nobody's.
_ABANDONED = 86_400


def shipped(name: str = "") -> Path:
    """Where a file or folder of :data:`SHIPPED` is, as ``launch/workstation.yaml``: beside the package in a
    checkout, in ``share`` within it where a wheel was installed."""
    package = Path(__file__).parent.parent
    share = package / "share"
    return (share if share.is_dir() else package.parent) / name


def offered(path: str | Path) -> str:
    """What to do about a file that is not there and comes with mer-dist; empty for any other."""
    parts = Path(path).parts
    known = parts[:1] and parts[0] in SHIPPED and ".." not in parts and shipped(str(path)).is_file()
    return f"; mer-dist config copy {Path(path).as_posix()} writes it here" if known else ""


def started_from(path: str | Path) -> str:
    """Where a relative path that leads nowhere was looked for, and what to do; empty for any other."""
    if Path(path).is_absolute() or Path(path).exists():
        return ""
    return (
        "; a relative path, as one in config.yaml, counts from the folder where the command is started, here "
        f"{Path.cwd()}: start it where the run was started, or write the whole path"
    )


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, an empty file; on success make it durable and rename it.

    On an exception the temporary file is removed and ``path`` stays as it was.

    Raises:
        OSError: the system refused, as it does when a disk is full; it names ``path``, also where a
            library raised an error of its own or one without a name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_own()}.tmp")
    try:
        with named(path, temporary):
            temporary.touch()
            rights = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            _share(temporary, rights)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _own() -> str:
    """Of this process among those of all machines that write to the folder."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the system as OSErrors that name ``path`` where they would name nothing, as those of a
    write to an open file do, or only ``temporary``.

    Raises:
        OSError: with the number of the error and ``path``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _NUMBER.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        other = getattr(error, "filename", None)
        if number is None or (other and not (temporary and str(other).startswith(str(temporary)))):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def remove_stale(*folders: Path) -> None:
    """Remove what killed processes left of :func:`atomic` and :func:`atomic_folder` in ``folders``.

    What a process that lives is writing stays, and for a day also what one of another machine may be.
    """
    for folder in folders:
        for path in (*Path(folder).glob(".*.tmp"), *Path(folder).glob(".*.old")):
            host, _, process = path.name.split(".")[-2].partition("-")
            if path.suffix == ".tmp" and (lives(process) if host == _host() else _young(path)):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def lives(process: int | str) -> bool:
    """Whether a process of this machine is there and more than the remains of one."""
    if not Path("/proc/self/stat").exists():
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def _young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _ABANDONED
    except OSError:
        return False


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Like :func:`atomic` for a whole folder; an older ``folder`` is replaced.

    A kill leaves the old folder whole, the new one whole, or none: never a part of one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{_own()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with named(folder, temporary):
            temporary.mkdir()
            yield temporary
            publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Make ``temporary``, a folder beside ``folder``, durable and put it in its place."""
    retired = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    _share_as_usual(temporary)
    sync(temporary)
    if folder.exists():
        # Removed in place, a kill could leave half of it with its mark of completeness.
        os.replace(folder, retired)
    os.replace(temporary, folder)
    _sync(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _share_as_usual(folder: Path) -> None:
    """Give all that is in a new ``folder`` the rights that its user gives to new files and folders.

    Some libraries make files for their user alone, as ``save_file`` of safetensors; others copy the rights
    of what they copy. Others of a group that shares a run could then not go on with it.
    """
    # Made to see: umask and default ACLs decide, and the umask cannot be asked for without changing it.
    new = folder / f".new.{_own()}.tmp"
    new.touch()
    of_file, of_folder = (stat.S_IMODE(path.stat().st_mode) for path in (new, folder))
    new.unlink()
    for path in folder.rglob("*"):
        _share(path, of_folder if path.is_dir() else of_file)


def _share(path: Path, rights: int) -> None:
    found = path.lstat()
    # Those of another member of the group, to which links are made, are not ours to change.
    if found.st_uid == os.geteuid() and not path.is_symlink() and stat.S_IMODE(found.st_mode) != rights:
        path.chmod(rights)


def sync(folder: Path) -> None:
    """Make everything in ``folder`` durable."""
    for path in sorted(folder.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Also for a library that would write by itself, if it has a temporary file of its own: a kill
    leaves that where nothing removes it, as with ``save_file`` of safetensors."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Name -> bytes and CRC-32 of each of the files, as :func:`damaged` compares them.

    CRC-32 finds what accidents do to a file, at five times the rate of a cryptographic hash.
    """
    return {path.name: [path.stat().st_size, _crc32(path)] for path in paths}


def _crc32(path: Path) -> int:
    value, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            value = zlib.crc32(block[:count], value)
    return value


def damaged(folder: Path, expected: dict[str, list[int]]) -> list[str]:
    """The files in ``folder`` that are not what :func:`contents` told of them, each with what is wrong.

    Raises:
        OSError: one cannot be read now; that says nothing about what it holds.
    """
    found = ((name, _fault(Path(folder) / name, *facts)) for name, facts in expected.items())
    return [f"{name} {fault}" for name, fault in found if fault]


def _fault(path: Path, size: int, crc: int) -> str:
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes instead of {size}"
        return "" if _crc32(path) == crc else "holds other bytes than were written"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is gone"


def fingerprint_of(value: Any) -> str:
    """A short hash of any JSON-able value: equal values, equal fingerprints, in every process."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # The order of a set differs from process to process.
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def size_and_mtime(path: Path | None) -> list | None:
    """Size and modification time: what a file is known by without reading it.

    The time at which the inode changed is no part of it: a corpus that is copied, moved or linked is the same.
    """
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return None
    return [status.st_size, status.st_mtime_ns]


def folder_fingerprint(folder: Path) -> str:
    """Fingerprint of a folder by the names, sizes and times of its files."""
    rows = [
        [str(path.relative_to(folder)), size_and_mtime(path)]
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    ]
    return fingerprint_of(rows)


def write_marker(folder: Path, fingerprint: str, **facts: Any) -> None:
    """Leave the marker that says ``folder`` is complete and which fingerprint it was made from.

    Written last, so its presence is the proof that everything before it is on disk.

    Args:
        facts: what is the same whenever and on however many processes the folder is made; how long it
            took is noted by :mod:`mer_dist.storage.timings`.
    """
    content = json.loads(json.dumps({"fingerprint": fingerprint, **facts}))
    write_json(Path(folder) / MARKER, {**content, _CHECKSUM: fingerprint_of(content)})


def read_marker(folder: Path, fingerprint: str | None = None) -> dict | None:
    """The marker of ``folder``, or None if absent, unreadable, changed since, or of another fingerprint."""
    try:
        content = read_json(Path(folder) / MARKER)
        whole = isinstance(content, dict) and content.pop(_CHECKSUM, None) == fingerprint_of(content)
    except (OSError, ValueError):
        return None
    return content if whole and fingerprint in (None, content.get("fingerprint")) else None


def required_marker(folder: Path) -> dict:
    """The marker of a folder that was complete a moment ago.

    Raises:
        UserError: it is so no longer: somebody else works in it.
    """
    facts = read_marker(folder)
    if facts is None:
        raise UserError(
            f"{folder}: complete a moment ago, and now without its {MARKER}; what else works in it?"
        )
    return facts
