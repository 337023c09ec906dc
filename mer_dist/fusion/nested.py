"""Nested cross-validation: models without fold k and one more fold, evaluated on that other fold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mer_dist.features.join import Clips

#: Lower bound of a probability when likelihoods are compared.
FLOOR = 1e-6


def select(
    clips: Clips,
    options: np.ndarray,
    predicted: Iterable[tuple[int, tuple[int, int], np.ndarray, np.ndarray]],
    default: float,
    scored: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """For each fold the option with the least loss in nested cross-validation, and its predictions.

    The choice for fold k uses no label of fold k. Plain out-of-fold predictions would leak its labels
    into the choice, since the models of all other folds trained on them.

    Args:
        options: (O,), the candidates.
        predicted: by models without both folds of a pair: index of the option, the pair, rows (n,) among
            the L labelled clips, and their probabilities (n, C). Rows of other folds are ignored.
        default: for a fold without any such prediction.
        scored: (L,) bool, clips that count in the loss; None: all.

    Returns:
        Options (K,), and ``nested_oof`` (K, L, C): see :mod:`mer_dist.fusion.cross_fitted`.
    """
    labeled = np.flatnonzero(clips.labeled)
    nested_oof = np.full((len(options), clips.folds, len(labeled), len(clips.labels)), np.nan, np.float32)
    for option, pair, rows, probability in predicted:
        fold = clips.fold[labeled[rows]]
        for held_out_fold, other in (pair, pair[::-1]):
            nested_oof[option, held_out_fold, rows[fold == other]] = probability[fold == other]
    right = nested_oof[:, :, np.arange(len(labeled)), clips.truth[labeled]]
    if scored is not None:
        right = right[:, :, scored]
    best = np.nansum(-np.log(np.maximum(right, FLOOR)), 2).argmin(0)
    chosen = np.where(np.isnan(right).all((0, 2)), default, options[best])
    return chosen, nested_oof[best, np.arange(clips.folds)]
