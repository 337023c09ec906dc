"""Text tables for people: the only module that aligns columns."""

from __future__ import annotations

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = (), indent: str = "") -> str:
    """The rows as lines with two blanks between columns and no blanks at the end of a line.

    Args:
        rows: cells, equally many in every row.
        right: indices of the right-aligned columns; the others are left-aligned.
        indent: the start of every line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
