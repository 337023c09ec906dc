"""Which share each label has among the unlabelled clips, and answers that use it.

A classifier trained where the shares of the labels are ``old`` is too fond of the labels that
were common there. If only these shares differ (*label shift*: p(features | label) is the same),
they can be estimated from its probabilities alone, and the probabilities corrected. Everything
here takes arrays of N clips and C labels and needs no more than numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist import metrics

#: Clips beyond this many make an estimate slower, not better.
ENOUGH = 20_000
_TINY = 1e-7


@dataclass(frozen=True)
class Calibration:
    """``softmax(scale · log p + bias)``: probabilities that can be taken at their word."""

    scale: float
    #: (C,)
    bias: np.ndarray

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """(N, C) to (N, C)."""
        return _softmax(self.scale * _log(probability) + self.bias)


def _log(probability: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probability, _TINY))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def calibrate(
    probability: np.ndarray, truth: np.ndarray, bias: bool = True, steps: int = 50
) -> Calibration:
    """Maximum-likelihood scale and bias on held-out clips, by Newton's method.

    Without ``bias`` this is temperature scaling (Guo et al. 2017, scale = 1 / T), with it
    bias-corrected temperature scaling (Alexandari et al. 2020). A unit-normal penalty on what is
    added to the identity (scale 1, bias 0) keeps a few clips from moving it far.

    Args:
        probability: (N, C), of models that never trained on these clips.
        truth: (N,) int.
    """
    logits_NC, classes = _log(probability), probability.shape[1]
    target_NC = np.eye(classes)[truth]
    # Column 0 of a clip's features belongs to the scale, the others to the bias.
    eye = np.broadcast_to(np.eye(classes), (len(truth), classes, classes))
    features_NCF = np.concatenate([logits_NC[:, :, None], eye if bias else eye[:, :, :0]], 2)
    identity = np.eye(features_NCF.shape[2])[0]
    theta = identity.copy()

    def loss(theta):
        likelihood = (_log(_softmax(features_NCF @ theta)) * target_NC).sum()
        return -likelihood + 0.5 * ((theta - identity) ** 2).sum()

    for _ in range(steps if len(truth) else 0):
        p_NC = _softmax(features_NCF @ theta)
        gradient = np.einsum("nc,ncf->f", p_NC - target_NC, features_NCF) + theta - identity
        weighted = p_NC[:, :, None] * features_NCF
        mean_NF = weighted.sum(1)
        hessian = np.einsum("ncf,ncg->fg", weighted, features_NCF) - mean_NF.T @ mean_NF
        step = np.linalg.solve(hessian + np.eye(len(theta)), gradient)
        before = loss(theta)
        while np.abs(step).max() > 1e-9 and loss(theta - step) > before:
            step /= 2
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    # A negative scale would turn the ranking of the labels round.
    return Calibration(max(float(theta[0]), 0.05), theta[1:] if bias else np.zeros(classes))


def shares(truth: np.ndarray, classes: int) -> np.ndarray:
    """Share of each label in ``truth``."""
    return np.bincount(truth, minlength=classes) / max(len(truth), 1)


def adapt(probability: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Calibrated probabilities under label shares ``old`` as they are under ``new`` (Bayes)."""
    ratio = np.where(old > 0, new / np.maximum(old, _TINY), 0)
    changed = probability * ratio
    return changed / np.maximum(changed.sum(1, keepdims=True), _TINY)


def em(unlabeled: np.ndarray, old: np.ndarray, steps: int = 500) -> np.ndarray:
    """Maximum-likelihood shares by expectation-maximisation (Saerens et al. 2002).

    Args:
        unlabeled: (N, C), calibrated under the shares ``old``.
    """
    new = old.copy()
    for _ in range(steps):
        last, new = new, adapt(unlabeled, old, new).mean(0)
        if np.abs(new - last).max() < 1e-6:
            break
    return new / new.sum()


def bbse(unlabeled: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Shares from how the mean probabilities differ from those of held-out labelled clips.

    Black-box shift estimation (Lipton et al. 2018) with soft predictions, solved for the change
    of the weights with a ridge as in regularised learning under label shift (Azizzadenesheli et
    al. 2019), so that labels the classifier cannot tell apart keep their shares.
    """
    classes = held_out.shape[1]
    joint = held_out.T @ np.eye(classes)[truth] / len(truth)
    surprise = unlabeled.mean(0) - held_out.mean(0)
    # The sampling variance of the surprise, against a unit variance of the change.
    ridge = held_out.var(0).mean() / len(truth) + unlabeled.var(0).mean() / len(unlabeled)
    change = np.linalg.solve(joint.T @ joint + ridge * np.eye(classes), joint.T @ surprise)
    new = np.maximum(1 + change, 0) * shares(truth, classes)
    return new / new.sum()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is believed of the label shares of the unlabelled clips."""

    labeled: np.ndarray
    em: np.ndarray
    bbse: np.ndarray
    #: Part of the way from ``labeled`` to the mean of both estimates that is believed, in [0, 1].
    trust: float

    @property
    def used(self) -> np.ndarray:
        return self.labeled + self.trust * ((self.em + self.bbse) / 2 - self.labeled)


def estimate(
    unlabeled: np.ndarray, held_out: np.ndarray, truth: np.ndarray, seed: int, draws: int = 40
) -> Estimate:
    """Label shares of the unlabelled clips, shrunk toward the labelled ones.

    The two estimators err in different ways. Their squared disagreement plus the bootstrap
    variance of their mean is the noise in the squared distance that they claim to see; what is
    left of that distance is trusted (positive-part James-Stein, Efron & Morris 1973).

    Args:
        unlabeled: (N, C), not calibrated.
        held_out: (n, C), out of fold.
        truth: (n,) int, of ``held_out``.
    """
    random = np.random.default_rng(seed)
    if len(unlabeled) > ENOUGH:
        unlabeled = unlabeled[random.permutation(len(unlabeled))[:ENOUGH]]
    both = _both(unlabeled, held_out, truth)
    center = both.mean(0)
    again = []
    for _ in range(draws):
        rows = random.integers(0, len(truth), len(truth))
        others = random.integers(0, len(unlabeled), len(unlabeled))
        again.append(_both(unlabeled[others], held_out[rows], truth[rows]).mean(0))
    labeled = shares(truth, held_out.shape[1])
    noise = ((np.stack(again) - center) ** 2).sum(1).mean() + ((both[0] - both[1]) ** 2).sum() / 4
    distance = ((center - labeled) ** 2).sum()
    trust = max(0.0, 1 - noise / max(distance, _TINY))
    return Estimate(labeled=labeled, em=both[0], bbse=both[1], trust=trust)


def _both(unlabeled: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, C): both estimates on probabilities calibrated on the held-out clips."""
    calibration = calibrate(held_out, truth)
    unlabeled, held_out = calibration(unlabeled), calibration(held_out)
    old = shares(truth, held_out.shape[1])
    return np.stack([em(unlabeled, old), bbse(unlabeled, held_out, truth)])


def decide(probability: np.ndarray, steps: int = 20) -> np.ndarray:
    """Answers ``(N,)`` that maximise the expected WAF of calibrated probabilities.

    Let class c have the summed probability S, n answers, and T summed over those answers. Then
    its expected F1 is F = 2 T / (S + n), and one more answer c at probability p raises the WAF
    by ``2 S / (N (S + n)) · (p - F / 2)``. Each clip takes the class where that is most, until
    nothing changes: the optimum of such a measure is the argmax of a linear function of the
    probabilities (Narasimhan et al. 2015). A rare label is answered somewhat sooner than by
    plain argmax.
    """
    classes, mass = probability.shape[1], probability.sum(0)
    answer = best = probability.argmax(1)
    most = -1.0
    for _ in range(steps):
        right = np.bincount(answer, probability[np.arange(len(answer)), answer], classes)
        sizes = np.maximum(mass + np.bincount(answer, minlength=classes), _TINY)
        f1 = 2 * right / sizes
        if (mass * f1).sum() <= most:
            break
        most, best = (mass * f1).sum(), answer
        answer = (mass / sizes * (probability - f1 / 2)).argmax(1)
    return best


def gain(
    held_out: np.ndarray, truth: np.ndarray, new: np.ndarray, seed: int, draws: int = 100
) -> tuple[float, float]:
    """WAF without and with correction on held-out clips resampled to the shares ``new``.

    Args:
        held_out: (n, C), calibrated, out of fold.
    """
    old = shares(truth, held_out.shape[1])
    corrected = adapt(held_out, old, new)
    weight = (np.where(old > 0, new, 0) / np.maximum(old, _TINY))[truth]
    size, chance = (draws, len(truth)), weight / weight.sum()
    rows = np.random.default_rng(seed).choice(len(truth), size, p=chance)
    before = np.mean([metrics.waf(truth[draw], decide(held_out[draw])) for draw in rows])
    after = np.mean([metrics.waf(truth[draw], decide(corrected[draw])) for draw in rows])
    return float(before), float(after)


def mixture(members: np.ndarray, truth: np.ndarray, steps: int = 200) -> np.ndarray:
    """Weights ``(M,)`` of a linear opinion pool, by maximum likelihood on held-out clips.

    Expectation-maximisation of a mixture whose components are fixed, so the optimum is global;
    one clip's worth of prior belief in each member keeps equals equal.

    Args:
        members: (M, N, C), probabilities out of fold.
        truth: (N,) int.
    """
    of_truth = np.maximum(members[:, np.arange(len(truth)), truth], _TINY)
    weights = np.full(len(members), 1 / len(members))
    for _ in range(steps):
        part = weights[:, None] * of_truth
        counts = (part / part.sum(0)).sum(1) + 1
        weights = counts / counts.sum()
    return weights
