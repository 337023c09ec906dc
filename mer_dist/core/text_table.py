"""Tables for people: the one place that aligns columns of text."""

from __future__ import annotations

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = (), indent: str = "") -> str:
    """The rows as lines whose columns stand two blanks apart, without blanks at the end of a line.

    Args:
        rows: cells, as many in every row.
        right: numbers of the columns that are aligned to the right; the others are to the left.
        indent: what every line begins with.
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
