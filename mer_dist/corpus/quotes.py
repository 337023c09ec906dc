"""The records of a CSV file, and quotes that are closed in a later row than the one that opens them.

Such a pair of quotes makes one field of all text between them, and the rows in it are lost without a reader
error. A transcript of several lines looks the same to a reader; its lines differ from rows: they do not begin
with a name, end with a label, or have as many fields as the table.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from mer_dist.core import clip_names
from mer_dist.core.log import logger


class Record(NamedTuple):
    """A row of a table, readable or not."""

    #: Its first and its last line, from 1.
    line: int
    end: int
    fields: list[str]
    #: Why it cannot be read; empty if it can.
    why: str


class _Lines:
    """An iterator over lines that can be rewound."""

    def __init__(self, lines: list[str], position: int, stop: int):
        self.lines, self.position, self.stop = lines, position, stop

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.position == self.stop:
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]


def records(lines: list[str], start: int, delimiter: str, stop: int | None = None) -> Iterator[Record]:
    """The records of ``lines[start:stop]``.

    After an unclosed quote, reading continues at the next line: one row is lost, not the rest of the
    file.
    """
    cursor = _Lines(lines, start, len(lines) if stop is None else stop)
    reader = csv.reader(cursor, strict=True, delimiter=delimiter)
    while cursor.position < cursor.stop:
        start = cursor.position
        try:
            fields = next(reader)
        except csv.Error as error:
            cursor.position = start + 1
            reader = csv.reader(cursor, strict=True, delimiter=delimiter)
            why = f"not readable as CSV: {error}; close its quotes, or write each of them twice"
            yield Record(start + 1, start + 1, lines[start].strip().split(delimiter), why)
            continue
        # Spreadsheets leave a line of delimiters for an emptied row.
        if any(map(str.strip, fields)):
            yield Record(start + 1, cursor.position, fields, "")


def freed(
    found: list[Record],
    lines: list[str],
    delimiter: str,
    columns: list[str],
    known: Collection[str],
    file: str,
) -> list[Record]:
    """The records, where rows that a quoted field swallowed are records again.

    The rows that open and close the quote are unreadable, since their text is ambiguous. If the lines are not
    certainly rows, they stay text, and this is logged.

    Args:
        columns: the header, with ``name``.
        known: names of clips that rows may have.
    """
    if all(record.line == record.end for record in found):
        return found
    form = _Form(found, columns, delimiter, known)
    kept, left = [], deque(found)
    while left:
        record = left.popleft()
        row, sure = form.row_within(record, lines)
        if sure:
            *between, last = records(lines, record.line, delimiter, record.end)
            opening = lines[record.line - 1].strip().split(delimiter)
            kept.append(Record(record.line, record.line, opening, _opens(record)))
            enough = last.fields if len(last.fields) >= len(columns) else []
            last = last._replace(fields=enough, why=last.why or _closes(record))
            left.extendleft(reversed([*between, last]))
            continue
        if row:
            logger.warning(
                "%s: the quote in line %d is closed in line %d, and the lines between count as text, "
                "though line %d looks like a row; if it is one, close the quote in line %d",
                file,
                record.line,
                record.end,
                row,
                record.line,
            )
        kept.append(record)
    return kept


def _opens(record: Record) -> str:
    return (
        f"a quote that is opened here is closed only after other rows (lines {record.line} to {record.end}); "
        "close it in this row, or write quotes that belong to the text twice, and all of it between quotes"
    )


def _closes(record: Record) -> str:
    return (
        f"a quote that is closed here was opened in a row before (lines {record.line} to {record.end}); write "
        "quotes that belong to the text twice, and all of it between quotes"
    )


class _Form:
    """The typical form of the rows of a table."""

    def __init__(self, found: list[Record], columns: list[str], delimiter: str, known: Collection[str]):
        self.columns, self.delimiter, self.known = columns, delimiter, known
        self.name_column = columns.index("name")
        called = {self._name(record.fields) for record in found}
        self.kinds, self.forms = {*map(_kinds, called)}, {*map(_form, called)}
        rows = [record.fields for record in found if record.line == record.end and not record.why]
        #: Column -> its values.
        self.values = [
            {*column} - {""} for column in zip(*(row for row in rows if self._whole(row)), strict=True)
        ]
        self.spaced = any(_spaced(row) for row in rows)

    def row_within(self, record: Record, lines: list[str]) -> tuple[int, bool]:
        """The first line of a record that looks like another row, and whether it is certain; 0 if none."""
        doubtful = 0
        if record.why or record.line == record.end:
            return 0, False
        # The line that opens the quote may itself be a row if the name comes after the text.
        for number in (*range(record.line + 1, record.end + 1), record.line):
            for fields in self._readings(lines[number - 1].rstrip("\r\n")):
                if not self._named(fields) or self._name(fields) == self._name(record.fields):
                    continue
                # In a sentence, a blank follows a comma.
                alike = self._whole(fields) and (self.spaced or not _spaced(fields))
                if self._valued(fields) or (alike and self._telling(self._name(fields))):
                    return number, True
                doubtful = doubtful or number * alike
        return doubtful, False

    def _readings(self, line: str) -> list[list[str]]:
        """A single line as fields: with its quotes ignored, and with its quotes parsed."""
        readings = [line.split(self.delimiter)]
        try:
            readings += csv.reader([line], delimiter=self.delimiter)
        except csv.Error:
            pass
        return readings

    def _named(self, fields: list[str]) -> bool:
        """Whether there are enough fields for a row, and one could be the name of a clip."""
        name = self._name(fields)
        could = _kinds(name) in self.kinds or name in self.known
        return len(fields) >= len(self.columns) and could and not clip_names.unsafe(name)

    def _valued(self, fields: list[str]) -> bool:
        """Whether a column other than the name has a value that also occurs in other rows, as labels do."""
        pairs = enumerate(zip(fields, self.values, strict=False))
        return any(field in values for column, (field, values) in pairs if column != self.name_column)

    def _telling(self, name: str) -> bool:
        """Whether the name differs from other clips' only in its number: a single word or number may be part
        of a sentence."""
        return name in self.known or (_form(name) in self.forms and len(_kinds(name) - {" "}) > 1)

    def _whole(self, fields: list[str]) -> bool:
        return len(fields) == len(self.columns)

    def _name(self, fields: list[str]) -> str:
        if self.name_column >= len(fields):
            return ""
        return clip_names.clean(fields[self.name_column].strip().strip('"'))


def _spaced(fields: list[str]) -> bool:
    return any(field[:1].isspace() for field in fields[1:])


def _kinds(name: str) -> frozenset[str]:
    """The kinds of characters in a name: letters, digits, and each other character by itself."""
    classes = (unicodedata.category(character)[0] for character in name)
    return frozenset(
        kind if kind in "LN" else character for kind, character in zip(classes, name, strict=True)
    )


def _form(name: str) -> str:
    """A name with its numbers masked."""
    return re.sub(r"\d+", "0", name)
