"""How the members of the vote become one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mer_dist.features.join import Clips
from mer_dist.fusion import decisions, label_shift, teachers
from mer_dist.fusion.label_shift import Calibration
from mer_dist.fusion.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How members become one prediction."""

    #: ``vote.kind``
    kind: str
    #: (M,)
    weights: np.ndarray
    calibration: Calibration

    @classmethod
    def fit(cls, members: np.ndarray, truth: np.ndarray, kind: str) -> Pooling:
        """Weights and calibration by probabilities (M, n, C) of clips that the members did not train on.

        With ``hard`` the calibration has no bias, so that the largest probability is still the largest vote.
        Without clips to fit on, the members have equal weights.
        """
        own = label_shift.mixture if kind == "soft" else decisions.vote_weights
        weights = own(members, truth)
        calibration = label_shift.calibrate(_combined(kind, weights, members), truth, bias=kind == "soft")
        return cls(kind=kind, weights=weights, calibration=calibration)

    def __call__(self, members: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(n, C) from the members' probabilities (M, n, C).

        For a clip without any modality the members predict the label proportions, which need no calibration.

        Args:
            present: (n,) bool, False for clips without any modality.
        """
        calibrated = self.calibration(_combined(self.kind, self.weights, members))
        return np.where(present[:, None], calibrated, members.mean(0))

    def as_values(self) -> dict:
        """For ``prior.json``; :meth:`of` makes the same again."""
        return {
            "kind": self.kind,
            "weights": self.weights.tolist(),
            "scale": self.calibration.scale,
            "bias": self.calibration.bias.tolist(),
        }

    @classmethod
    def of(cls, values: dict) -> Pooling:
        """
        Raises:
            KeyError: one is missing, as in a run of an earlier version.
        """
        calibration = Calibration(float(values["scale"]), np.array(values["bias"], float))
        return cls(kind=values["kind"], weights=np.array(values["weights"], float), calibration=calibration)


def _combined(kind: str, weights: np.ndarray, members: np.ndarray) -> np.ndarray:
    if kind == "soft":
        return np.tensordot(weights, members, 1)
    return decisions.log_odds_vote(members, weights)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The vote before any correction of the prior."""

    #: (N, C)
    probability: np.ndarray
    #: (K + 1, M): the weights for the clips of each fold and, last, for unlabelled ones; each row sums to 1.
    weights: np.ndarray
    #: Of the unlabelled clips.
    pooling: Pooling
    #: Teacher -> how many clips it covers, and its weight in the log-linear pool of unlabelled ones.
    taught: dict[str, dict[str, float]]


def pool(
    probability: np.ndarray,
    nested_oof: np.ndarray,
    clips: Clips,
    present: np.ndarray,
    kind: str = "soft",
    taught_by: Sequence[Teacher] = (),
) -> Pooled:
    """Pool the predictions of the members, weighted and calibrated.

    Args:
        probability: (M, N, C), out of fold for labelled clips.
        nested_oof: (M, K, L, C), see :class:`CrossFitted`; to fit weights and calibration for fold k.
        present: (N,) bool, False for clips without any modality.
        taught_by: outside labellers, which join one after the other, each where it covers a clip.
    """
    pooled, weights = np.empty(probability.shape[1:]), []
    taught: dict[str, dict[str, float]] = {}
    labeled = np.flatnonzero(clips.labeled)
    for fold in (*range(clips.folds), -1):
        judged = nested_oof[:, fold] if fold >= 0 else probability[:, labeled]
        known = np.isfinite(judged).all((0, 2))
        judged, truth = judged[:, known].astype(np.float64), clips.truth[labeled[known]]
        rows = np.flatnonzero(clips.fold == fold)
        pooling = Pooling.fit(judged, truth, kind)
        judged = pooling(judged, np.ones(len(truth), bool))
        unjudged = pooling(probability[:, rows], present[rows])
        for teacher in taught_by:
            judged, unjudged, weight = teachers.join(teacher, judged, truth, labeled[known], unjudged, rows)
            taught[teacher.name] = {
                "labeled": int(teacher.covers[labeled].sum()),
                "unlabeled": int(teacher.covers[~clips.labeled].sum()),
                "weight": weight,
            }
        pooled[rows] = unjudged
        weights.append(pooling.weights / pooling.weights.sum())
    return Pooled(probability=pooled, weights=np.stack(weights), pooling=pooling, taught=taught)
