"""Interprets the cells of user tables: a label, a split, a file."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import LABELED, UNLABELED, plain
from mer_dist.corpus import signs

#: Words for an empty cell, by people and programs: pandas, Excel, R, databases, JavaScript.
#: Excel turns a line of speech that begins with a dash into the first of its errors below.
NOTHING = frozenset(
    [
        "na",
        "n/a",
        "n.a.",
        "#n/a",
        "#na",
        "<na>",
        "nan",
        "-nan",
        "null",
        "(null)",
        "[null]",
        "\\n",
        "none",
        "nil",
    ]
    + ["#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!", "undefined", "unknown"]
    + ["-", "--", "---", "–", "—", "?", "unlabeled", "unlabelled", "[]", "{}"]
)
#: Spreadsheet errors in a cell, in capitals: newer ones of Excel and those of Google Sheets, then those of
#: other languages. A spoken hashtag is hardly one of them.
_WRITTEN = """
#ERROR! #SPILL! #CALC! #FIELD! #BLOCKED! #CONNECT! #UNKNOWN! #BUSY! #GETTING_DATA #DATA! #EXTERNAL! #PYTHON!
#TIMEOUT! #MACRO?
#VALEUR! #NOM? #NOMBRE! #NUL! #CHAMP! #CALCUL!
#WERT! #BEZUG! #ZAHL! #NV #ÜBERLAUF! #KALK! #FELD!
#VALOR! #¡VALOR! #¡REF! #¿NOMBRE? #¡NUM! #¡NULO! #¡DIV/0! #N/D #NULO! #NOME? #NÚM! #DESPEJAR!
#VALORE! #RIF! #NULLO! #ESPANSIONE!
#WAARDE! #VERW! #NAAM? #GETAL! #LEEG! #DEEL/0! #N/B
#ARG! #ADR! #NAZWA? #LICZBA! #ZERO! #DZIEL/0!
#VÄRDEFEL! #REFERENS! #NAMN? #OGILTIGT! #SKÄRNING! #DIVISION/0! #SAKNAS!
#VÆRDI! #REFERENCE! #NAVN? #I/T #VERDI! #ARVO! #VIITTAUS! #NIMI? #LUKU! #TYHJÄ! #JAKO/0! #PUUTTUU!
#HODNOTA! #ODKAZ! #NÁZEV? #ČÍSLO! #ÉRTÉK! #HIV! #NÉV? #SZÁM! #ZÉRÓOSZTÓ! #HIÁNYZIK
#DEĞER! #BAŞV! #AD? #SAYI! #SAYI/0! #BOŞ! #YOK
#ЗНАЧ! #ССЫЛКА! #ИМЯ? #ЧИСЛО! #ПУСТО! #ДЕЛ/0! #Н/Д
#値! #名前? #数値! #参照! #值! #名称? #数字! #引用! #값! #이름?
"""
ERRORS = frozenset(_WRITTEN.split())
#: Numbered errors of LibreOffice, in several languages.
_ERROR_NUMBER = re.compile(r"(Err|Error|Erreur|Fehler|Errore|Fout|Ошибка|エラー|错误|錯誤|오류) ?: ?5\d\d")
_SPLITS = {"labeled": LABELED, "labelled": LABELED, "unlabeled": UNLABELED, "unlabelled": UNLABELED}
#: Other names of splits; only the user knows which of them are for training.
_OTHER_SPLITS = {
    "train": LABELED,
    "training": LABELED,
    "val": LABELED,
    "valid": LABELED,
    "dev": LABELED,
    "validation": LABELED,
    "test": UNLABELED,
    "testing": UNLABELED,
    "eval": UNLABELED,
}
#: Minimum difflib similarity at which a label is suggested for a word.
_ALIKE = 0.75


def is_nothing(cell: str) -> bool:
    """Whether the cell is one of these words, or blank."""
    text = unicodedata.normalize("NFKC", cell.strip())
    return not text or plain(text) in NOTHING or text in ERRORS or bool(_ERROR_NUMBER.fullmatch(text))


class Labels:
    """Maps the labels of one table to ``corpus.labels``, or gives the reason why not."""

    def __init__(self, labels: list[str], file: str):
        self.labels, self.file = labels, file
        #: Plain form -> the labels that have it.
        self._alike: dict[str, list[str]] = {}
        for label in labels:
            self._alike.setdefault(plain(label), []).append(label)
        self._understood: Counter[tuple[str, str]] = Counter()
        self._empty: Counter[str] = Counter()

    def cell(self, text: str) -> str:
        """The cell, or an empty one if it holds a word for empty; ``none`` may be a label."""
        if not is_nothing(text) or plain(text) in self._alike:
            return text
        if text.strip():
            self._empty[text.strip()] += 1
        return ""

    def read(self, text: str) -> tuple[str | None, str]:
        """The label, or why there is none; case is ignored if only one label fits."""
        text = text.strip()
        if text in self.labels:
            return text, ""
        alike = self._alike.get(plain(text), [])
        if len(alike) == 1:
            self._understood[text, alike[0]] += 1
            return alike[0], ""
        return None, (
            f"label {text!r} is not in corpus.labels: {', '.join(self.labels)}; {self._remedy(text, alike)}"
        )

    def _remedy(self, text: str, alike: list[str]) -> str:
        same = [label for label in self.labels if signs.looks(label) == signs.looks(text)]
        if same and not alike:
            own = signs.odd(text) or f"other signs, and the label {signs.odd(same[0])}"
            return f"it looks like {same[0]!r} and has {own}"
        near = difflib.get_close_matches(plain(text), self._alike, 1, _ALIKE)
        found = alike or [label for one in near for label in self._alike[one]]
        if found:
            return f"is {' or '.join(map(repr, found))} meant?"
        if is_nothing(text):
            return "leave label and split empty where a clip has no label"
        if text.isdigit():
            return "numbers can be labels, too: name them there, between quotes"
        return "correct the cell, or add the label there"

    def tell(self) -> None:
        """Log the labels that were not taken literally."""
        if self._empty:
            logger.warning(
                "%s: %d labels are words for an empty cell and count as empty: %s",
                self.file,
                self._empty.total(),
                ", ".join(map(repr, [*self._empty][:5])),
            )
        if self._understood:
            some = ", ".join(f"{text!r} as {label!r}" for text, label in [*self._understood][:5])
            logger.info(
                "%s: %d labels in other letters were understood: %s",
                self.file,
                self._understood.total(),
                some,
            )


def label_column(path: Path, columns: list[str]) -> str:
    """The column of a table ``name,label`` or ``name,discrete`` that holds its labels.

    Raises:
        UserError: it has neither, or both, which may differ.
    """
    named = [column for column in ("label", "discrete") if column in columns]
    if len(named) != 1:
        has = ", ".join(map(repr, columns[:20]))
        raise UserError(
            f"{path}: its first line needs a column label, or discrete, and not both; it has: {has}"
        )
    return named[0]


def tell_unused(path: Path, columns: Iterable[str], used: Collection[str]) -> None:
    """Log the columns of a table that are not read."""
    if others := [column for column in columns if column and column not in used]:
        logger.info("%s: columns that are not used: %s", path, ", ".join(map(repr, others[:20])))


def split(text: str, label: str) -> tuple[str, str]:
    """``labeled`` or ``unlabeled``, and why it is neither; an empty cell follows from the label."""
    text = text.strip()
    if not text:
        return LABELED if label.strip() else UNLABELED, ""
    found = _SPLITS.get(text.casefold())
    if found:
        return found, ""
    other = _OTHER_SPLITS.get(text.casefold())
    remedy = f"write {other} if that is meant" if other else "or leave it empty"
    return text, f"split {text!r} is neither {LABELED} nor {UNLABELED}; {remedy}"


class Files:
    """Finds the files that one table names, relative to its folder.

    A path is taken literally if that file exists. Otherwise, forms of other systems are tried:
    backslashes, ``~``, ``%20``, ``file://``, and names with other case or another encoding of an accent,
    if only one file matches.
    """

    def __init__(self, table: Path):
        self.table = Path(table)
        #: Folder -> its names, read once: a corpus may have 100,000 files.
        self._names: dict[str, set[str]] = {}
        #: Folder -> plain form -> names, for folders where a name was not found.
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._understood: list[tuple[str, Path]] = []

    def find(self, cell: str) -> Path | None:
        """The file that a cell names, existing or not; None for an empty cell."""
        cell = cell.strip()
        if not cell:
            return None
        literal = self.table.parent / cell
        folder, name = os.path.split(literal)
        if name in self._listed(folder):
            return literal
        for reading in _readings(cell):
            path = self._spelled(self.table.parent / reading)
            if path is not None:
                self._understood.append((cell, path))
                return path
        return literal

    def _spelled(self, path: Path) -> Path | None:
        """``path`` with its name as spelled on disk, or None if there is no such file, or two."""
        folder, name = os.path.split(path)
        listed = self._listed(folder)
        if not listed or name in listed:
            return path if listed else None
        if folder not in self._alike:
            alike = self._alike[folder] = {}
            for other in listed:
                alike.setdefault(plain(other), []).append(other)
        found = self._alike[folder].get(plain(name), [])
        return path.with_name(found[0]) if len(found) == 1 else None

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except (OSError, ValueError):
                self._names[folder] = set()
        return self._names[folder]

    def tell(self) -> None:
        """Log the paths that were not taken literally."""
        if self._understood:
            cell, path = self._understood[0]
            logger.info(
                "%s: %d paths in another spelling were understood, as %r for %s",
                self.table.name,
                len(self._understood),
                cell,
                path,
            )


def _readings(cell: str) -> list[str]:
    """The possible readings here of a path from another system."""
    text = cell.removeprefix("file://")
    readings = [text, text.replace("\\", "/")]
    readings += [unquote(reading) for reading in readings]
    if text.startswith("~"):
        readings += [os.path.expanduser(reading) for reading in readings]
    return list(dict.fromkeys(readings))
