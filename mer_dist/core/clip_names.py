"""Which names a clip may have: they become tar members, feature keys and rows of the answer."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

from mer_dist.core.errors import UserError

LONGEST_BYTES = 200
SHOWN = 5
#: Of containers of video, and of video alone. (.264 is none of these: it may as well be the number of an
#: utterance.)
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
#: What a table or a file may add to a clip's name: of which kind of file it speaks is no part of it.
SUFFIXES = VIDEO_SUFFIXES | {
    ".wav",
    ".mp3",
    ".m4a",
    ".flac",
    ".ogg",
    ".opus",
    ".aac",
    ".wma",
    ".aiff",
    ".npy",
}


def clean(text: str) -> str:
    """The clip that a cell, a file or the command line names.

    Letters with accents have several spellings that look the same, and systems choose differently: names
    are in NFC (Unicode Standard Annex 15). A suffix of a media file is taken off.
    """
    name = unicodedata.normalize("NFC", text)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def last(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """A command line with the words that begin with a hyphen and are no options, and so names, at its end."""
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
        return "it contains a slash"
    # All such characters are unprintable; so are blanks other than the plain one, which may stand in a name.
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


def check(locations: Iterable[tuple[str, str]]) -> None:
    """Refuse a corpus whose clip names are unsafe or not unique, compared in NFC.

    Args:
        locations: name and where it stands, for every clip.

    Raises:
        UserError: the name and its place, or both places of a name that occurs twice.
    """
    first: dict[str, str] = {}
    faults = []
    for text, location in locations:
        name = unicodedata.normalize("NFC", text)
        why = unsafe(name)
        if why:
            faults.append(f"{shown(name)} ({location}): {why}")
        elif name in first:
            faults.append(f"{shown(name)} occurs twice: {first[name]} and {location}")
        else:
            first[name] = location
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"clip names must be safe and stand once: {'; '.join(faults[:SHOWN])}{more}; rename "
            "them, or take one of two out"
        )
