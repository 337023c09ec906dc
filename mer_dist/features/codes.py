"""Numbers that stand for a missing value among features, as -999 or 1e20: one exact value, again and again, far
outside of everything else in its columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mer_dist.features.moments import CACHED
from mer_dist.features.store import FeatureSet

#: The gap between a code and the next value of its column, in ranges of all values between the lowest and the highest.
#: A floor of logarithms, as that of silence, seldom lies so far.
FAR = 5.0
#: Different values that a column has beside, and the part of its cells that are none of its lowest and highest value.
#: Counts and flags have fewer.
DISTINCT, PLAIN = 10, 0.25
#: Cells of a set with a value below which it is an outlier by itself.
FEWEST = 3
SHOWN = 3


@dataclass
class Codes:
    """Codes of a set, gathered shard by shard."""

    #: Value -> its cells, and its clips in order.
    cells: dict[float, int] = field(default_factory=dict)
    clips: dict[float, list[str]] = field(default_factory=dict)

    def add(self, shard: FeatureSet) -> None:
        values, ends = shard.utterance, np.arange(1, len(shard.names) + 1)
        if shard.has_frames:
            values, offsets = shard.ragged()
            ends = offsets[1:]
        for value, columns in _found(values).items():
            cells = values[:, columns] == value
            rows = np.flatnonzero(cells.any(1))
            owners = np.unique(np.searchsorted(ends, rows, side="right"))
            self.cells[value] = self.cells.get(value, 0) + int(cells.sum())
            self.clips.setdefault(value, []).extend(shard.names[owner] for owner in owners)

    def lines(self) -> list[str]:
        """One for each code."""
        return [
            f"{value:g} stands in {count} cells of {len(self.clips[value])} clips, as "
            f"{', '.join(self.clips[value][:SHOWN])}, far from every other value of its columns: does it stand for a missing "
            "value? It is kept as a number, beside which the others hardly count; write the mean of its column in its place, "
            "or leave these clips out, and they are masked"
            for value, count in self.cells.items()
            if count >= FEWEST
        ]


def _found(values: np.ndarray) -> dict[float, list[int]]:
    """Value -> columns of ``values`` (N, D) in which it is the lowest or the highest and lies far from all others. Zero is
    none: it is measured, as the pitch of what is not voiced, or a frame without a vector."""
    if len(values) < DISTINCT:
        return {}
    low, high = values.min(0), values.max(0)
    inner_low, inner_high = np.full_like(low, np.inf), np.full_like(high, -np.inf)
    inner = np.zeros(values.shape[1], int)
    rows = max(CACHED // max(values.shape[1], 1), 1)
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        plain = (block > low) & (block < high)
        inner += plain.sum(0)
        np.minimum(inner_low, np.where(plain, block, np.inf).min(0), out=inner_low)
        np.maximum(inner_high, np.where(plain, block, -np.inf).max(0), out=inner_high)
    found: dict[float, list[int]] = {}
    for column in np.flatnonzero(inner >= max(DISTINCT, PLAIN * len(values))):
        bottom, top = float(inner_low[column]), float(inner_high[column])
        for value, gap in (
            (low[column], bottom - float(low[column])),
            (high[column], float(high[column]) - top),
        ):
            if value and gap > FAR * (top - bottom) and len(np.unique(values[:, column])) > DISTINCT:
                found.setdefault(float(value), []).append(int(column))
    return found
