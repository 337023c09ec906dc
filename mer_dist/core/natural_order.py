"""Natural sort order of numbered files: 2 before 10, with or without leading zeros."""

from __future__ import annotations

import re


def natural(text: str) -> list[str]:
    """A sort key."""
    return [part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]
