"""Files that are either complete or absent, and markers with the fingerprint of their inputs."""

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
#: Files that messages and configurations refer to; setup.cfg puts them into the wheel.
SHIPPED = ("configs", "launch", "slurm", "constraints.txt")
#: How messages explain :func:`size_and_mtime`.
UNCHANGED = (
    "a file of the corpus counts as unchanged by its size and modification time: touch one that was repaired "
    "and has kept both"
)
#: In a marker: the fingerprint of its other fields.
_CHECKSUM = "checksum"
#: Bytes per read.
_BLOCK = 1 << 20
#: How a library not written in Python reports the errno of a system error.
_NUMBER = re.compile(r"\[?(?:os error|errno) (\d+)\b", re.IGNORECASE)
#: Seconds after which an unfinished write by a process on another machine counts as abandoned.
_ABANDONED = 86_400


def shipped(name: str = "") -> Path:
    """The path of a file or folder of :data:`SHIPPED`, such as ``launch/workstation.yaml``: beside the
    package in a checkout, in its ``share`` folder in an installed wheel."""
    package = Path(__file__).parent.parent
    share = package / "share"
    return (share if share.is_dir() else package.parent) / name


def offered(path: str | Path) -> str:
    """What to do about a missing file that comes with mer-dist; empty for any other."""
    parts = Path(path).parts
    known = parts[:1] and parts[0] in SHIPPED and ".." not in parts and shipped(str(path)).is_file()
    return f"; mer-dist config copy {Path(path).as_posix()} writes it here" if known else ""


def started_from(path: str | Path) -> str:
    """Where a missing relative path was looked for, and what to do; empty for any other."""
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
        OSError: a system error, such as a full disk; it names ``path``, even if a library raised its own
            error type or left out the name.
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
    """A name for this process, unique among all machines that write to the folder."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make system errors name ``path`` where they name no file, as errors of a write to an open file do, or
    only ``temporary``.

    Raises:
        OSError: with the errno and ``path``.
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

    Files of live processes stay. Files of other machines stay for a day.
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
    """Whether a process of this machine exists and is not a zombie."""
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
    """Like :func:`atomic` for a folder; an older ``folder`` is replaced.

    A kill leaves the complete old folder, the complete new one, or none, never a partial one.
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
    """Make ``temporary``, a folder beside ``folder``, durable and rename it to ``folder``."""
    retired = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    _share_as_usual(temporary)
    sync(temporary)
    if folder.exists():
        # If it were removed in place, a kill could leave half of it with its marker.
        os.replace(folder, retired)
    os.replace(temporary, folder)
    _sync(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _share_as_usual(folder: Path) -> None:
    """Give everything in a new ``folder`` the permissions that the user's new files and folders get.

    Some libraries make files private, as ``save_file`` of safetensors does; others copy the permissions of
    their source. Other members of a group that shares a run could then not continue it.
    """
    # Created as a sample: umask and default ACLs decide, and reading the umask would change it.
    new = folder / f".new.{_own()}.tmp"
    new.touch()
    of_file, of_folder = (stat.S_IMODE(path.stat().st_mode) for path in (new, folder))
    new.unlink()
    for path in folder.rglob("*"):
        _share(path, of_folder if path.is_dir() else of_file)


def _share(path: Path, rights: int) -> None:
    found = path.lstat()
    # Links may lead to files of another member of the group; those are not ours to change.
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
    """Also use this instead of a library's own writer that makes its own temporary file, such as
    ``save_file`` of safetensors: after a kill nothing would remove that file."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
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
    """Name -> size in bytes and CRC-32 of each file, as :func:`damaged` compares them.

    CRC-32 detects accidental damage, five times as fast as a cryptographic hash.
    """
    return {path.name: [path.stat().st_size, _crc32(path)] for path in paths}


def _crc32(path: Path) -> int:
    value, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            value = zlib.crc32(block[:count], value)
    return value


def damaged(folder: Path, expected: dict[str, list[int]]) -> list[str]:
    """The files in ``folder`` that differ from what :func:`contents` recorded, each with its fault.

    Raises:
        OSError: one cannot be read now; its content may still be intact.
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
    """A short hash of any JSON-able value: equal values give equal fingerprints in every process."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # The order of a set differs from process to process.
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def size_and_mtime(path: Path | None) -> list | None:
    """Size and modification time: they identify a file without reading it.

    The inode change time is left out: a corpus that is copied, moved or linked stays the same.
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
    """Write the marker: ``folder`` is complete, with the fingerprint of its inputs.

    It is written last, so its presence proves that everything before it is on disk.

    Args:
        facts: what depends neither on the time nor on the number of processes;
            :mod:`mer_dist.storage.timings` records the durations.
    """
    content = json.loads(json.dumps({"fingerprint": fingerprint, **facts}))
    write_json(Path(folder) / MARKER, {**content, _CHECKSUM: fingerprint_of(content)})


def read_marker(folder: Path, fingerprint: str | None = None) -> dict | None:
    """The marker of ``folder``, or None if absent, unreadable, changed since, or of another fingerprint."""
    try:
        content = read_json(Path(folder) / MARKER)
        intact = isinstance(content, dict) and content.pop(_CHECKSUM, None) == fingerprint_of(content)
    except (OSError, ValueError):
        return None
    return content if intact and fingerprint in (None, content.get("fingerprint")) else None


def required_marker(folder: Path) -> dict:
    """The marker of a folder that was complete a moment ago.

    Raises:
        UserError: it no longer is: another process works in it.
    """
    facts = read_marker(folder)
    if facts is None:
        raise UserError(
            f"{folder}: complete a moment ago, and now without its {MARKER}; what else works in it?"
        )
    return facts
