"""Nested cross-validation: models without fold k and one more fold, evaluated on that other fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from mer_dist.core import metrics
from mer_dist.features.join import Clips

#: Lower bound of a probability when likelihoods are compared.
FLOOR = 1e-6
#: Of probabilities (n, C) and the truth (n,) of the same clips.
Loss = Callable[[np.ndarray, np.ndarray], float]


def log_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    """Negative log-likelihood, summed over the clips."""
    return float(-np.log(np.maximum(probability[np.arange(len(truth)), truth], FLOOR)).sum())


def waf_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    """1 - WAF of the most probable labels."""
    return 1 - metrics.waf(truth, probability.argmax(1))


def select(
    clips: Clips,
    options: int,
    predicted: Iterable[tuple[int, tuple[int, int], np.ndarray, np.ndarray]],
    default: int,
    scored: np.ndarray | None = None,
    loss: Loss = log_loss,
) -> tuple[np.ndarray, np.ndarray]:
    """For each fold the option with the least loss in nested cross-validation, and its predictions.

    The choice for fold k uses no label of fold k. Plain out-of-fold predictions would leak its labels
    into the choice, since the models of all other folds trained on them.

    Args:
        options: how many there are.
        predicted: by models without both folds of a pair: index of the option, the pair, rows (n,) among
            the L labelled clips, and their probabilities (n, C). Rows of other folds are ignored.
        default: index of the option for a fold without any such prediction.
        scored: (L,) bool, clips that count in the loss; None: all.
        loss: of options that are equal, the first is taken.

    Returns:
        The index of an option for each fold (K,), and ``nested_oof`` (K, L, C): see
        :mod:`mer_dist.fusion.cross_fitted`.
    """
    labeled = np.flatnonzero(clips.labeled)
    nested_oof = np.full((options, clips.folds, len(labeled), len(clips.labels)), np.nan, np.float32)
    for option, pair, rows, probability in predicted:
        fold = clips.fold[labeled[rows]]
        for held_out_fold, other in (pair, pair[::-1]):
            nested_oof[option, held_out_fold, rows[fold == other]] = probability[fold == other]
    truth, chosen = clips.truth[labeled], np.full(clips.folds, default)
    for fold in range(clips.folds):
        known = np.isfinite(nested_oof[0, fold]).all(1)
        if scored is not None:
            known &= scored
        if known.any():
            chosen[fold] = np.argmin([loss(own[fold, known], truth[known]) for own in nested_oof])
    return chosen, nested_oof[chosen, np.arange(clips.folds)]
