"""Reads user CSV files: any configured encoding, text kept as written, a bad row loses only itself."""

from __future__ import annotations

import io
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.corpus import encoding as encodings
from mer_dist.corpus import quotes
from mer_dist.corpus.quotes import Record
from mer_dist.storage import files

#: Possible delimiters, the usual one first.
DELIMITERS = (",", ";", "\t", "|")
#: First bytes of other kinds of files, and their kind.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive, as Excel workbooks (.xlsx) and .npz files are"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite", "a database"),
)


#: A spreadsheet's ways to say that a number is text: ``="001"`` and ``'001``.
_AS_TEXT = re.compile(r"""="([^"]+)"|'(\d+)""")
#: First lines of texts that are not tables.
_OTHER_TEXTS = (
    (r"\d+\s*\r?\n\s*\d\d:\d\d:\d\d[,.]\d+ *-->", "subtitles (SRT)"),
    (r"WEBVTT\b", "subtitles (WebVTT)"),
    (r"\[(script info|v4\+? styles)\]", "subtitles (ASS)"),
    (r'(file type = )?"?ooTextFile', "a TextGrid of Praat"),
    (r'\{[^\n]*"[^\n]*\}\s*\n\s*\{', "JSON, one object a line"),
    (r'[\[{]\s*["\[{\]}\d]', "JSON"),
    (r"<!doctype html|<html", "an HTML page, as servers send in place of a file that is not there"),
    (r"<\?xml|<[a-z][\w:.-]*[\s>]", "XML"),
    (r"version https://git-lfs", "what Git LFS leaves in place of a file; fetch that with git lfs pull"),
    (r"%PDF|\{\\rtf", "a document"),
)


@dataclass(kw_only=True)
class Table:
    """The rows of a CSV file by clip name."""

    file: str
    #: name -> column, in small letters -> text.
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    #: name -> line on which its row begins.
    lines: dict[str, int] = field(default_factory=dict)
    #: name, or ``file:line`` if the row has no usable name -> why the row cannot be read.
    bad: dict[str, str] = field(default_factory=dict)
    #: The columns of its header, in small letters.
    columns: list[str] = field(default_factory=list)

    def others(self, name: str, known: Collection[str]) -> dict[str, str]:
        """Column -> text, of the columns that are not ``known``, in a clip's row; without empty fields."""
        row = self.rows.get(name, {})
        return {
            column: text for column, text in row.items() if column and column not in known and text.strip()
        }

    def location(self, name: str) -> str:
        return f"{self.file} line {self.lines[name]}" if name in self.lines else self.file


def read(
    path: Path, columns: tuple[str, ...], encoding: str | None = None, known: Collection[str] = ()
) -> Table:
    """Read a CSV file whose header has at least ``columns``, one of them ``name``.

    The header may be in capitals, its fields separated by one of :data:`DELIMITERS`. A ``name`` may have the
    suffix of a media file; it is normalized to NFC. Fields stay as written: :mod:`mer_dist.corpus.cells` and
    :mod:`mer_dist.corpus.texts` interpret words such as ``null`` and ``NA``.

    Args:
        encoding: ``corpus.encoding``; None: UTF-8, for files to which the key does not apply. A byte order
            mark takes precedence.
        known: names of clips that rows may have, if they are known.

    Raises:
        UserError: no such file, not a table, another encoding, no such column, or a name that occurs twice.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        why = f"{error.strerror or error}{files.started_from(path)}"
        raise UserError(f"{path}: cannot be read: {why}") from None
    text, used = encodings.decode(content, encoding or encodings.UTF8, path)
    # In concatenated files, each may begin with its byte order mark.
    lines = [line.removeprefix(encodings.MARK) for line in io.StringIO(text, newline="")]
    if _unreadable(path, content, lines):
        encodings.refuse(path, content, used, encoding is not None)
    header, records, delimiter = _header(path, lines, columns)
    foreign = [encodings.is_text(record.fields) for record in records if not "".join(record.fields).isascii()]
    broken = foreign.count(False)
    # Rows may be damaged, or added by another program; if almost all are broken, the encoding is wrong.
    most = broken > 10 * foreign.count(True) and not encodings.marked(content)
    if broken and (broken == len(records) or (most and broken > 1)):
        encodings.refuse(path, content, used, encoding is not None)
    if "name" in header:
        records = quotes.freed(records, lines, delimiter, header, known, path.name)
    return _by_name(Table(file=path.name, columns=header), _rows(path, header, records), used)


def _unreadable(path: Path, content: bytes, lines: list[str]) -> bool:
    """Whether the first line is text of another encoding.

    Raises:
        UserError: the file is not text.
    """
    kind = next((kind for magic, kind in _OTHERS if content.startswith(magic)), None)
    first = next((line for line in lines if line.strip()), "")[:1000]
    if kind is None and re.search(r"[\x00-\x08\x0e-\x1f]", first):
        if (encodings.likely(content) or "").startswith("utf-16"):
            return True
        kind = "not text"
    if kind:
        raise UserError(f"{path}: it is {kind}, not a CSV table; save it as CSV in UTF-8")
    return not encodings.is_text([first])


def _header(path: Path, lines: list[str], columns: tuple[str, ...]) -> tuple[list[str], list[Record], str]:
    """The columns in lower case, the records, and the delimiter that finds most of ``columns``.

    Raises:
        UserError: the file lacks a column or has one twice.
    """
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    # Such a line sets the delimiter for Excel.
    separator = re.fullmatch(r'"?sep=([^\w"])"?[\r\n]*', "".join(lines[start : start + 1]), re.IGNORECASE)
    readings = []
    for delimiter in separator[1] if separator else DELIMITERS:
        records = quotes.records(lines, start + bool(separator), delimiter)
        first = next(records, Record(0, 0, [], ""))
        readings.append(([column.strip().casefold() for column in first.fields], records, delimiter))

    def found(reading: tuple) -> tuple[int, int]:
        count = sum(column in reading[0] for column in columns)
        return count, 0 if count else len(reading[0])

    header, records, delimiter = max(readings, key=found)
    shown = ", ".join(map(clip_names.shown, header[:20])) or "nothing"
    if absent := [column for column in columns if column not in header]:
        if why := _other_text(lines[start : start + 20]):
            raise UserError(f"{path}: {why} {','.join(columns)}")
        raise UserError(
            f"{path}: its first line lacks the columns {', '.join(absent)}; it has: {shown}; columns are found by these "
            "names, so rename those that hold them"
        )
    if twice := sorted({column for column in header if column and header.count(column) > 1}):
        raise UserError(
            f"{path}: its first line has the column {', '.join(map(clip_names.shown, twice))} twice; take one out"
        )
    if delimiter != ",":
        logger.info("%s: read with %r between its fields", path, delimiter)
    return header, list(records), delimiter


def _rows(path: Path, header: list[str], records: list[Record]) -> list[Record]:
    """The records without repeated headers, as after ``cat a.csv b.csv``.

    Raises:
        UserError: a repeated header has its columns in another order, which applies to the rows after it.
    """
    rows, again, known = [], [], set(header)
    for record in records:
        if "".join(record.fields[:1]).strip().casefold() not in known:
            rows.append(record)
            continue
        columns = [field.strip().casefold() for field in record.fields]
        if len(columns) < 2 or sorted(columns) != sorted(header):
            rows.append(record)
        elif columns == header:
            again.append(record.line)
        else:
            raise UserError(
                f"{path}: line {record.line} is a second header, with the columns in another order than the first: "
                f"{','.join(columns)}; give both parts the same order, or each a file of its own"
            )
    if again:
        logger.warning(
            "%s: several tables in one: the header is repeated in %d lines, the first of them %d; they are "
            "skipped",
            path,
            len(again),
            again[0],
        )
    return rows


def _other_text(lines: list[str]) -> str | None:
    """The fault of a text that begins with these lines and not with a header, if it is known."""
    text = "".join(lines).lstrip()
    for form, kind in _OTHER_TEXTS:
        if re.match(form, text, re.IGNORECASE):
            return f"it is {kind}, not a table; make a CSV of it, with the header"
    comment = text.startswith(("#", "%", "//", ";;"))
    return (
        "its first line is a comment; take that out, so that it begins with the header" if comment else None
    )


def _by_name(table: Table, records: list[Record], used: str) -> Table:
    """``table`` with the records as its rows, or with the reasons why they cannot be read."""
    locations, broken, as_text = [], [], []
    count = len(table.columns)
    for record in records:
        line, _, fields, why = record
        if not why and not encodings.is_text(fields):
            why = f"not {used.upper()}; save the table in that encoding, or mend the row"
        if not why and len(fields) != count:
            more = "; put a field that holds a delimiter between quotes" * (len(fields) > count)
            why = f"{len(fields)} fields instead of {count}{more}"
        if why and record is records[-1] and len(fields) < count:
            why += "; it is the last row: the file may be cut off here; compare it with its source"
        row = dict(zip(table.columns, fields, strict=False))
        cell = row.get("name", "").strip()
        # How spreadsheets keep 001 from becoming 1.
        if (text := _AS_TEXT.fullmatch(cell)) and any(text.groups()):
            as_text.append(cell)
            cell = text[1] or text[2]
        name = clip_names.clean(cell)
        if why:
            # After an extra field, the other fields are shifted.
            name = name if len(fields) == count or table.columns[0] == "name" else ""
            broken.append((line, name, why))
            continue
        locations.append((name, line))
        table.rows[name] = row
        table.lines[name] = line
    if as_text:
        logger.info(
            "%s: %d names are written as a spreadsheet's text, as %s, and read without that",
            table.file,
            len(as_text),
            as_text[0],
        )
    clip_names.check(locations, lambda line: f"{table.file} line {line}")
    for line, name, why in broken:
        known = name not in table.rows and not clip_names.unsafe(name)
        table.bad[name if known else f"{table.file}:{line}"] = f"{table.file} line {line}: {why}"
    return table
