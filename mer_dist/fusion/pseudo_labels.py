"""Which unlabelled clips become pseudo-labels, and what they weigh.

Everything here takes arrays of N clips and C labels and needs no more than numpy. Where a rule
learns from held-out clips, the caller answers for it that these, and the models that told their
probabilities, know nothing of the clips that the pseudo-labels must not know of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.config.sections import SelfTrainConfig
from mer_dist.fusion import label_shift

TAKEN, EMPTY, UNSURE, BEYOND, CLOSED = range(5)
#: What each of these numbers means; a clip that is taken needs no reason.
REASONS = (
    "",
    "no modality",
    "not sure enough",
    "beyond its class's quota",
    "no threshold is precise enough for its class",
)
#: Standard normal quantile of the one-sided 90 % bound on a precision.
_SURE = 1.2816


@dataclass(kw_only=True)
class PseudoLabels:
    """Pseudo-labels for the models of one fold, one entry per unlabelled clip."""

    #: (N, C), calibrated.
    probability: np.ndarray
    #: (N,) int.
    label: np.ndarray
    #: (N,) int: index into ``REASONS``.
    reason: np.ndarray
    #: (C,): the least confidence with which a clip of each label is taken; inf: with none.
    threshold: np.ndarray
    #: (N,): 0 if not taken.
    weight: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """(N,) bool."""
        return self.reason == TAKEN


def pseudo_labels(
    unlabeled: np.ndarray,
    usable: np.ndarray,
    oof: np.ndarray,
    truth: np.ndarray,
    part: float,
    settings: SelfTrainConfig,
) -> PseudoLabels:
    """Calibrate what models told of unlabelled clips and select by ``settings.rule``.

    Args:
        unlabeled: (N, C), probabilities of the unlabelled clips.
        usable: (N,) bool, False for a clip without any modality.
        oof: (n, C), probabilities of held-out labelled clips; temperature and thresholds
            are fitted on them. With none the temperature is 1.
        truth: (n,) int, their labels.
        part: of the N clips that rule ``quota`` takes at most.
    """
    calibration = label_shift.calibrate(oof, truth, bias=False)
    probability, limit = calibration(unlabeled), np.full(unlabeled.shape[1], settings.confidence)
    quota = None
    if settings.rule == "quota":
        quota = np.round(part * probability[usable].sum(0)).astype(int)
        limit = np.where(quota > 0, limit, np.inf)
    elif settings.rule == "precision":
        learned = precise_thresholds(calibration(oof), truth, settings.precision)
        limit = np.maximum(limit, learned)
    return take(probability, usable, limit, quota, settings.weight)


def precise_thresholds(oof: np.ndarray, truth: np.ndarray, wanted: float) -> np.ndarray:
    """Per label the least confidence from which on its answers are right often enough.

    Often enough is not the share of right answers itself, which three lucky clips bring to 1, but
    the lower end of its one-sided 90 % interval (Wilson 1927): at a wanted precision of 0.8 it
    takes seven answers without an error, or 15 with one. To look for the least of many thresholds
    uses up some of that certainty. A label is inf if no confidence will do.

    Args:
        oof: (n, C), calibrated probabilities of clips that the models did not train on.
        truth: (n,) int.
        wanted: precision in (0, 1).

    Returns:
        (C,)
    """
    confidence, answer = oof.max(1), oof.argmax(1)
    thresholds = np.full(oof.shape[1], np.inf)
    for label in range(len(thresholds)):
        rows = np.flatnonzero(answer == label)
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        right = np.cumsum(truth[rows] == label)
        # A threshold lets in all clips of equal confidence or none of them.
        last = np.append(np.diff(confidence[rows]) != 0, True)[: len(rows)]
        good = np.flatnonzero(last & (lower_bound(right, np.arange(1, len(rows) + 1)) >= wanted))
        if len(good):
            thresholds[label] = confidence[rows[good[-1]]]
    return thresholds


def lower_bound(right: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Lower end of Wilson's one-sided 90 % interval of a share, ``right`` of ``count``."""
    share, square = right / count, _SURE**2
    spread = _SURE * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return (share + square / (2 * count) - spread) / (1 + square / count)


def take(
    probability: np.ndarray, usable: np.ndarray, limit: np.ndarray, quota: np.ndarray | None, weight: float
) -> PseudoLabels:
    """Take the clips that reach the limit of their label, the surest first if there is a quota.

    A single threshold takes mostly the labels that are easy, and the next round would think them
    more frequent still; a quota per label, in the proportion of the summed probabilities, keeps
    the shares (class-balanced self-training, Zou et al. 2018).

    Args:
        probability: (N, C), calibrated.
        usable: (N,) bool, False for a clip without any modality.
        limit: (C,), the least confidence of each label; inf: none of it is taken.
        quota: (C,) int, the most clips of each label; None: as many as there are.
        weight: of a clip that is taken with confidence 1; others weigh in proportion.
    """
    confidence, label = probability.max(1), probability.argmax(1)
    reason = np.where(confidence >= limit[label], TAKEN, UNSURE).astype(np.int8)
    reason[np.isinf(limit)[label]] = CLOSED
    reason[~usable] = EMPTY
    threshold = limit.copy()
    for own, most in enumerate(quota if quota is not None else ()):
        rows = np.flatnonzero((reason == TAKEN) & (label == own))
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        reason[rows[most:]] = BEYOND
        if 0 < most <= len(rows):
            threshold[own] = confidence[rows[most - 1]]
    return PseudoLabels(
        probability=probability,
        label=label,
        reason=reason,
        threshold=threshold,
        weight=np.where(reason == TAKEN, weight * confidence, 0.0),
    )
