"""The order in which people number files: 2 before 10, with or without zeros before it."""

from __future__ import annotations

import re


def natural(text: str) -> list[str]:
    """A key to sort by."""
    return [part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]
