"""The pictures of a clip by view: of the face as ``00.jpg``, of the whole frame as ``frame.00.jpg``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

FACE, FRAME = "face", "frame"
VIEWS = (FACE, FRAME)
_PICTURE = ".jpg"
_OF_THE_FRAME = f"{FRAME}."

Value = TypeVar("Value")


def suffixes(view: str, count: int) -> list[str]:
    """Of so many pictures, in time order."""
    before, digits = _OF_THE_FRAME if view == FRAME else "", max(2, len(str(count - 1)))
    return [f"{before}{number:0{digits}d}{_PICTURE}" for number in range(count)]


def of_view(members: Mapping[str, Value], view: str) -> dict[str, Value]:
    """The members of a clip without the pictures of other views."""
    return {
        suffix: value
        for suffix, value in members.items()
        if not suffix.endswith(_PICTURE) or suffix.startswith(_OF_THE_FRAME) == (view == FRAME)
    }


def pictures(members: Iterable[str]) -> int:
    """Number of pictures among the suffixes of members."""
    return sum(suffix.endswith(_PICTURE) for suffix in members)
