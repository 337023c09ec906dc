"""CSV files of people: UTF-8 with or without BOM, text kept as written, a bad row costs itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mer_dist.corpus import names
from mer_dist.errors import UserError


@dataclass(kw_only=True)
class Table:
    """The rows of a CSV file by clip name."""

    file: str
    #: name -> column -> text.
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    #: name -> line on which its row begins.
    lines: dict[str, int] = field(default_factory=dict)
    #: name, or ``file:line`` where the row does not tell it -> why the row cannot be read.
    bad: dict[str, str] = field(default_factory=dict)

    def place(self, name: str) -> str:
        return f"{self.file} line {self.lines[name]}"


def read(path: Path, columns: tuple[str, ...]) -> Table:
    """Read a CSV file whose header has at least ``columns``, one of them ``name``.

    A ``name`` may carry the suffix ``.mp4``. Nothing but an empty field is empty: ``null`` and
    ``NA`` are text.

    Raises:
        UserError: no such file, no such column, or a name that occurs twice.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    records = _records(list(io.StringIO(text, newline="")))
    _, header, _ = next(records, (0, [], ""))
    header = [column.strip() for column in header]
    absent = [column for column in columns if column not in header]
    if absent:
        has = ", ".join(map(names.shown, header[:20])) or "nothing"
        raise UserError(f"{path}: its first line lacks the columns {', '.join(absent)}; it has: {has}")
    table = Table(file=path.name)
    places, broken = [], []
    for line, fields, why in records:
        if not why and len(fields) != len(header):
            why = f"{len(fields)} fields instead of {len(header)}"
        row = dict(zip(header, fields, strict=False))
        name = row.get("name", "").strip()
        name = name[:-4] if name.lower().endswith(".mp4") else name
        if why:
            broken.append((line, name, why))
            continue
        places.append((name, f"{path.name} line {line}"))
        table.rows[name] = row
        table.lines[name] = line
    names.check(places)
    for line, name, why in broken:
        known = name not in table.rows and not names.unsafe(name)
        table.bad[name if known else f"{path.name}:{line}"] = f"{path.name} line {line}: {why}"
    return table


def text_or_none(field: str | None) -> str | None:
    """A field as it stands, or None if nothing but blanks is in it."""
    return field if field and field.strip() else None


class _Lines:
    """An iterator that can be set back to a line."""

    def __init__(self, lines: list[str]):
        self.lines, self.position = lines, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.position == len(self.lines):
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]


def _records(lines: list[str]) -> Iterator[tuple[int, list[str], str]]:
    """Line, fields and, where the record is not readable, why.

    After a quote that is never closed, reading goes on at the next line: it costs one row, not
    the rest of the file.
    """
    cursor = _Lines(lines)
    while cursor.position < len(lines):
        start = cursor.position
        try:
            fields = next(csv.reader(cursor, strict=True))
        except csv.Error as error:
            cursor.position = start + 1
            yield start + 1, lines[start].strip().split(","), f"not readable as CSV: {error}"
            continue
        if not fields:
            continue
        yield start + 1, fields, "" if _is_text(fields) else "not UTF-8"


def _is_text(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
