"""Mean and standard deviation of features in any unit."""

from __future__ import annotations

import numpy as np

#: A standard deviation below this, or this part of the mean, may be rounding alone, or of a small unit.
PLAIN = 1e-6
#: Part of the mean below which float32 does not compute a standard deviation well.
NEAR = 1e-3


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``(D,)`` of ``values`` ``(N, D)``; 1 where a column is constant up to rounding.

    Columns in small or huge units, as the power of quiet sound, are computed in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = values.mean(0), values.std(0)
    odd = ~((std > PLAIN) & (std > NEAR * np.abs(mean)) & np.isfinite(std))
    if odd.any():
        some = values[:, odd].astype(np.float64)
        center, own = some.mean(0), some.std(0)
        mean[odd], std[odd] = center, np.where(own > PLAIN * np.abs(center), own, 1)
    return mean, std
