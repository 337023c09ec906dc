"""Whether labelled and unlabelled clips, or new ones and those of training, have features of one kind, or as two programs
would have made them."""

from __future__ import annotations

import numpy as np

from mer_dist.features.moments import ENOUGH, moments, robust

#: Clips of either part below which nothing is said.
FEWEST = 20
#: A dimension differs if one standard deviation is so many times the other, or the means are so many of both apart.
FAR = 3.0
#: Standard deviations from the median beyond which a value counts as so far.
LIMIT = 5.0
#: Part of the dimensions that differ, from which on the parts do. Other speakers, rooms or moods change less.
MANY = 0.25
#: How many times nearer to the means of another set those of a set are that was swapped with it, and the columns that
#: it takes to see it.
NEARER, FEWEST_COLUMNS = 2.0, 8
#: Mean and standard deviation, (D,) each.
Moments = tuple[np.ndarray, np.ndarray]
#: Chance that any column is constant in the unlabelled clips by accident, above which nothing is said.
BY_CHANCE = 0.01


def doubts(values: np.ndarray, labeled: np.ndarray, unlabeled: np.ndarray) -> list[str]:
    """Why the features ``values`` (N, D) of the two parts may not be of one kind.

    Args:
        labeled: (N,) bool.
        unlabeled: (N,) bool.
    """
    if min(labeled.sum(), unlabeled.sum()) < FEWEST:
        return []
    found = []
    parts = [_within(values[part]) for part in (_some(labeled), _some(unlabeled))]
    (mean, std), (other_mean, other_std) = map(moments, parts)
    far = _far(mean, std, other_mean, other_std)
    if far.mean() > MANY:
        sizes = (np.abs(part).mean() for part in parts)
        found.append(
            "the labelled and the unlabelled clips differ in {} of {} dimensions as if two programs had made them (mean "
            "size {:.3g} and {:.3g}); predictions for the unlabelled are then worth nothing".format(
                int(far.sum()), len(far), *sizes
            )
        )
    if columns := _told_apart(values, labeled, unlabeled):
        found.append(
            f"column {columns[0]} (of {len(columns)} such) has one value in all unlabelled clips, and many in the "
            "labelled ones: is it the label, or another thing that only these have? Take it out of the arrays"
        )
    return found


def foreign(values: np.ndarray, mean: np.ndarray, std: np.ndarray, clips: int) -> str:
    """Why features ``values`` (N, D) of some clips, of one even, may not be of the kind that training had with these
    moments ``(D,)``; empty if they may.
    """
    values = _within(values) if clips >= FEWEST else values
    own_mean, own_std = values.mean(0), values.std(0) if clips >= FEWEST else std
    far = _far(own_mean, own_std, mean, std)
    if far.mean() <= MANY:
        return ""
    return (
        f"the new clips differ from those of training in {int(far.sum())} of {len(far)} dimensions as if two programs had "
        f"made them (mean size {np.hypot(own_mean, own_std).mean():.3g} and {np.hypot(mean, std).mean():.3g}); "
        "predictions for them are then worth nothing"
    )


def swapped(values: np.ndarray, own: Moments, other: Moments, clips: int) -> bool:
    """Whether the features ``values`` (N, D) of many ``clips`` are far nearer to the moments of another set than to those of
    their own."""
    if clips < FEWEST or values.shape[1] != len(other[0]) or values.shape[1] < FEWEST_COLUMNS:
        return False
    center = _within(values).mean(0)
    to_own, to_other = (np.median(np.abs(center - mean) / std) for mean, std in (own, other))
    return bool(NEARER * to_other < to_own)


def _far(mean: np.ndarray, std: np.ndarray, other_mean: np.ndarray, other_std: np.ndarray) -> np.ndarray:
    """(D,) bool: dimensions that differ."""
    apart = np.abs(mean - other_mean) > FAR * np.maximum(std, other_std)
    return apart | (std > FAR * other_std) | (other_std > FAR * std)


def _some(part: np.ndarray) -> np.ndarray:
    """Rows of a part ``(N,)`` bool, evenly spaced; as many as show its moments."""
    rows = np.flatnonzero(part)
    return rows[:: max(len(rows) // ENOUGH, 1)]


def _within(values: np.ndarray) -> np.ndarray:
    """The values, those far away moved to :data:`LIMIT`: a few of them, as codes for missing values, make no other
    program."""
    median, scale = robust(values)
    return np.clip(values, median - LIMIT * scale, median + LIMIT * scale)


def _told_apart(values: np.ndarray, labeled: np.ndarray, unlabeled: np.ndarray) -> list[int]:
    """Columns that are constant in the unlabelled clips, and would not be by chance."""
    rows = np.flatnonzero(unlabeled)
    first = values[rows[0]]
    constant = np.ones(values.shape[1], bool)
    for start in range(0, len(rows), 4096):
        constant &= (values[rows[start : start + 4096]] == first).all(0)
    found = []
    for column in np.flatnonzero(constant):
        _, counts = np.unique(values[labeled, column], return_counts=True)
        if values.shape[1] * (counts.max() / counts.sum()) ** len(rows) < BY_CHANCE:
            found.append(int(column))
    return found
