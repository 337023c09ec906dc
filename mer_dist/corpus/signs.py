"""Texts that look the same and are not, as −1 with U+2212 and -1."""

from __future__ import annotations

import unicodedata

from mer_dist.core.records import plain

#: Signs, and letters of Cyrillic and Greek, that look like one of ASCII.
_SIGNS = {"-": "\u2010\u2011\u2012\u2013\u2014\u2212", "'": "\u2018\u2019\u02bc\u2032", '"': "\u201c\u201d"}
_LETTERS = dict(zip("асеорхуіјѕοανρ", "aceopxyijsoavp", strict=True))
_LOOKS = {ord(sign): like for like, signs in _SIGNS.items() for sign in signs} | {
    ord(letter): like for letter, like in _LETTERS.items()
}


def looks(text: str) -> str:
    """The text as it looks: such signs as those of ASCII, without characters that nobody sees."""
    return "".join(sign for sign in plain(text).translate(_LOOKS) if unicodedata.category(sign) != "Cf")


def odd(text: str) -> str:
    """The characters of a text that are not what they look like, by number and name."""
    found = dict.fromkeys(
        sign for sign in plain(text) if ord(sign) in _LOOKS or unicodedata.category(sign) == "Cf"
    )
    return ", ".join(
        f"U+{ord(sign):04X} ({unicodedata.name(sign, 'without a name').lower()})" for sign in found
    )
