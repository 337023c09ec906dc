"""Mean and standard deviation of features in any unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: A standard deviation below this, or this part of the mean, may be rounding alone, or of a small unit.
PLAIN = 1e-6
#: Part of the mean below which float32 does not compute a standard deviation well.
NEAR = 1e-3
#: Distance of the quartiles of a normal distribution, in standard deviations.
QUARTILES = 1.349
#: Rows that are enough for a median.
ENOUGH = 4096
#: Numbers that fit into a processor's cache.
CACHED = 2**18


def moments(values: np.ndarray, valid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``(D,)`` of ``values`` ``(N, D)``; 1 where a column is constant up to rounding.

    Columns in small or huge units, as the power of quiet sound, are computed in float64. No copy of the values is
    made.

    Args:
        valid: (N,) bool, the rows that count; None: all.
    """
    rows = np.ones(len(values), bool) if valid is None else valid
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = _computed(values, rows, values.dtype)
    odd = ~((std > PLAIN) & (std > NEAR * np.abs(mean)) & np.isfinite(std))
    if odd.any():
        center, own = _computed(values[:, odd], rows, np.dtype(np.float64))
        mean[odd], std[odd] = center, np.where(own > PLAIN * np.abs(center), own, 1)
    return mean, std


def robust(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median, and standard deviation by the quartiles, ``(D,)`` of ``values`` ``(N, D)``: a few numbers far away, as a
    code for a missing value, change neither. Where the quartiles are one, as of a muscle that is mostly at rest, it is
    the plain standard deviation; 1 where a column is constant. Of many rows some are looked at."""
    some = values[:: max(len(values) // ENOUGH, 1)].astype(np.float64)
    low, median, high = np.quantile(some, (0.25, 0.5, 0.75), axis=0)
    scale = (high - low) / QUARTILES
    flat = ~(scale > PLAIN * np.abs(median))
    if flat.any():
        scale[flat] = moments(some[:, flat])[1]
    return median, scale


def _computed(values: np.ndarray, rows: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, to the bit those of ``numpy`` over ``values[rows]``."""
    count = rows.sum()
    mean = _sum(_blocks(values, rows, dtype), values.shape[1], dtype) / dtype.type(count)
    deviations = (np.square(block - mean) for block in _blocks(values, rows, dtype))
    return mean, np.sqrt(_sum(deviations, values.shape[1], dtype) / dtype.type(count))


def _blocks(values: np.ndarray, rows: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    size = max(CACHED // max(values.shape[1], 1), 1)
    for start in range(0, len(values), size):
        own = slice(start, start + size)
        block = values[own] if rows[own].all() else values[own][rows[own]]
        yield block.astype(dtype, copy=False)


def _sum(blocks: Iterator[np.ndarray], width: int, dtype: np.dtype) -> np.ndarray:
    """(D,); the sum so far is the first row of the next block, so rows are added one after the other as in one array."""
    total: np.ndarray | None = None
    for block in blocks:
        total = np.add.reduce(block if total is None else np.concatenate([total[None], block]), 0)
    return np.zeros(width, dtype) if total is None else total
