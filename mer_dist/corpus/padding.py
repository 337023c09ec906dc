"""Finds rows of zeros in arrays, as padding or for frames without a vector, and transposed axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

#: From this fraction of sequences on, zeros at the ends are padding; else they are frames without a feature.
MANY = 0.1
#: Rows of zeros are frames without a vector if every other row has so many non-zero values. With fewer, as in
#: facial muscle intensities, one-hot rows or pitch beside energy, zeros may be measurements.
DENSE = 8
#: On the time axis, the zeros at an end have at least so many different counts. Features that are zero in
#: some clips, as of a facial muscle that never moves, give two or three.
LENGTHS = 4


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The shape of an array (T, D), T > 1, and how many of its first and last rows and columns are zeros."""

    rows: int
    columns: int
    first_rows: int
    last_rows: int
    first_columns: int
    last_columns: int
    #: Rows of zeros, including those at the ends, and the fewest non-zero values in any other row.
    empty_rows: int
    fewest: int
    #: How many copies of one row, not of zeros, it begins and ends with; 1 where there is none.
    first_copies: int
    last_copies: int

    @classmethod
    def of(cls, array: np.ndarray) -> Sequence:
        """``array`` must have a non-zero value."""
        used = array != 0
        counts = used.sum(1)
        rows, columns = np.flatnonzero(counts), np.flatnonzero(used.any(0))
        height, width = array.shape
        return cls(
            rows=height,
            columns=width,
            first_rows=int(rows[0]),
            last_rows=height - 1 - int(rows[-1]),
            first_columns=int(columns[0]),
            last_columns=width - 1 - int(columns[-1]),
            empty_rows=height - len(rows),
            fewest=int(counts[rows].min()),
            first_copies=_copies(array),
            last_copies=_copies(array[::-1]),
        )


def _copies(array: np.ndarray) -> int:
    """Rows at the start that equal the first; 1 where that is zeros."""
    if not array[0].any() or not np.array_equal(array[0], array[1]):
        return 1
    other = (array != array[0]).any(1)
    return int(other.argmax()) if other.any() else len(array)


@dataclass
class Profile:
    """Mean and spread over the sequences of a set, as long as all have one shape."""

    count: int = 0
    squares: float = 0.0
    #: (T, D); None before the first, and where shapes differ.
    total: np.ndarray | None = None
    mixed: bool = False

    def add(self, array: np.ndarray) -> None:
        if self.mixed or (self.total is not None and self.total.shape != array.shape):
            self.mixed, self.total = True, None
            return
        self.total = array.astype(np.float64) if self.total is None else self.total + array
        self.squares += float(np.square(array, dtype=np.float64).mean())
        self.count += 1

    def doubt(self) -> str:
        """Why these may be (D, T) instead of (T, D): rows differ from each other as dimensions do, the same way in
        all clips, and columns hardly, as moments in time. Empty where that is not so."""
        if self.total is None or min(self.total.shape) < 4 or self.count < 4:
            return ""
        mean = self.total / self.count
        spread = self.squares / self.count - mean.mean() ** 2
        if mean.mean(1).var() <= 0.3 * spread or mean.mean(0).var() >= 0.03 * spread:
            return ""
        return (
            f"all arrays have the shape {mean.shape} and look like (D, T), not (T, D): rows differ as dimensions do, "
            "and columns hardly; where that is so, turn each before it is saved: numpy.save(path, array.T)"
        )


def ends(found: Collection[Sequence]) -> tuple[bool, bool]:
    """Whether the sequences of a set are padded in front, and at the end."""
    front, behind = (sum(map(bool, own)) for own in _each(found, "first_rows", "last_rows"))
    least = max(2, MANY * len(found))
    return front >= least, behind >= least


def copies(found: Collection[Sequence]) -> str:
    """What copies of one row may be that sequences begin or end with: padding, unless their counts are few."""
    for side, edge in (("end", "last_copies"), ("begin", "first_copies")):
        (counts,) = _each(found, edge)
        own = [count for count in counts if count > 2]
        if len(own) >= max(2, MANY * len(found)) and len({*own}) >= LENGTHS:
            return f"{len(own)} of {len(found)} sequences {side} in copies of one row, up to {max(own)}"
    return ""


def dense(found: Collection[Sequence]) -> bool:
    """Whether a row of zeros in these sequences is a frame without a vector, not a measurement."""
    return min(one.fewest for one in found) >= DENSE


def turned(found: Collection[Sequence]) -> str:
    """Why these arrays seem to be (D, T) and not (T, D); empty if they do not."""
    heights, widths = (Counter(own) for own in _each(found, "rows", "columns"))
    if len(found) < 2 or len(heights) > 1:
        return ""
    if 2 * max(widths.values()) <= len(found):
        return f"all have {max(heights)} rows, and {min(widths)} to {max(widths)} columns"
    # A second of sound more or less: most have one width by chance, and the others nearly that.
    if len(found) - max(widths.values()) >= max(2, MANY * len(found)) and min(widths) > 0.8 * max(widths):
        return f"all have {max(heights)} rows, and {min(widths)} to {max(widths)} columns"
    for side, edge in (("end", "last"), ("begin", "first")):
        columns, rows = _each(found, f"{edge}_columns", f"{edge}_rows")
        many = 2 * sum(map(bool, columns)) >= len(found)
        if many and len({*columns}) >= LENGTHS > len({*rows}):
            most = max(columns)
            return f"most {side} in columns of zeros, up to {most} of {max(widths)}, as padding is in time"
    return ""


def _each(found: Collection[Sequence], *fields: str) -> list[list[int]]:
    return [[getattr(one, field) for one in found] for field in fields]
