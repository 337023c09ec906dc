"""The records of a CSV file, and quotes that are closed in another row than the one that opens them.

Such a pair of quotes makes one field of all that stands between, and the rows in it are gone without an
error of any reader. A transcript of several lines looks the same to a reader; it is known by its lines, which
do not begin with a name, end with a label, or have as many fields as the table.
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
    """A row of a table, or what stands in its place."""

    #: Its first and its last line, from 1.
    line: int
    end: int
    fields: list[str]
    #: Why it cannot be read; empty if it can.
    why: str


class _Lines:
    """An iterator that can be set back to a line."""

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

    After a quote that is never closed, reading goes on at the next line: it costs one row, not
    the rest of the file.
    """
    cursor = _Lines(lines, start, len(lines) if stop is None else stop)
    while cursor.position < cursor.stop:
        start = cursor.position
        try:
            fields = next(csv.reader(cursor, strict=True, delimiter=delimiter))
        except csv.Error as error:
            cursor.position = start + 1
            why = f"not readable as CSV: {error}; close its quotes, or write each of them twice"
            yield Record(start + 1, start + 1, lines[start].strip().split(delimiter), why)
            continue
        # A line of delimiters alone is what tables leave of rows that were emptied.
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
    """The records with those that a quoted field swallowed as records of their own.

    The row that opens the quote and the one that closes it cannot be read; what of their text is meant, nobody
    knows. Where it is not sure that the lines are rows they stay text, and are told.

    Args:
        columns: of the header, one of them ``name``.
        known: names of clips that rows may be about.
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
                "%s: the quote in line %d is closed in line %d, and what stands between is taken for text, "
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
        f"a quote that is opened here is closed only behind other rows (lines {record.line} to {record.end}); "
        "close it in this row, or write quotes that belong to the text twice, and all of it between quotes"
    )


def _closes(record: Record) -> str:
    return (
        f"a quote that is closed here was opened in a row before (lines {record.line} to {record.end}); write "
        "quotes that belong to the text twice, and all of it between quotes"
    )


class _Form:
    """What rows of a table look like."""

    def __init__(self, found: list[Record], columns: list[str], delimiter: str, known: Collection[str]):
        self.columns, self.delimiter, self.known = columns, delimiter, known
        self.name_column = columns.index("name")
        called = {self._name(record.fields) for record in found}
        self.kinds, self.forms = {*map(_kinds, called)}, {*map(_form, called)}
        rows = [record.fields for record in found if record.line == record.end and not record.why]
        #: Column -> what stands in it.
        self.values = [
            {*column} - {""} for column in zip(*(row for row in rows if self._whole(row)), strict=True)
        ]
        self.spaced = any(_spaced(row) for row in rows)

    def row_within(self, record: Record, lines: list[str]) -> tuple[int, bool]:
        """The first line of a record that looks like another row, and whether it surely is one; 0 if none."""
        doubtful = 0
        if record.why or record.line == record.end:
            return 0, False
        # The line that opens the quote is one itself where the name stands behind the text.
        for number in (*range(record.line + 1, record.end + 1), record.line):
            for fields in self._readings(lines[number - 1].rstrip("\r\n")):
                if not self._named(fields) or self._name(fields) == self._name(record.fields):
                    continue
                # Between words of a sentence a blank follows a comma.
                alike = self._whole(fields) and (self.spaced or not _spaced(fields))
                if self._valued(fields) or (alike and self._telling(self._name(fields))):
                    return number, True
                doubtful = doubtful or number * alike
        return doubtful, False

    def _readings(self, line: str) -> list[list[str]]:
        """A line by itself as fields: with the quotes in it, and as if they meant nothing."""
        readings = [line.split(self.delimiter)]
        try:
            readings += csv.reader([line], delimiter=self.delimiter)
        except csv.Error:
            pass
        return readings

    def _named(self, fields: list[str]) -> bool:
        """Whether there are enough fields for a row, one of which could be the name of a clip."""
        name = self._name(fields)
        could = _kinds(name) in self.kinds or name in self.known
        return len(fields) >= len(self.columns) and could and not clip_names.unsafe(name)

    def _valued(self, fields: list[str]) -> bool:
        """Whether a column beside the name's has a value that it has in other rows, as labels have."""
        pairs = enumerate(zip(fields, self.values, strict=False))
        return any(field in values for column, (field, values) in pairs if column != self.name_column)

    def _telling(self, name: str) -> bool:
        """Whether it is called as other clips are but for its number: a word, or a number alone, may be part of
        a sentence."""
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
    """Which kinds of characters a name is made of: letters, digits, and each of the others by itself."""
    classes = (unicodedata.category(character)[0] for character in name)
    return frozenset(
        kind if kind in "LN" else character for kind, character in zip(classes, name, strict=True)
    )


def _form(name: str) -> str:
    """A name whatever its numbers are."""
    return re.sub(r"\d+", "0", name)
