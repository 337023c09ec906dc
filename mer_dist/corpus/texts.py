"""Checks the transcripts of user tables: speech, empty, or text that is not speech."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

from mer_dist.core.log import logger
from mer_dist.corpus import cells

#: Kinds of remarks. The first two mean no text, the third and fourth change the text; the others keep it as
#: written.
EMPTY_MARK = "a word for an empty cell in place of a transcript, which is no text"
INVISIBLE = "nothing but characters that cannot be seen, which are no text"
CONTROL = "control characters in its transcript, which are taken out"
WINDOWS = "quotes, dashes or dots of Windows decoded as Latin-1 in its transcript, which are put right"
LOST = "letters of its transcript that were lost before: � stands for them"
UNKNOWN = "question marks alone, which a program writes for letters that it cannot"
ESCAPED = "letters that are written as \\u and a number"
PATH = "the name of a file in place of a transcript; files of text are not read"
SUBTITLES = "times of subtitles in its transcript"
MARKUP = "HTML or other markup in its transcript"
RECOGNISED = "tags of a speech recogniser or language model in its transcript, as <|en|>; keep what was said"
STRUCTURE = "JSON, or a list or dictionary of Python, in place of a transcript; keep the text in it alone"
NOTE = "a note alone, as [BLANK_AUDIO] or (inaudible), in place of a transcript; leave it empty where nothing was said"
CODE = "what programs write for a missing value, as . or -99, in place of a transcript; leave it empty"
QUOTED = "quotes around its whole transcript, or blanks before them, for which a table's quotes do not count"
WRITTEN = "escapes of another program in its transcript, as _x000D_, %20 or a backslash before n"
SPEAKER = "the name of a speaker before its speech"
GARBLED = "letters that read as text of another encoding, as Chinese decoded as Latin-1; save the table anew from its source"
CHAT = "codes of a CHAT transcript, as *PAR:, &-uh or [/]; keep what was said"
TIMED = "a time or confidence after each word; keep the words"
PIECES = "pieces of words as a tokenizer writes them, as re@@ ally, ##ing or ▁the; join them"
IDS = "numbers of a tokenizer in place of words; write the text that they stand for"
TAGGED = "a tag after each word, as its part of speech in word/NN; keep the words"
ENCODED = "base64 or hexadecimal digits in place of a transcript; decode it"
MISREAD = "letters that read as UTF-8 decoded as cp1252, as Ã© for é; save the table anew from its source"
_ODD = (
    (LOST, re.compile("\ufffd")),
    (UNKNOWN, re.compile(r"^(?:[^\w?]*+\?){3,}+\W*+$")),
    (
        NOTE,
        re.compile(
            r"^\W*(\[[^\]{\"'|]{1,60}\]|\([^)]{1,60}\)|（[^）]{1,60}）|【[^】]{1,60}】|<[^>]{1,60}>|\*[^*]{1,60}\*|[♩♪♫♬])\W*$"
        ),
    ),
    (
        CODE,
        re.compile(
            r"^\s*+([-.,;:!*#_~/\\|+=<>^&%$@'\"`…。，、！；：·—–\s]++|[-+]?\d+([.,]\d+)?|true|false|[-+]?inf(inity)?|x{2,}|missing( (data|value))?"
            r"|no (data|speech|text|transcript(ion)?|answer)|not (available|applicable)|inaudible|unintelligible)\s*$",
            re.IGNORECASE,
        ),
    ),
    (QUOTED, re.compile(r"""^\s*(["'])[^"']+\1\s*$""")),
    (
        WRITTEN,
        re.compile(
            r"""_x[0-9A-F]{4}_|\\[ntr'"]|^b(["']).*\1$|^="|^[^\s%]*(%[2-9A-E][0-9A-F][^\s%]*)+$|^[^\W\d]+(\+[^\W\d]+){2,}\W?$"""
        ),
    ),
    (SPEAKER, re.compile(r"^\s*(\[?\(?SPEAKER[ _]?\w{1,3}\)?\]?|[A-Z]{3,}( [A-Z]+)?)\s?[:：]\s*\S")),
    (ESCAPED, re.compile(r"\\u[0-9a-fA-F]{4}")),
    (
        PATH,
        re.compile(
            r"\s*[^\n]{1,300}\.(txt|text|srt|vtt|ass|ssa|sub|lrc|lab|trs|eaf|textgrid|json|jsonl|csv|tsv|xml|html?"
            r"|docx?|pdf|wav|mp3|m4a|flac|mp4|mkv|avi|mov|npy)\s*",
            re.IGNORECASE,
        ),
    ),
    (SUBTITLES, re.compile(r"\d\d:\d\d[.,]\d{2,3}\s*-->|\[\d\d?:\d\d[.:]\d\d\d?\]")),
    (
        MARKUP,
        re.compile(
            r"</?[a-zA-Z][^<>\n]*>|&(#\d{2,7}|#[xX][0-9a-fA-F]{2,6}|[a-zA-Z]{2,8}\d?);|\{\\[^{}\n]+\}"
        ),
    ),
    (RECOGNISED, re.compile(r"<\|[^<>|\s]{1,40}\|>|\[(_BEG_|_TT_\d+|INST|/INST|CLS|SEP|UNK|PAD|MASK)\]")),
    (CHAT, re.compile(r"^\s*+\*[A-Z]\w{1,3}:|(?<!\S)&[-=+~]\w|\[/{1,3}\]|(?<!\S)\+(\.\.\.|/{1,2}\.)(?!\S)")),
    (
        TIMED,
        re.compile(
            r"(?<!\S)(([^\W\d]\S{0,40}\s\d{1,6}\.\d{1,6}\s\d{1,6}\.\d{1,6}(\s|$)){2}|(\d{1,6}\.\d{1,6}\s\d{1,6}\.\d{1,6}\s"
            r"[^\W\d]\S{0,40}(\s|$)){2}|([^\W\d]\S{0,40}\s\d{1,9}\s\d{1,9}(\s|$)){3}|([^\W\d][^\s(]{0,40}\([01]?\.\d{1,6}\)(\s|$)){2})"
        ),
    ),
    # SentencePiece's blank is U+2581. Ġ, that of GPT-2, is a letter of Maltese, but not within a word in small letters.
    (PIECES, re.compile(r"\w@@(\s|$)|(?<!\S)##[^\W\d]|\u2581|[a-z]Ġ[a-z]|(?<!\S)(Ġ\w{1,40}\s){3}")),
    (
        STRUCTURE,
        re.compile(
            r"""^\s*+(\[\s*+)?\{\s*+(["'])\w[\w .-]{0,60}\2\s*+:|^\s*+\[\s*+["'].*["']\s*+\]\s*+$""",
            re.DOTALL,
        ),
    ),
)
#: A word with its part of speech: Penn's, the universal and the German tags in capitals, Chinese ones in small letters.
_TAG = re.compile(r"[^\s/_]+[/_]([A-Z]{1,6}\d?\$?|[a-z]{1,2}\d?|\$?[.,:;!?(。，])")
#: Words that show a tokenizer's numbers or tags, and the part of all words from which on they do.
_FEWEST, _NUMBERS, _TAGS = 3, 0.5, 0.8
#: Characters below which a word may be base64 by chance.
_SHORTEST = 16
#: Characters of visible categories that show nothing: Hangul fillers, the Braille blank, joiners and
#: variation selectors.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
)


#: Sequences of UTF-8 decoded as cp1252 that do not occur in real text: a letter before a sign that follows no
#: letter. Quotes, dashes and dots do follow letters, as in "CAFÉ…", whose bytes are UTF-8, too. The last are
#: bytes without a letter in cp1252, or in Latin-1.
_MISREAD = re.compile(
    r"[ÂÃ][\xa0-\xbf]|â€|áº|[Â-ô][ƒ†‡ˆ‰˜Ÿ\xa1-\xa9\xac\xad\xaf\xb1-\xb3\xb5\xb6\xb8\xb9\xbc-\xbf\x80-\x9f]"
)


#: Codes of Latin-1 control characters, unused in text, that are letters in cp1252, as the quote of "don't".
_WINDOWS = {
    code: letter for code in range(0x80, 0xA0) if (letter := bytes([code]).decode("cp1252", "ignore"))
}


#: Equal transcripts that are told, if they are a twentieth of all.
MANY = 10


class Texts:
    """The transcripts of one table as spoken, and remarks on them."""

    def __init__(self, file: str):
        self.file = file
        #: Kind -> name -> the cell.
        self._told: dict[str, dict[str, str]] = {}
        self._count: Counter[str] = Counter()

    def read(self, row: Mapping[str, str], column: str) -> tuple[str | None, tuple[str, ...]]:
        """The transcript in a row, None if there is none, and remarks on it.

        Text that is not speech is reported, not rewritten. Only control characters are removed, and those
        that are quotes, dashes or dots in another encoding are replaced by these.
        """
        cell, name = row.get(column) or "", row.get("name", "")
        if not cell.strip():
            return None, ()
        if cells.is_nothing(cell):
            return None, self._note(EMPTY_MARK, name, cell)
        if not any(map(_seen, cell)):
            return None, self._note(INVISIBLE, name, cell)
        spoken = cell.translate(_WINDOWS)
        text = "".join(" " * letter.isspace() if _controls(letter) else letter for letter in spoken)
        kinds = [CONTROL] * (text != spoken) + [WINDOWS] * (spoken != cell and not _misread(cell))
        kinds += [kind for kind, form in _ODD if (form.fullmatch if kind == PATH else form.search)(text)]
        kinds += [kind for kind, holds in _WHOLE if holds(cell)]
        for kind in kinds:
            self._note(kind, name, cell)
        self._count[text] += 1
        # Letters and their accents in one, as tokenizers know them; macOS and Korean programs take them apart.
        return unicodedata.normalize("NFC", text), tuple(kinds)

    def _note(self, kind: str, name: str, cell: str) -> tuple[()]:
        self._told.setdefault(kind, {})[name] = cell
        return ()

    def tell(self) -> None:
        """One line for each kind, with an example."""
        for kind, found in self._told.items():
            name, cell = next(iter(found.items()))
            logger.warning("%s: %d cells: %s; as %r of %s", self.file, len(found), kind, cell[:80], name)
        for text, count in self._count.most_common(3):
            if count >= max(MANY, self._count.total() / 20):
                logger.warning(
                    "%s: %d of %d transcripts are %r; if that stands for none, leave them empty",
                    self.file,
                    count,
                    self._count.total(),
                    text[:80],
                )


def _misread(text: str) -> bool:
    """Whether the text is certainly UTF-8 that a program decoded as cp1252."""
    if not _MISREAD.search(text):
        return False
    try:
        b"".join(map(_byte, text)).decode()
    except UnicodeError:
        return False
    return True


def _garbled(text: str) -> bool:
    """Whether the text reads as Chinese or Cyrillic decoded as Latin-1, or as UTF-8 decoded as GBK."""
    if "锟斤拷" in text:
        return True
    letters = [letter for letter in text if letter.isalpha()]
    if sum("\xc0" <= letter <= "\xff" for letter in letters) >= max(4, 0.6 * len(letters)):
        return True
    if len({letter for letter in letters if "\u4e00" <= letter <= "\u9fff"}) < 4:
        return False
    # Real Chinese in the bytes of GBK is next to never UTF-8.
    decoded = text.encode("gb18030", "replace").decode("utf-8", "replace")
    return decoded.count("\ufffd") + decoded.count("?") < 0.2 * len(decoded)


def _ids(text: str) -> bool:
    """Whether the text is numbers alone, most of them as large as those of a vocabulary; a telephone number begins
    with 0 or is shorter."""
    words = text.replace(",", " ").split() if ", " in text else text.split()
    if len(words) < _FEWEST or not all(
        word.isdecimal() and (word == "0" or word[0] != "0") for word in words
    ):
        return False
    return sum(len(word) > 3 for word in words) >= _NUMBERS * len(words)


def _tagged(text: str) -> bool:
    words = text.split()
    return len(words) >= _FEWEST and sum(bool(_TAG.fullmatch(word)) for word in words) >= _TAGS * len(words)


def _encoded(text: str) -> bool:
    """Whether the text is one word in base64 that stands for text, or of hexadecimal digits."""
    word = text.strip()
    if len(word) < _SHORTEST or not word.isascii() or " " in word:
        return False
    digits = word.replace("-", "")
    if re.fullmatch("[0-9a-fA-F]+", digits) and re.search("[0-9]", digits) and re.search("[a-fA-F]", digits):
        return True
    try:
        return base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode().strip().isprintable()
    except ValueError:
        return False


_WHOLE: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (MISREAD, _misread),
    (GARBLED, _garbled),
    (IDS, _ids),
    (TAGGED, _tagged),
    (ENCODED, _encoded),
)


def _byte(letter: str) -> bytes:
    """The letter in cp1252; most programs decode its undefined bytes as control characters."""
    return letter.encode("latin-1" if letter < "\xa0" else "cp1252")


def _controls(letter: str) -> bool:
    return unicodedata.category(letter) == "Cc" and letter not in "\t\n\r"


def _seen(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and letter not in _UNSEEN
