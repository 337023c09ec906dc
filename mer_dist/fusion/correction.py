"""Whether predictions of unlabelled clips are corrected for another class prior, and why.

Four checks, in this order. A floor: a few clips do not allow an estimate. A two-sample test
(:mod:`mer_dist.fusion.shift_test`): where more than the class prior differs, estimates of the prior are
meaningless, and only a prior given by the user is left. The estimates: most of their distance from the
labelled prior must exceed noise, and a given prior must not be expected to lose under them. The gate
(:func:`mer_dist.fusion.decisions.gate`): a correction must be expected to improve WAF on labelled clips
weighted to the new prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.core.stopping import ShouldStop, never
from mer_dist.fusion import decisions, label_shift, shift_test

#: With fewer labelled or unlabelled clips no prior is estimated; see ``benchmarks/label_shift.py``.
FLOOR = 100
#: Part of the distance between estimated and labelled prior that must exceed noise
#: (:attr:`mer_dist.fusion.label_shift.Estimate.shrinkage`). Below it, where the shift is not visible, an
#: estimate is as likely to lose as to gain.
TRUSTED = 0.5
#: The check that decided; :attr:`Verdict.by`.
JUDGES = BY_FLOOR, BY_TEST, BY_ESTIMATES, BY_GATE = "floor", "two-sample test", "estimates", "gate"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about the unlabelled clips."""

    found: label_shift.Estimate
    #: Numbers of labelled and unlabelled clips that have features.
    clips: tuple[int, int]
    #: Of the two-sample test; 1 where there are too few clips for it.
    p_value: float

    @property
    def enough(self) -> bool:
        return min(self.clips) >= FLOOR

    @property
    def only_shares(self) -> bool:
        """Whether only the label proportions appear to differ."""
        return self.p_value >= shift_test.LEVEL


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the prior ``tried`` (C,) is assumed for the unlabelled clips."""

    applied: bool
    by: str
    reason: str
    tried: np.ndarray
    gate: decisions.Gate


def gather(
    oof: np.ndarray,
    truth: np.ndarray,
    fold_predictions: np.ndarray,
    seed: int,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    should_stop: ShouldStop = never,
) -> Evidence:
    """Estimate and test with the predictions of one fold's models for each unlabelled clip.

    Labelled clips are treated alike; the mean over all folds would be more confident than each fold. Both
    come from AGT before self-training: later rounds were trained on the unlabelled clips and are more
    confident on them than their out-of-fold predictions suggest.

    Args:
        oof: (n, C), out of fold.
        truth: (n,) int.
        fold_predictions: (K, U, C), predictions of each fold's models.
        groups: (n,) and (U,); see :func:`mer_dist.fusion.label_shift.estimate`.
    """
    folds, count, _ = fold_predictions.shape
    as_labeled = fold_predictions[np.arange(count) % folds, np.arange(count)].astype(np.float64)
    found = label_shift.estimate(as_labeled, oof, truth, seed, groups=groups, should_stop=should_stop)
    enough = min(len(truth), count) >= FLOOR
    p_value = shift_test.p_value(as_labeled, oof, truth, seed, groups) if enough else 1.0
    return Evidence(found=found, clips=(len(truth), count), p_value=p_value)


def assess(
    evidence: Evidence,
    given: np.ndarray | None,
    oof: np.ndarray,
    truth: np.ndarray,
    seed: int,
    groups: np.ndarray,
) -> Verdict:
    """Judge the estimated prior, or one that the user gave or probed.

    Nearly any prior gains if it is true, so a given one is checked again against the draws of both
    estimators, before these are shrunk to the labelled prior: it is rejected where the draws predict a
    loss. An uncertain estimate spreads wide and rejects little; with too few clips, or where more than
    the prior differs, it rejects nothing.

    Args:
        given: (C,), or None for the estimate.
        oof: (n, C), pooled and calibrated, out of fold.
        truth, groups: (n,), of ``oof``; see :func:`mer_dist.fusion.decisions.gate`.
    """
    found = evidence.found
    if given is None:
        tried = found.used
        gate = decisions.gate(oof, truth, tried, found.prior_samples, seed, groups)
        applied, by, reason = _of_estimate(evidence, gate)
    else:
        tried = given
        gate = decisions.gate(oof, truth, tried, given[None], seed, groups)
        draws = found.draws.reshape(-1, len(given))
        known = evidence.enough and evidence.only_shares
        loses = known and decisions.gate(oof, truth, given, draws, seed, groups).loses
        applied, by, reason = _of_given(evidence, gate, loses)
    return Verdict(applied=applied, by=by, reason=reason, tried=tried, gate=gate)


def _of_estimate(evidence: Evidence, gate: decisions.Gate) -> tuple[bool, str, str]:
    """Whether an estimate is applied, what decided, and why."""
    if not evidence.enough:
        return False, BY_FLOOR, _few(evidence)
    if not evidence.only_shares:
        return False, BY_TEST, _differs(evidence)
    if evidence.found.shrinkage < TRUSTED:
        noise = (
            f"{100 * evidence.found.shrinkage:.0f} % of the distance between estimated and labelled shares "
            f"exceeds noise, and below {100 * TRUSTED:.0f} % no estimate is applied"
        )
        return False, BY_ESTIMATES, f"{noise}; {_measured(gate)}; {_passed(evidence)}"
    return gate.opens, BY_GATE, f"{_measured(gate)}; {_passed(evidence)}"


def _of_given(evidence: Evidence, gate: decisions.Gate, loses: bool) -> tuple[bool, str, str]:
    """The same for a given prior; ``loses``: whether a loss is expected under the estimates."""
    if not evidence.enough:
        reason = f"{_few(evidence)}, so nothing contradicts the given shares; {_measured(gate)}"
        return gate.opens, BY_FLOOR, reason
    if not evidence.only_shares:
        return True, BY_TEST, f"{_differs(evidence)}; the given shares are trusted"
    measured = f"{_measured(gate)}; {_passed(evidence)}"
    if loses:
        return (
            False,
            BY_ESTIMATES,
            f"EM and BBSE find other label shares, under which it would lose; {measured}",
        )
    return gate.opens, BY_GATE, measured


def _few(evidence: Evidence) -> str:
    return (
        f"{evidence.clips[1]} unlabelled and {evidence.clips[0]} labelled clips have features, and "
        f"with fewer than {FLOOR} of either no label shares are estimated"
    )


def _differs(evidence: Evidence) -> str:
    return (
        "a two-sample test separates the unlabelled clips from labelled ones weighted to the same "
        f"label shares (p = {evidence.p_value:.3f}, below {shift_test.LEVEL}): more than the label "
        "shares differs, and estimates of them are meaningless"
    )


def _passed(evidence: Evidence) -> str:
    return f"two-sample test p = {evidence.p_value:.3f}, not below {shift_test.LEVEL}"


def _measured(gate: decisions.Gate) -> str:
    return (
        "on labelled clips weighted to it, expected WAF is "
        f"{100 * gate.after:.2f} % with and {100 * gate.before:.2f} % without it, standard deviation of the "
        f"gain {100 * gate.noise:.2f}"
    )
