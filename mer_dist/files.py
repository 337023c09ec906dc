"""Files that are either whole or absent, and marks that say what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MARK = "made.json"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success make it durable and rename it.

    On an exception the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Like :func:`atomic` for a whole folder; an older ``folder`` is replaced.

    A kill leaves the old folder whole, the new one whole, or none: never a part of one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Make ``temporary``, a folder beside ``folder``, durable and put it in its place."""
    retired = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    for path in sorted(temporary.rglob("*")):
        _sync(path)
    if folder.exists():
        # Removed in place, a kill could leave half of it with its mark of completeness.
        os.replace(folder, retired)
    os.replace(temporary, folder)
    _sync(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-able value: equal values, equal fingerprints, in every process."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # The order of a set differs from process to process.
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def stamp(path: Path | None) -> list | None:
    """Size and modification time: what a file is known by without reading it."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def folder_fingerprint(folder: Path) -> str:
    """Fingerprint of a folder by the names, sizes and times of its files."""
    rows = [
        [str(path.relative_to(folder)), stamp(path)]
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    ]
    return fingerprint(rows)


def mark(folder: Path, made_from: str, **facts: Any) -> None:
    """Leave the marker that says ``folder`` is complete and which fingerprint it was made from.

    Written last, so its presence is the proof that everything before it is on disk.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(Path(folder) / MARK, {"made_from": made_from, "made_at": when, **facts})


def marked(folder: Path, made_from: str | None = None) -> dict | None:
    """The marker of ``folder``, or None if absent, unreadable or of another fingerprint."""
    try:
        facts = read_json(Path(folder) / MARK)
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or made_from not in (None, facts.get("made_from")):
        return None
    return facts
