"""The challenge metric and its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mer_dist.core.errors import UserError

#: Smaller than any relevant weight; keeps an empty sum from dividing by zero.
TINY = 1e-7
Number = TypeVar("Number", float, np.ndarray)


def waf(truth: np.ndarray, answer: np.ndarray) -> float:
    """Weighted average F1: F1 of each class weighted by its share of ``truth``. In [0, 1].

    A class that occurs in ``truth`` but is never predicted scores 0, as in scikit-learn's
    ``f1_score(average="weighted", zero_division=0)``.
    """
    return float(weighted_waf(truth, answer, np.ones((1, len(truth))))[0])


def waf_interval(
    truth: np.ndarray,
    answer: np.ndarray,
    seed: int = 0,
    draws: int = 1000,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of :func:`waf` over clips, or over groups of similar clips.

    Drawing N clips with replacement is the same as a multinomial draw of the counts of the confusion
    matrix; so memory and time do not grow with N.

    Args:
        groups: (N,) the group of each clip; a group is drawn as a unit.
    """
    labels, numbers = np.unique(np.stack([truth, answer]), return_inverse=True)
    random, shape = np.random.default_rng(seed), (draws, len(labels), len(labels))
    if groups is None or len(set(groups)) == len(groups):
        counts = confusion(numbers[0], numbers[1], len(labels))
        drawn = random.multinomial(len(truth), counts.ravel() / len(truth), draws).reshape(shape)
    else:
        drawn = _groups_drawn(random, numbers[0] * len(labels) + numbers[1], groups, shape)
    clips = drawn.sum((1, 2))
    right, support, predicted = drawn.diagonal(axis1=1, axis2=2), drawn.sum(2), drawn.sum(1)
    # F1 of each class; a class that occurs neither in truth nor in the predictions has no weight.
    f1 = 2 * right / np.maximum(support + predicted, TINY)
    low, high = np.quantile((support * f1).sum(1) / clips, [0.025, 0.975])
    return float(low), float(high)


def _groups_drawn(
    random: np.random.Generator, cell: np.ndarray, groups: Sequence[str], shape: tuple[int, int, int]
) -> np.ndarray:
    """(draws, C, C): confusion matrices of all groups, drawn with replacement.

    Args:
        cell: (N,) the flat index of each clip's cell of the confusion matrix.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    own = np.zeros((count, shape[1] * shape[2]), int)
    np.add.at(own, (group, cell), 1)
    # One draw at a time: all at once would need draws x groups numbers.
    drawn = [random.multinomial(count, np.full(count, 1 / count)) @ own for _ in range(shape[0])]
    return np.stack(drawn).reshape(shape)


def weighted_waf(truth: np.ndarray, answer: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """WAF ``(B,)`` of the N clips when clip i counts ``weight[b, i]`` times, ``(B, N)``."""
    truth, answer, total = np.asarray(truth), np.asarray(answer), np.zeros(len(weight))
    for label in np.union1d(truth, answer):
        is_true, is_answer = truth == label, answer == label
        support, right = weight @ is_true, weight @ (is_true & is_answer)
        total += support * 2 * right / np.maximum(support + weight @ is_answer, TINY)
    return total / np.maximum(weight.sum(1), TINY)


def confusion(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """Counts ``(classes, classes)``: row = truth, column = prediction."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (np.asarray(truth), np.asarray(answer)), 1)
    return counts


def share_of_constant(score: Number) -> Number:
    """Proportion p of a class, from the WAF in [0, 1] of predicting it for every clip.

    Its precision is p and its recall 1, so its F1 is 2p / (1 + p); every other class scores 0. The
    WAF is then ``2 p² / (1 + p)``, and p the positive root of ``2 p² - WAF p - WAF = 0``.
    """
    return (score + np.sqrt(score**2 + 8 * score)) / 4


def shares_of_constants(scores: dict[str, float], labels: list[str]) -> np.ndarray:
    """Label proportions ``(C,)`` from the WAF of constant predictions.

    All scores count as rounded to the number of decimals of the longest one; the proportions must be able
    to sum to 1 within that rounding. One label without a score gets the remainder.
    The rules of a challenge may forbid to query its scorer like this.

    Args:
        scores: label -> WAF in percent, of predicting that label for every clip.

    Raises:
        UserError: a label is unknown, too many have no score, or the scores contradict each other.
    """
    unknown, missing = sorted(set(scores) - set(labels)), [one for one in labels if one not in scores]
    if unknown or len(missing) > 1:
        raise UserError(
            f"vote.scorer_feedback needs the labels {', '.join(labels)}, one of which may be left "
            f"out; unknown: {', '.join(unknown) or 'none'}, missing: {', '.join(missing)}"
        )
    percent = np.array([scores[label] for label in labels if label in scores])
    if not ((percent >= 0) & (percent <= 100)).all():
        raise UserError(f"vote.scorer_feedback must be WAF in percent, 0 to 100: {scores}")
    if percent.max() <= 1 and 0.5 < share_of_constant(percent).sum() < 1.05:
        raise UserError(f"vote.scorer_feedback must be WAF in percent, as 4.76 and not 0.0476: {scores}")
    decimals = max(len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in percent)
    half = 0.5 / 10**decimals
    low, high = (share_of_constant(np.clip(percent + by, 0, 100) / 100) for by in (-half, half))
    found = share_of_constant(percent / 100)
    if low.sum() > 1 or (high.sum() < 1 and not missing):
        known = [label for label in labels if label in scores]
        text = ", ".join(f"{one} {100 * share:.1f} %" for one, share in zip(known, found, strict=True))
        raise UserError(
            f"vote.scorer_feedback do not fit together: they mean {text}, in sum {100 * found.sum():.2f} %, and "
            f"rounding allows {100 * low.sum():.2f} to {100 * high.sum():.2f} %; each must be the WAF "
            "of one constant prediction, all on the same clips"
        )
    share_of = dict(zip((label for label in labels if label in scores), found, strict=True))
    share_of |= dict.fromkeys(missing, max(1 - found.sum(), 0.0))
    shares = np.array([share_of[label] for label in labels])
    return shares / shares.sum()
