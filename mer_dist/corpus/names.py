"""Which names a clip may have: they become tar members, feature keys and rows of the answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mer_dist.errors import UserError

LONGEST_BYTES = 200
SHOWN = 5


def unsafe(name: str) -> str | None:
    """Why ``name`` cannot name the members of a tar, or None if it can."""
    if not name:
        return "it is empty"
    if name[0] in ".-":
        return f"it begins with {name[0]!r}"
    if "." in name:
        # webdataset takes everything after the first dot for the member's suffix.
        return "it contains '.', where a tar reader cuts the clip's name off"
    if "/" in name or "\\" in name:
        return "it contains a slash"
    if any(unicodedata.category(letter).startswith("C") for letter in name):
        return "it contains a control character or bytes that are not text"
    if name != name.strip():
        return "it begins or ends with a blank"
    if len(name.encode()) > LONGEST_BYTES:
        return f"it is longer than {LONGEST_BYTES} bytes"
    return None


def shown(text: str) -> str:
    """``text`` quoted for an error: printable, and no longer than a name can be."""
    return repr(text if len(text) <= LONGEST_BYTES else f"{text[:40]}…")


def check(places: Iterable[tuple[str, str]]) -> None:
    """Refuse a corpus whose clip names are unsafe or not unique.

    Args:
        places: name and where it stands, for every clip.

    Raises:
        UserError: the name and its place, or both places of a name that occurs twice.
    """
    first: dict[str, str] = {}
    faults = []
    for name, place in places:
        why = unsafe(name)
        if why:
            faults.append(f"{shown(name)} ({place}): {why}")
        elif name in first:
            faults.append(f"{shown(name)} occurs twice: {first[name]} and {place}")
        else:
            first[name] = place
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"clip names must be safe and stand once: {'; '.join(faults[:SHOWN])}{more}")
