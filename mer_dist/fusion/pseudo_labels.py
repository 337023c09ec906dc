"""Selection and weights of pseudo-labels for unlabelled clips.

Everything here takes arrays of N clips and C labels. Where a rule is fitted on held-out clips, the caller ensures that these clips, and the models that predicted them, do not leak
labels into the pseudo-labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.config.sections import SelfTrainConfig
from mer_dist.fusion import label_shift, teachers
from mer_dist.fusion.teachers import Together

TAKEN, EMPTY, UNSURE, BEYOND, CLOSED, DISPUTED = range(6)
#: The reason for each of these codes; a selected clip needs none.
REASONS = (
    "",
    "no modality",
    "not sure enough",
    "beyond its class's quota",
    "no threshold is precise enough for its class",
    "models and teachers disagree",
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
    #: (C,): the least confidence at which a clip of each label is selected; inf: never.
    threshold: np.ndarray
    #: (N,): 0 if not selected.
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
    taught: tuple[Together, Together] | None = None,
) -> PseudoLabels:
    """Calibrate the predictions of unlabelled clips and select by ``settings.rule``.

    Args:
        unlabeled: (N, C), probabilities of the unlabelled clips.
        usable: (N,) bool, False for a clip without any modality.
        oof: (n, C), probabilities of held-out labelled clips, to fit temperature and
            thresholds. With no clip the temperature is 1.
        truth: (n,) int, their labels.
        part: largest fraction of the N clips that the rules ``quota`` and ``consensus`` select.
        taught: with the rule ``consensus``, what teachers say of the n labelled and the N unlabelled clips.
    """
    calibration = label_shift.calibrate(oof, truth, bias=False)
    probability, limit = calibration(unlabeled), np.full(unlabeled.shape[1], settings.confidence)
    quota, barred = None, np.where(usable, TAKEN, EMPTY).astype(np.int8)
    if taught is not None:
        probability, disputed = consensus(probability, calibration(oof), truth, taught, settings.sure)
        barred[usable & disputed] = DISPUTED
    if settings.rule in ("quota", "consensus"):
        quota = np.round(part * probability[usable].sum(0)).astype(int)
        limit = np.where(quota > 0, limit, np.inf)
    elif settings.rule == "precision":
        learned = precise_thresholds(calibration(oof), truth, settings.precision)
        limit = np.maximum(limit, learned)
    return take(probability, barred, limit, quota, settings.weight)


def consensus(
    unlabeled: np.ndarray, oof: np.ndarray, truth: np.ndarray, taught: tuple[Together, Together], sure: float
) -> tuple[np.ndarray, np.ndarray]:
    """What models and teachers say together, and where they disagree.

    They say the log-linear pool of both, as in the vote, so a teacher that knows nothing changes nothing. They
    disagree where the teachers' say changes the most probable label, and the teachers alone are not ``sure``. Of a clip
    that no teacher covers the models have the only say: a teacher that knows some labels only must not leave the others
    without a pseudo-label.

    Args:
        unlabeled: (N, C), of the models, calibrated.
        oof: (n, C), the same of held-out labelled clips, whose labels are ``truth`` (n,).
        taught: what the teachers say of these n and of those N clips.
        sure: the least calibrated probability at which the teachers overrule the models.

    Returns:
        (N, C), and (N,) bool.
    """
    judged, said = taught
    both = teachers.fit(oof[judged.covers], judged.probability[judged.covers], truth[judged.covers])
    pooled = np.where(said.covers[:, None], both(unlabeled, said.probability), unlabeled)
    label, confidence = said.probability.argmax(1), said.probability.max(1)
    overruled = (confidence >= sure) & (pooled.argmax(1) == label)
    return pooled, (pooled.argmax(1) != unlabeled.argmax(1)) & ~overruled


def precise_thresholds(oof: np.ndarray, truth: np.ndarray, wanted: float) -> np.ndarray:
    """Per label the least confidence above which its predictions are precise enough.

    The criterion is not the precision itself, which three lucky clips bring to 1, but the lower end
    of its one-sided 90 % interval (Wilson 1927): a wanted precision of 0.8 takes seven predictions
    without an error, or 15 with one. Searching the least of many thresholds uses up some of that
    certainty. A label has inf if no confidence is sufficient.

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
        # A threshold selects all clips of equal confidence or none of them.
        last = np.append(np.diff(confidence[rows]) != 0, True)[: len(rows)]
        good = np.flatnonzero(last & (lower_bound(right, np.arange(1, len(rows) + 1)) >= wanted))
        if len(good):
            thresholds[label] = confidence[rows[good[-1]]]
    return thresholds


def lower_bound(right: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Lower end of Wilson's one-sided 90 % interval of the proportion ``right / count``."""
    share, square = right / count, _SURE**2
    spread = _SURE * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return (share + square / (2 * count) - spread) / (1 + square / count)


def take(
    probability: np.ndarray, barred: np.ndarray, limit: np.ndarray, quota: np.ndarray | None, weight: float
) -> PseudoLabels:
    """Select the clips that reach their label's limit, the most confident first if there is a quota.

    A single threshold selects mostly easy labels, and the next round would predict them even more
    often; a quota per label, in proportion to the summed probabilities, keeps the label
    proportions (class-balanced self-training, Zou et al. 2018).

    Args:
        probability: (N, C), calibrated.
        barred: (N,) int, index into ``REASONS`` of clips that are not selected, however probable their label is; 0 for
            the others.
        limit: (C,), the least confidence of each label; inf: none is selected.
        quota: (C,) int, the most clips of each label; None: no limit.
        weight: of a clip selected at confidence 1; the weights of others are proportional.
    """
    confidence, label = probability.max(1), probability.argmax(1)
    reason = np.where(confidence >= limit[label], TAKEN, UNSURE).astype(np.int8)
    reason[np.isinf(limit)[label]] = CLOSED
    reason = np.where(barred != TAKEN, barred, reason).astype(np.int8)
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
