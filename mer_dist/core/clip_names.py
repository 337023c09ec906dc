"""Valid clip names: they become tar members, feature keys and rows of answer.csv."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from mer_dist.core.errors import UserError

#: Where a name stands: a text, or a number of a line.
Where = TypeVar("Where")
LONGEST_BYTES = 200
SHOWN = 5
#: Of video containers and of raw video. (.264 is left out: it may also be the number of an utterance.)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
        ".mpg",
        ".mpeg",
        ".m2v",
        ".vob",
        ".ts",
        ".mts",
        ".m2ts",
        ".ogv",
        ".mxf",
        ".rm",
        ".rmvb",
        ".dv",
        ".h264",
        ".h265",
        ".hevc",
        ".mod",
        ".tod",
        ".lrv",
        ".insv",
        ".dav",
        ".wtv",
        ".gif",
        ".nut",
    ]
)
AUDIO_SUFFIXES = frozenset([".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac", ".wma", ".aiff"])
#: Suffixes that a table or a file may add to a clip's name: the file type is not part of the name.
SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES | {".npy"}


def clean(text: str) -> str:
    """The clip name in a cell, a file name or the command line.

    Accented letters have several encodings that look the same, and systems differ: names are normalized to
    NFC (Unicode Standard Annex 15). A suffix of a media file is removed.
    """
    name = text if text.isascii() else unicodedata.normalize("NFC", text)
    if "." not in name:
        return name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def last(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """A command line with the clip names that begin with a hyphen, words that are not options, at its end."""
    words = [word for word in arguments if word[:1] == "-" and word not in options]
    if not words or "--" in words:
        return arguments
    return [*(word for word in arguments if word not in words), "--", *words]


def unsafe(name: str) -> str | None:
    """Why ``name`` cannot name the members of a tar, or None if it can."""
    if not name:
        return "it is empty"
    if name[0] == ".":
        return "it begins with '.', as hidden files do"
    if "/" in name or "\\" in name:
        return "it contains a slash (a path belongs in the column video or audio)"
    # All such characters are unprintable; so are special blanks, which a name may contain.
    if not name.isprintable() and any(unicodedata.category(letter).startswith("C") for letter in name):
        return "it contains a control character or bytes that are not text"
    if name != name.strip():
        return "it begins or ends with a blank"
    if len(name.encode()) > LONGEST_BYTES:
        return f"it is longer than {LONGEST_BYTES} bytes"
    return None


def shown(text: str) -> str:
    """``text`` quoted for an error: printable, and no longer than a name can be."""
    return repr(text if len(text) <= LONGEST_BYTES else f"{text[:40]}…")


def check(locations: Iterable[tuple[str, Where]], told: Callable[[Where], str] = str) -> None:
    """Refuse a corpus whose clip names are unsafe or not unique, compared in NFC.

    Args:
        locations: name and location, for every clip.
        told: a location in words.

    Raises:
        UserError: with the name and its location, or both locations of a duplicate name.
    """
    first: dict[str, Where] = {}
    faults = []
    for text, location in locations:
        name = text if text.isascii() else unicodedata.normalize("NFC", text)
        why = unsafe(name)
        if why:
            faults.append(f"{shown(name)} ({told(location)}): {why}")
        elif name in first:
            faults.append(f"{shown(name)} occurs twice: {told(first[name])} and {told(location)}")
        else:
            first[name] = location
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"clip names must be safe and unique: {'; '.join(faults[:SHOWN])}{more}; rename "
            "them, or remove one of two"
        )
