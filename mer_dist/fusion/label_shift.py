"""Calibrated probabilities, and the class prior of the unlabelled clips.

A classifier trained under the class prior ``old`` prefers the labels that were common there. If
only the prior differs (*label shift*: p(features | label) is the same), it can be estimated from
the probabilities alone, and the probabilities corrected. Everything here takes arrays of N clips
and C labels and needs only numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mer_dist.core.stopping import ShouldStop, boundary, never

#: Clips beyond this many make an estimate slower, not better.
ENOUGH = 20_000
#: Bootstrap draws behind an interval.
DRAWS = 100
#: Factor on the measured noise of an estimate: the assumptions of the estimators never hold exactly,
#: and no bootstrap shows that error. See ``benchmarks/label_shift.py``.
CAUTION = 3.0
#: Largest factor by which a label's proportion may rise or fall from that among labelled clips.
MOST = 5.0
#: Standard deviations from a normal estimate to the edges of its 95 % interval.
_NORMAL = 1.96
_TINY = 1e-7


@dataclass(frozen=True)
class Calibration:
    """``softmax(scale · log p + bias)``: calibrated probabilities."""

    scale: float
    #: (C,)
    bias: np.ndarray

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """(N, C) to (N, C)."""
        return softmax(self.scale * _log(probability) + self.bias)


def _log(probability: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probability, _TINY))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def calibrate(
    probability: np.ndarray,
    truth: np.ndarray,
    bias: bool = True,
    steps: int = 50,
    start: Calibration | None = None,
) -> Calibration:
    """Maximum-likelihood scale and bias on held-out clips, by Newton's method.

    Without ``bias`` this is temperature scaling (Guo et al. 2017, scale = 1 / T), with it
    bias-corrected temperature scaling (Alexandari et al. 2020). A unit-normal penalty on the
    difference from the identity (scale 1, bias 0) limits the effect of a few clips.

    Args:
        probability: (N, C), of models that never trained on these clips.
        truth: (N,) int.
        start: initial value; the optimum is the same and takes fewer steps.
    """
    logits_NC, classes = _log(probability), probability.shape[1]
    target_NC = np.eye(classes)[truth]
    # Column 0 of a clip's features belongs to the scale, the others to the bias.
    eye = np.broadcast_to(np.eye(classes), (len(truth), classes, classes))
    features_NCF = np.concatenate([logits_NC[:, :, None], eye if bias else eye[:, :, :0]], 2)
    identity = np.eye(features_NCF.shape[2])[0]
    theta = identity.copy()
    if start is not None:
        theta[:] = [start.scale, *start.bias[: len(theta) - 1]]

    def loss(theta):
        likelihood = (_log(softmax(features_NCF @ theta)) * target_NC).sum()
        return -likelihood + 0.5 * ((theta - identity) ** 2).sum()

    for _ in range(steps if len(truth) else 0):
        p_NC = softmax(features_NCF @ theta)
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
    # A negative scale would reverse the ranking of the labels.
    return Calibration(max(float(theta[0]), 0.05), theta[1:] if bias else np.zeros(classes))


def shares(truth: np.ndarray, classes: int) -> np.ndarray:
    """Proportion of each label in ``truth``."""
    return np.bincount(truth, minlength=classes) / max(len(truth), 1)


def adapt(probability: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Convert calibrated probabilities from the prior ``old`` to ``new`` (Bayes)."""
    ratio = np.where(old > 0, new / np.maximum(old, _TINY), 0)
    changed = probability * ratio
    return changed / np.maximum(changed.sum(1, keepdims=True), _TINY)


def em(
    unlabeled: np.ndarray, old: np.ndarray, steps: int = 500, start: np.ndarray | None = None
) -> np.ndarray:
    """Maximum-likelihood class prior by expectation-maximisation (Saerens et al. 2002).

    On probabilities of :func:`calibrate` this is the maximum likelihood label shift estimate of
    Alexandari et al. 2020. The likelihood is concave, so ``start`` does not change the result.

    Args:
        unlabeled: (N, C), calibrated under the prior ``old``.
        start: (C,), positive where ``old`` is; None: ``old``.
    """
    new = old.copy() if start is None else np.where(old > 0, np.maximum(start, 1e-4), 0)
    ratio = np.where(old > 0, unlabeled / np.maximum(old, _TINY), 0)
    for _ in range(steps):
        # The mean of ``adapt(unlabeled, old, new)``, as two matrix products.
        likelihood = np.maximum(ratio @ new, _TINY)
        last, new = new, new * ((1 / likelihood) @ ratio) / len(unlabeled)
        if np.abs(new - last).max() < 1e-6:
            break
    return new / new.sum()


def bbse(unlabeled: np.ndarray, oof: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Class prior from the difference of mean probabilities to held-out labelled clips.

    Black-box shift estimation (Lipton et al. 2018) with soft predictions, solved for the change
    of the weights with a ridge as in regularised learning under label shift (Azizzadenesheli et
    al. 2019), so that labels the classifier cannot separate keep their proportions.
    """
    classes = oof.shape[1]
    joint = oof.T @ np.eye(classes)[truth] / len(truth)
    surprise = unlabeled.mean(0) - oof.mean(0)
    # The sampling variance of the surprise, against a unit variance of the change.
    ridge = oof.var(0).mean() / len(truth) + unlabeled.var(0).mean() / len(unlabeled)
    change = np.linalg.solve(joint.T @ joint + ridge * np.eye(classes), joint.T @ surprise)
    new = np.maximum(1 + change, 0) * shares(truth, classes)
    return new / new.sum()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated class prior of the unlabelled clips."""

    #: (C,) each.
    labeled: np.ndarray
    em: np.ndarray
    bbse: np.ndarray
    #: Fraction of the distance from ``labeled`` to the mean of both estimates to apply, in [0, 1].
    shrinkage: float
    #: (B, 2, C): EM and BBSE on bootstrap draws of the labelled and of the unlabelled clips.
    draws: np.ndarray
    #: (C,): standard deviation of each proportion at this number of clips; see :func:`std`.
    hidden: np.ndarray

    @property
    def used(self) -> np.ndarray:
        believed = self.labeled + self.shrinkage * ((self.em + self.bbse) / 2 - self.labeled)
        bounded = np.clip(believed, self.labeled / MOST, self.labeled * MOST)
        return bounded / bounded.sum()

    @property
    def intervals(self) -> dict[str, np.ndarray]:
        """95 % interval of each estimator: (2, C), lower and upper edge.

        Percentiles of the draws, widened to at least what ``hidden`` implies: an estimate clipped at
        zero is zero in every draw, and yet clips of that label can be hidden among others.
        """
        low, high = np.quantile(self.draws, [0.025, 0.975], axis=0)
        at, reach = np.stack([self.em, self.bbse]), _NORMAL * self.hidden
        low, high = np.minimum(low, np.maximum(at - reach, 0)), np.maximum(high, np.minimum(at + reach, 1))
        return {"em": np.stack([low[0], high[0]]), "bbse": np.stack([low[1], high[1]])}

    @property
    def prior_samples(self) -> np.ndarray:
        """(2B, C): priors that may be the true one, spread around ``used``.

        If the true distance from the labelled prior has the variance that ``shrinkage`` implies, the
        uncertainty after shrinking is ``shrinkage`` times the noise: bootstrap, and the disagreement
        of the two estimators in both directions.
        """
        spread = self.draws.mean(1) - self.draws.mean((0, 1))
        apart = (self.em - self.bbse) / 2
        around = np.concatenate([spread + apart, spread - apart])
        shares = np.maximum(self.used + np.sqrt(self.shrinkage) * around, 0)
        return shares / shares.sum(1, keepdims=True)


def estimate(
    unlabeled: np.ndarray,
    oof: np.ndarray,
    truth: np.ndarray,
    seed: int,
    draws: int = DRAWS,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    should_stop: ShouldStop = never,
) -> Estimate:
    """Class prior of the unlabelled clips, shrunk toward that of the labelled ones.

    The two estimators err in different ways. Their squared disagreement plus the bootstrap
    variance of their mean is the noise in the squared distance that they measure. The distance
    minus ``CAUTION`` times the noise is trusted (positive-part James-Stein, Efron & Morris 1973).

    Args:
        unlabeled: (N, C), not calibrated.
        oof: (n, C), out of fold.
        truth: (n,) int, of ``oof``.
        groups: (n,) and (N,), the group of each clip, such as its film. Clips of a group are similar
            and are drawn together; None: each clip is drawn separately.
    """
    random = np.random.default_rng(seed)
    own, others = groups or (np.arange(len(truth)), np.arange(len(unlabeled)))
    if len(unlabeled) > ENOUGH:
        some = random.permutation(len(unlabeled))[:ENOUGH]
        unlabeled, others = unlabeled[some], others[some]
    draw_own, draw_others = resampler(own), resampler(others)
    calibration = calibrate(oof, truth)
    both = _both(unlabeled, oof, truth, calibration)
    each = []
    for _ in range(draws):
        boundary(should_stop, "in the vote")
        rows, drawn = draw_own(random), draw_others(random)
        fitted = calibrate(oof[rows], truth[rows], start=calibration)
        each.append(_both(unlabeled[drawn], oof[rows], truth[rows], fitted, both[0]))
    again, center = np.stack(each), both.mean(0)
    labeled = shares(truth, oof.shape[1])
    noise = ((again.mean(1) - center) ** 2).sum(1).mean() + ((both[0] - both[1]) ** 2).sum() / 4
    distance = ((center - labeled) ** 2).sum()
    shrinkage = max(0.0, 1 - CAUTION * noise / max(distance, _TINY))
    hidden = std(calibration(unlabeled), labeled, both[0], others)
    return Estimate(
        labeled=labeled, em=both[0], bbse=both[1], shrinkage=shrinkage, draws=again, hidden=hidden
    )


def std(unlabeled: np.ndarray, old: np.ndarray, new: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Standard deviation (C,) of a maximum-likelihood prior near ``new``, by the Fisher information.

    Unlike a bootstrap it does not vanish where a proportion is estimated as zero: ``new`` counts as
    if one more clip of each label had been seen. Labels that a classifier hardly separates get a
    large value. Clips of a group may all be alike, so each group counts as one clip.

    Args:
        unlabeled: (N, C), calibrated under the prior ``old``.
        groups: (N,)
    """
    there = np.flatnonzero(old > 0)
    count = len(np.unique(groups)) if len(np.unique(groups)) > 1 else len(groups)
    new = (count * new[there] + 1) / (count + len(there))
    ratio = unlabeled[:, there] / old[there]
    score = ratio / np.maximum(ratio @ (new / new.sum()), _TINY)[:, None]
    # Proportions sum to 1, so they move only at right angles to (1, ..., 1). In a direction without
    # information the standard deviation is at most that of an unconstrained proportion.
    across = np.linalg.svd(np.ones((1, len(there))))[2][1:]
    information = across @ score.T @ score @ across.T * count / len(unlabeled)
    spread = across.T @ np.linalg.inv(information + 4 * np.eye(len(across))) @ across
    found = np.zeros(len(old))
    found[there] = np.sqrt(np.diag(spread))
    return found


def resampler(groups: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """A function that draws rows for one bootstrap sample: complete groups, with replacement.

    With a single group all draws would be equal; then the clips are drawn one by one.
    """
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(groups))
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])

    def rows(random: np.random.Generator) -> np.ndarray:
        drawn = random.integers(0, len(members), len(members))
        return np.concatenate([members[one] for one in drawn])

    return rows


def _both(
    unlabeled: np.ndarray,
    oof: np.ndarray,
    truth: np.ndarray,
    calibration: Calibration,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """(2, C): both estimates on calibrated probabilities."""
    unlabeled, oof = calibration(unlabeled), calibration(oof)
    old = shares(truth, oof.shape[1])
    return np.stack([em(unlabeled, old, start=start), bbse(unlabeled, oof, truth)])


def mixture(members: np.ndarray, truth: np.ndarray, steps: int = 200) -> np.ndarray:
    """Weights ``(M,)`` of a linear opinion pool, by maximum likelihood on held-out clips.

    Expectation-maximisation of a mixture with fixed components, so the optimum is global. A
    pseudo-count of one clip per member keeps equal members at equal weights.

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
