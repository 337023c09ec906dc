"""Whether the answers of unlabelled clips are corrected for other label shares, and why.

Four judges, in this order. A floor: of a few clips nothing can be estimated. A two-sample test
(:mod:`mer_dist.fusion.shift_test`): where more than the shares differs, estimates of the shares mean
nothing, and shares that were told are all there is. The estimates: most of their distance from the
labelled shares must be told from noise, and shares that were told must not be expected to lose under
them. The gate (:func:`mer_dist.fusion.decisions.gate`): a correction must be
expected to pay on labelled clips weighed to the new shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.core.stopping import ShouldStop, never
from mer_dist.fusion import decisions, label_shift, shift_test

#: With fewer labelled or unlabelled clips nothing is estimated; see ``benchmarks/label_shift.py``.
FLOOR = 100
#: Part of the distance between estimated and labelled shares that must be told from noise
#: (:attr:`mer_dist.fusion.label_shift.Estimate.shrinkage`). Below it estimates are as likely to lose as to gain where what
#: differs is not seen.
TRUSTED = 0.5
#: What decided; :attr:`Verdict.by`.
JUDGES = BY_FLOOR, BY_TEST, BY_ESTIMATES, BY_GATE = "floor", "two-sample test", "estimates", "gate"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the unlabelled clips."""

    found: label_shift.Estimate
    #: Labelled and unlabelled clips that tell something.
    clips: tuple[int, int]
    #: Of the two-sample test; 1 where there are too few clips to ask it.
    p_value: float

    @property
    def enough(self) -> bool:
        return min(self.clips) >= FLOOR

    @property
    def only_shares(self) -> bool:
        """Whether nothing but the label shares is seen to differ."""
        return self.p_value >= shift_test.LEVEL


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the shares ``tried`` (C,) are assumed of the unlabelled clips."""

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
    """Estimate and test, each unlabelled clip taken as the models of one fold see it.

    So is a labelled clip; the mean of all folds' models would be surer than any of them. Both come
    from AGT before self-training: later rounds were trained on the unlabelled clips and are surer of
    them than their out-of-fold predictions tell.

    Args:
        oof: (n, C), out of fold.
        truth: (n,) int.
        fold_predictions: (K, U, C), what the models of each fold say.
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
    """Judge the estimated shares, or ones that were told by hand or probed.

    Nearly any shares gain if they are true, so told ones are judged a second time by the draws of both
    estimators, before these are shrunk to the labelled shares: they are contradicted where a loss is
    expected under them. An estimate in doubt spreads wide and contradicts little; where there are too
    few clips, or more than the shares differs, it contradicts nothing.

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
            f"of the distance between estimated and labelled shares {100 * evidence.found.shrinkage:.0f} % can be "
            f"told from noise, and below {100 * TRUSTED:.0f} % no estimate is applied"
        )
        return False, BY_ESTIMATES, f"{noise}; {_measured(gate)}; {_passed(evidence)}"
    return gate.opens, BY_GATE, f"{_measured(gate)}; {_passed(evidence)}"


def _of_given(evidence: Evidence, gate: decisions.Gate, loses: bool) -> tuple[bool, str, str]:
    """The same of shares that were told; ``loses``: whether a loss is expected under the estimates."""
    if not evidence.enough:
        reason = f"{_few(evidence)}, so nothing speaks against the shares told; {_measured(gate)}"
        return gate.opens, BY_FLOOR, reason
    if not evidence.only_shares:
        return True, BY_TEST, f"{_differs(evidence)}; the shares told are taken at their word"
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
        f"{evidence.clips[1]} unlabelled and {evidence.clips[0]} labelled clips tell something, and "
        f"with fewer than {FLOOR} of either no label shares are estimated"
    )


def _differs(evidence: Evidence) -> str:
    return (
        "a two-sample test tells the unlabelled clips from labelled ones weighed to have their "
        f"labels (p = {evidence.p_value:.3f}, below {shift_test.LEVEL}): more than the label "
        "shares differs, and estimates of them mean nothing"
    )


def _passed(evidence: Evidence) -> str:
    return f"two-sample test p = {evidence.p_value:.3f}, not below {shift_test.LEVEL}"


def _measured(gate: decisions.Gate) -> str:
    return (
        "on labelled clips weighed to it, answered for expected WAF, out-of-fold WAF is "
        f"{100 * gate.after:.2f} % with and {100 * gate.before:.2f} % without it, deviation of the gain "
        f"{100 * gate.noise:.2f}"
    )
