"""Decodes user tables, and guesses the encoding of a table that does not fit ``corpus.encoding``."""

from __future__ import annotations

import codecs
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger

UTF8 = "utf-8"
#: Byte order marks, the longer ones first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: The decoded byte order mark.
MARK = "\ufeff"
#: Stands for undecodable bytes: a lone surrogate, as the UTF-8 decoder leaves it, too.
_BROKEN = "\udcff"
#: Bytes inspected to find the likely encoding.
_LOOKED_AT = 1 << 20
#: Fraction of the foreign letters that must be usual ones for a likely encoding.
_USUAL = 0.8
#: The most frequent letters of each language; short texts may have usual letters in two encodings.
_FREQUENT = {
    "gb18030": "的一是不了我你在有人他这中大来上个国到说们为子和地出道也时年得就那要下以生会自着去之过家学对可里好"
    "么什吗吧啊呢没很都还想看走快话知，。！？",
    "big5": "的一是不了我你在有人他這中大來上個國到說們為子和地出道也時年得就那要下以生會自著去之過家學對可裡好"
    "麼什嗎吧啊呢沒很都還想看走快話知，。！？",
    "euc_kr": "이다는가에을의고하지은도를한기어로나사아라들리서자시그대니인요해스있정일여게만수보제무주거면내안너네요",
}
#: Python's name of an encoding -> its common name.
KNOWN = {
    "euc_kr": "EUC-KR (Korean)",
    "shift_jis": "Shift JIS (Japanese)",
    "euc_jp": "EUC-JP (Japanese)",
    "gb18030": "GBK, as Chinese Excel saves",
    "big5": "Big5 (traditional Chinese)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "cp1252": "Windows-1252 (Western European)",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
}


def decode(content: bytes, stated: str, path: Path) -> tuple[str, str]:
    """The text, with lone surrogates for undecodable bytes, and the encoding that was used.

    A byte order mark decides. Content with foreign letters that is valid UTF-8 throughout is UTF-8,
    whatever ``stated`` is: another encoding would give wrong letters without an error.
    """
    used = next((name for mark, name in _MARKS if content.startswith(mark)), stated)
    if (
        used == stated
        and codecs.lookup(stated).name != UTF8
        and not content.isascii()
        and _whole(content, UTF8)
    ):
        logger.warning("%s is UTF-8, and not %s as corpus.encoding says; it is read so", path, stated)
        used = UTF8
    try:
        text = content.decode(used, "surrogateescape")
    except UnicodeDecodeError:
        text = content.decode(used, "replace").replace("\ufffd", _BROKEN)
    return text.removeprefix(MARK), "utf-8" if used == "utf-8-sig" else used


def marked(content: bytes) -> bool:
    """Whether it begins with a byte order mark."""
    return any(content.startswith(mark) for mark, _ in _MARKS)


def is_text(fields: list[str]) -> bool:
    """Whether all bytes of these fields could be decoded."""
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse(path: Path, content: bytes, used: str, by_key: bool) -> None:
    """Refuse a table that is not in the encoding ``used``.

    Args:
        by_key: whether ``corpus.encoding`` applies to this table.

    Raises:
        UserError: always; with the likely encoding, a sample of it, and how to convert the file.
    """
    found = None if marked(content) else likely(content)
    why = f"{path}: it is not {used.upper()}"
    if found is None or found == used:
        other = "as its first bytes say" if marked(content) else "nor any usual encoding"
        raise UserError(f"{why}, {other}; is it a table, and complete? Save it as CSV in UTF-8")
    lines = [line for line in content.decode(found, "replace").splitlines() if not line.isascii()]
    sample = f", by which it reads {lines[0][:40]!r}" if lines else ""
    key = f"set corpus.encoding: {found}, or " if by_key else ""
    raise UserError(
        f"{why}, but probably {KNOWN[found]}{sample}; {key}convert it: iconv -f {found.upper()} "
        f"-t UTF-8 {path.name} > utf8.csv"
    )


def likely(content: bytes) -> str | None:
    """The encoding, by Python's name, in which most foreign letters are usual ones."""
    if len(content) > _LOOKED_AT:
        content = content[: content.rfind(b"\n", 0, _LOOKED_AT) + 1] or content[:_LOOKED_AT]
    for name, zeros in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if zeros.count(0) > 0.3 * len(zeros) and _whole(content, name):
            return name
    # A short line may happen to be valid UTF-8, too.
    content = b"\n".join(line for line in content.split(b"\n") if not _whole(line, UTF8)) or content
    tried = {
        name: _fit(content.decode(name), name)
        for name in ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
        if _whole(content, name)
    }
    fits = {name: frequent for name, (usual, frequent) in tried.items() if usual >= _USUAL}
    if fits:
        return max(fits, key=fits.__getitem__)
    letters = [byte for byte in content if byte > 127 or chr(byte).isalpha()]
    # Accented letters occur among plain ones; Cyrillic words have no plain letters.
    single = "cp1251" if sum(byte > 127 for byte in letters) > 0.3 * len(letters) else "cp1252"
    return single if _whole(content, single) else None


def _whole(content: bytes, name: str) -> bool:
    try:
        content.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _fit(text: str, name: str) -> tuple[float, float]:
    """Fractions of the non-ASCII letters that are usual in an encoding, and that are its most frequent."""
    foreign = "".join(letter for letter in text if letter > "\x7f")
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in foreign)
    han = "".join(letter for letter in foreign if "\u4e00" <= letter <= "\u9fff")
    marks = sum(
        "\u3000" <= letter <= "\u303f" or "\uff01" <= letter <= "\uff5e" or letter in "“”‘’…—·"
        for letter in foreign
    )
    frequent = sum(letter in _FREQUENT.get(name, "") for letter in foreign)
    if name == "euc_kr":
        usual = sum("\uac00" <= letter <= "\ud7a3" for letter in foreign) + marks
    elif name in ("shift_jis", "euc_jp"):
        usual, frequent = (kana + len(han) + marks, kana) if kana > 0.2 * len(foreign) else (0, 0)
    else:
        # The first of two levels into which these character sets sort their letters by frequency.
        coded, last = ("gb2312", 0xD7) if name == "gb18030" else ("big5", 0xC6)
        leads = (letter.encode(coded, "ignore")[:1] for letter in han)
        usual = sum(b"\xa4" <= lead <= bytes([last]) for lead in leads) + marks
    count = max(1, len(foreign))
    return usual / count, frequent / count
