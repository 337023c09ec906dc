"""Whether only the label shares differ between two parts of a corpus: a two-sample test.

Estimates of the class prior (:mod:`mer_dist.fusion.label_shift`) assume that p(features | label) is the
same in both parts. They would not notice if it were not: other films, microphones or annotators change
the probabilities, too, and the change looks like another prior. Under label shift, however, a model's
predictions of the unlabelled clips are a mixture of its predictions of the labelled clips of each label.
That can be tested.
"""

from __future__ import annotations

import numpy as np

from mer_dist.fusion import label_shift

#: The test rejects where its p-value is below this; see ``benchmarks/label_shift.py``.
LEVEL = 0.1
#: Random Fourier features of an embedding.
FEATURES = 150
#: Bootstrap draws behind a p-value.
DRAWS = 200
#: Lower bound of a probability.
_FLOOR = 1e-4


def p_value(
    unlabeled: np.ndarray,
    oof: np.ndarray,
    truth: np.ndarray,
    seed: int,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    draws: int = DRAWS,
) -> float:
    """Probability of at least this misfit if only the class prior differs.

    The misfit is the maximum mean discrepancy (Gretton et al. 2012) between the unlabelled clips and
    the labelled ones weighted to the prior that brings both closest; their log-probabilities are
    embedded by random Fourier features (Rahimi & Recht 2007) of a Gaussian kernel. Its distribution
    by chance comes from a bootstrap of complete groups in both parts: the distance of each draw to
    its source, with a prior fitted to each draw.

    Args:
        unlabeled: (N, C), each predicted by one model that never trained on it.
        oof: (n, C), out of fold.
        truth: (n,) int, of ``oof``.
        groups: (n,) and (N,); see :func:`mer_dist.fusion.label_shift.estimate`.
    """
    random = np.random.default_rng(seed)
    own, others = groups or (np.arange(len(truth)), np.arange(len(unlabeled)))
    some, rows = (random.permutation(len(part))[: label_shift.ENOUGH] for part in (unlabeled, truth))
    unlabeled, others = unlabeled[some], others[some]
    oof, truth, own = oof[rows], truth[rows], own[rows]
    embed = _embedding(oof, random)
    label_of, classes = np.unique(truth, return_inverse=True)
    mean_LF, drawn_BLF = _means(embed(oof), classes, len(label_of), own, random, draws)
    mean_F, drawn_BF = (
        part[..., 0, :]
        for part in _means(embed(unlabeled), np.zeros(len(unlabeled), int), 1, others, random, draws)
    )
    shares, misfit = _fit(mean_F[None], mean_LF)
    shares = np.maximum(shares[0], 0)
    by_chance = drawn_BF - mean_F - np.tensordot(drawn_BLF - mean_LF, shares / shares.sum(), (1, 0))
    _, chance = _fit(mean_LF[0] + by_chance, mean_LF)
    return float((1 + (chance >= misfit).sum()) / (1 + draws))


def _embedding(like: np.ndarray, random: np.random.Generator):
    """A function from probabilities (N, C) to (N, F), at the scale of ``like``."""

    def centred(probability: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(probability, _FLOOR))
        return logs - logs.mean(1, keepdims=True)

    pairs = centred(like)[random.integers(0, len(like), (2, 500))]
    width = max(float(np.median(np.linalg.norm(pairs[0] - pairs[1], axis=1))), _FLOOR)
    direction = random.normal(size=(like.shape[1], FEATURES)) / width
    phase = random.uniform(0, 2 * np.pi, FEATURES)
    return lambda probability: np.sqrt(2 / FEATURES) * np.cos(centred(probability) @ direction + phase)


def _means(
    values: np.ndarray,
    classes: np.ndarray,
    count: int,
    groups: np.ndarray,
    random: np.random.Generator,
    draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each class, (L, F), and in each draw of complete groups, (B, L, F).

    A class without a clip in a draw keeps its mean.
    """
    sums, sizes = _by_group(values, classes, count, groups)
    times = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), draws)
    mean = sums.sum(0) / sizes.sum(0)[:, None]
    drawn, weight = np.tensordot(times, sums, 1), (times @ sizes)[..., None]
    return mean, np.where(weight > 0, drawn / np.maximum(weight, 1), mean)


def _by_group(
    values: np.ndarray, classes: np.ndarray, count: int, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums (G, L, F) and sizes (G, L) of each group's clips by class; a single group is ignored."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        names, group = np.arange(len(values)), np.arange(len(values))
    sums, sizes = np.zeros((len(names), count, values.shape[1])), np.zeros((len(names), count))
    np.add.at(sums, (group, classes), values)
    np.add.at(sizes, (group, classes), 1)
    return sums, sizes


def _fit(target: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, L) of sum 1 whose mixture of ``means`` (L, F) is closest to each target (B, F).

    Also the remaining squared distance (B,).
    """
    ways, wanted = (means[1:] - means[0]).T, (target - means[0]).T
    change = np.linalg.lstsq(ways, wanted, rcond=None)[0]
    left = wanted - ways @ change
    return np.concatenate([1 - change.sum(0, keepdims=True), change]).T, (left**2).sum(0)
