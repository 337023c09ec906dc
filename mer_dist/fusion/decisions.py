"""From probabilities to predictions: expected WAF, and whether a correction of the prior pays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.fusion import label_shift

#: Standard deviations by which an expected gain must exceed zero. Most of the doubt is already in
#: the class prior (``label_shift.CAUTION``); see ``benchmarks/vote_rules.py``.
DOUBT = 1.0
#: How much of a labelled clip counts as its label, and not as what the calibrated models think of it. By labels
#: alone, chance decides with a few hundred clips; by the models alone, nothing checks them.
OBSERVED = 0.5
#: Standard deviations by which an expected loss must exceed zero to count as one.
CONTRADICTION = 0.5
_TINY = 1e-7


def decide(probability: np.ndarray, weight: np.ndarray | None = None, steps: int = 20) -> np.ndarray:
    """Labels ``(N,)`` that maximise the expected WAF of calibrated probabilities.

    Let class c have summed probability S over all clips, and T over the n clips predicted as c.
    Its expected F1 is F = 2 T / (S + n), and one more prediction c at probability p raises the
    WAF by ``2 S / (N (S + n)) · (p - F / 2)``. Each clip takes the class with the largest gain,
    until nothing changes: the optimum of such a measure is the argmax of a linear function of the
    probabilities (Narasimhan et al. 2015). Rare labels are predicted somewhat more often than by
    plain argmax.

    Args:
        probability: (N, C).
        weight: (N,), number of clips that each row represents; None: one each.
    """
    count, classes = probability.shape
    weight = np.ones(count) if weight is None else weight
    mass = weight @ probability
    answer = best = probability.argmax(1)
    most = -1.0
    for _ in range(steps):
        weighted = weight * probability[np.arange(count), answer]
        right = np.bincount(answer, weighted, classes)
        sizes = np.maximum(mass + np.bincount(answer, weight, classes), _TINY)
        f1 = 2 * right / sizes
        if (mass * f1).sum() <= most:
            break
        most, best = (mass * f1).sum(), answer
        answer = (mass / sizes * (probability - f1 / 2)).argmax(1)
    return best


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The expected effect of a correction; WAF in [0, 1]."""

    before: float
    after: float
    #: Standard deviation of the gain over the draws.
    noise: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def opens(self) -> bool:
        return self.gain > max(DOUBT * self.noise, _TINY)

    @property
    def loses(self) -> bool:
        """Whether a loss is expected."""
        return self.gain < -max(CONTRADICTION * self.noise, _TINY)


def gate(
    oof: np.ndarray,
    truth: np.ndarray,
    new: np.ndarray,
    prior_samples: np.ndarray,
    seed: int,
    groups: np.ndarray | None = None,
    draws: int = 200,
) -> Gate:
    """Expected WAF without and with correction to ``new`` where any of ``prior_samples`` may be true.

    Each draw resamples the labelled clips and weights their labels (importance weighting) so that these
    follow one of the plausible priors. So the gain includes the loss if ``new`` is wrong, and its noise the
    doubt that few labelled clips leave. Half of a clip's label is the one observed, half is spread as its
    calibrated probabilities say (``OBSERVED``). Both variants decide by expected WAF.

    Args:
        oof: (n, C), out of fold, calibrated on other folds.
        truth: (n,) int.
        new: (C,), the prior that the correction would assume.
        prior_samples: (B, C), priors that may be the true one.
        groups: (n,), clips drawn together; see :func:`mer_dist.fusion.label_shift.estimate`.
    """
    classes = oof.shape[1]
    old = label_shift.shares(truth, classes)
    believed = _importance(old, new)[truth]
    answers = decide(oof, believed), decide(label_shift.adapt(oof, old, new), believed)
    random = np.random.default_rng(seed)
    draw_rows = label_shift.resampler(np.arange(len(truth)) if groups is None else groups)
    counts = np.stack([np.bincount(draw_rows(random), minlength=len(truth)) for _ in range(draws)])
    importance = _importance(old, prior_samples[random.permutation(draws) % len(prior_samples)])
    label = OBSERVED * np.eye(classes)[truth] + (1 - OBSERVED) * oof
    before, after = (_expected_waf(label, answer, counts, importance) for answer in answers)
    return Gate(before=float(before.mean()), after=float(after.mean()), noise=float((after - before).std()))


def _expected_waf(
    label: np.ndarray, answer: np.ndarray, counts: np.ndarray, importance: np.ndarray
) -> np.ndarray:
    """WAF (B,) of ``answer`` (n,), where clip i occurs ``counts[b, i]`` times, its label is c with probability
    ``label[i, c]``, and a clip of label c weighs ``importance[b, c]``."""
    clips, classes = label.shape
    cells = (label[:, :, None] * np.eye(classes)[answer][:, None]).reshape(clips, -1)
    confusion = (counts @ cells).reshape(-1, classes, classes) * importance[:, :, None]
    support, predicted, right = confusion.sum(2), confusion.sum(1), confusion.diagonal(axis1=1, axis2=2)
    f1 = 2 * right / np.maximum(support + predicted, _TINY)
    return (support * f1).sum(1) / np.maximum(support.sum(1), _TINY)


def _importance(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(..., C): importance weight of a clip from the prior ``old`` under the prior ``new``."""
    return np.where(old > 0, new, 0) / np.maximum(old, _TINY)


def vote_weights(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The weight of each member in the vote: (M,).

    A member of accuracy a has the weight ``log(a (C - 1) / (1 - a))``, which is optimal for
    members that err independently (Nitzan & Paroush 1982). A member no better than chance has
    weight 0, unless all members are; then all weigh the same.

    Args:
        members: (M, n, C), probabilities of clips that the models did not train on.
        truth: (n,) int.
    """
    classes = members.shape[2]
    right = (members.argmax(2) == truth).sum(1)
    share = (right + 1) / (len(truth) + classes)
    weights = np.maximum(np.log(share * (classes - 1) / (1 - share)), 0)
    return weights if weights.any() else np.ones(len(members))


def log_odds_vote(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted votes of the members' predictions as probabilities ``(N, C)``.

    The softmax of the summed :func:`vote_weights` is the posterior if members err independently.
    Real members err together; calibration corrects for that.

    Args:
        members: (M, N, C), probabilities.
        weights: (M,)
    """
    one_hot = np.eye(members.shape[2])
    votes = (weight * one_hot[answer] for weight, answer in zip(weights, members.argmax(2), strict=True))
    return label_shift.softmax(sum(votes))
