"""The challenge metric and how sure a figure of it is."""

from __future__ import annotations

import numpy as np


def waf(truth: np.ndarray, answer: np.ndarray) -> float:
    """Weighted average F1: F1 of each class weighted by its share of ``truth``. In [0, 1].

    A class that occurs in ``truth`` but is never answered scores 0, as in scikit-learn's
    ``f1_score(average="weighted", zero_division=0)``.
    """
    return float(_waf_rows(np.asarray(truth)[None], np.asarray(answer)[None])[0])


def waf_interval(
    truth: np.ndarray, answer: np.ndarray, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of :func:`waf` over clips."""
    truth, answer = np.asarray(truth), np.asarray(answer)
    rows = np.random.default_rng(seed).integers(0, len(truth), (draws, len(truth)))
    low, high = np.quantile(_waf_rows(truth[rows], answer[rows]), [0.025, 0.975])
    return float(low), float(high)


def _waf_rows(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """WAF of each row of ``(B, N)`` class indices."""
    total = np.zeros(len(truth))
    for label in np.union1d(truth, answer):
        is_true, is_answer = truth == label, answer == label
        support = is_true.sum(1)
        f1 = 2 * (is_true & is_answer).sum(1) / np.maximum(support + is_answer.sum(1), 1)
        total += support * f1
    return total / truth.shape[1]


def confusion(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """Counts ``(classes, classes)``: row = truth, column = answer."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (np.asarray(truth), np.asarray(answer)), 1)
    return counts
