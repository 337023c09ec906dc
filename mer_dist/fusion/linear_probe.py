"""Linear probes: logistic regression, what feature sets predict without any hidden layer.

One per feature set measures a modality alone; one on all sets side by side is the baseline of
fusion. Needs only numpy and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features.join import Clips
from mer_dist.features.moments import moments
from mer_dist.fusion import label_shift, nested
from mer_dist.fusion.cross_fitted import CrossFitted
from mer_dist.fusion.predictions import Predictions

#: What cross-validation chooses from: class weights, and inverse ridge strengths C; features are standardised.
#: With five strengths, chosen by likelihood, poor modalities looked seven points worse than they are: docs/results.md.
CLASS_WEIGHTS = (None, "balanced")
STRENGTHS = tuple(float(f"{strength:.2g}") for strength in np.logspace(-5, 0, 9))
SETTINGS = tuple(product(CLASS_WEIGHTS, STRENGTHS))
#: The default where there are too few folds to choose.
USUAL = SETTINGS.index((None, STRENGTHS[5]))
#: Edges of the logarithm of an inverse temperature.
LOG_SCALES = (-3.0, 9.0)


@dataclass(frozen=True)
class Standardized:
    """Feature sets side by side, each standardised over the clips that have it, 0 where absent."""

    #: each (N, D), and (N,) bool: True where the clip has the set.
    values: list[np.ndarray]
    valid: list[np.ndarray]
    #: each (D,)
    mean: list[np.ndarray]
    std: list[np.ndarray]

    @classmethod
    def of(cls, values: list[np.ndarray], valid: list[np.ndarray]) -> Standardized:
        means, stds = [], []
        for of_set, own in zip(values, valid, strict=True):
            mean, std = moments(of_set, own)
            means.append(mean)
            stds.append(std.astype(np.float32))
        return cls(values, valid, means, stds)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(n, sum of D) float32."""
        parts = [
            np.where(valid[rows, None], (values[rows] - mean) / std, 0)
            for values, valid, mean, std in self._sets()
        ]
        return np.concatenate(parts, 1).astype(np.float32)

    def logits(self, coefficients: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """(N, C) of ``(C, sum of D)`` coefficients, without a standardised copy of all clips."""
        edges = np.cumsum([values.shape[1] for values in self.values])[:-1]
        logits = np.tile(intercept.astype(np.float32), (len(self.valid[0]), 1))
        parts = np.split(coefficients, edges, axis=1)
        for own, (values, valid, mean, std) in zip(parts, self._sets(), strict=True):
            scaled = (own / std).astype(np.float32).T
            logits += (values @ scaled - mean @ scaled) * valid[:, None]
        return logits

    def _sets(self):
        return zip(self.values, self.valid, self.mean, self.std, strict=True)


def linear_probe(
    values: list[np.ndarray],
    valid: list[np.ndarray],
    clips: Clips,
    title: str = "",
    should_stop: ShouldStop = never,
) -> CrossFitted:
    """Logistic regression on feature sets side by side, one per fold.

    The ridge and the class weights for fold k maximise the WAF of models without fold k and another fold
    on that other fold, so the labels of fold k do not influence them. The best WAF says nothing of how sure
    a model is, so its temperature (Guo et al. 2017) is fitted there, too; no answer depends on it. An
    unlabelled clip gets the mean of all folds' models; a clip with none of the sets gets the label
    proportions that a model was trained on.

    Args:
        values: per set (N, D) in the order of ``clips``.
        valid: per set (N,) bool, True where the clip has it.
        title: of the row in the result table.

    Raises:
        UserError: outside some fold fewer than two labels are left to train on.
    """
    classes, some = len(clips.labels), np.any(valid, 0)
    inputs = Standardized.of(values, valid)
    trained = [clips.outside(fold) for fold in range(clips.folds)]
    chosen, nested_oof = _nested(inputs, some, clips, should_stop)
    every = np.empty((clips.folds, len(some), classes))
    for fold, rows in enumerate(trained):
        boundary(should_stop, "in a linear probe")
        every[fold] = label_shift.shares(clips.truth[rows], classes)
        rows = rows[some[rows]]
        if len(np.unique(clips.truth[rows])) < 2:
            raise UserError(
                f"outside fold {fold}, the clips that have this feature set have fewer than two "
                "labels; it cannot be fused: name the others in fuse.sets"
            )
        model = logistic(*SETTINGS[chosen[fold]]).fit(inputs.rows(rows), clips.truth[rows])
        probability = _probability(model, inputs.logits(model.coef_, model.intercept_), classes)
        sure = _temperature(nested_oof[fold], clips, some)
        every[fold, some] = sure(probability[some])
        nested_oof[fold, some[clips.labeled]] = sure(nested_oof[fold, some[clips.labeled]])
    probability = every.mean(0)
    probability[clips.labeled] = every[clips.fold[clips.labeled], np.flatnonzero(clips.labeled)]
    return CrossFitted(oof=Predictions.of(clips, title, probability), nested_oof=nested_oof)


def _temperature(judged: np.ndarray, clips: Clips, some: np.ndarray) -> label_shift.Calibration:
    """Fitted on the predictions ``judged`` (L, C) of labelled clips, where there are any.

    Unlike that of :func:`mer_dist.fusion.label_shift.calibrate` it has no bias, so that answers stay, and may be
    far from 1: the strongest ridge gives nearly equal probabilities, whose order is what was chosen.
    """
    from scipy.optimize import minimize_scalar

    known, classes = np.isfinite(judged).all(1) & some[clips.labeled], judged.shape[1]
    probability, truth = judged[known].astype(np.float64), clips.truth[clips.labeled][known]
    # Few clips that are all right do not make a model infinitely sure (Platt 1999).
    target = np.full(probability.shape, 1 / (len(truth) + 2) / (classes - 1))
    target[np.arange(len(truth)), truth] = 1 - 1 / (len(truth) + 2)

    def scaled(log_scale: float) -> label_shift.Calibration:
        return label_shift.Calibration(float(np.exp(log_scale)), np.zeros(classes))

    def loss(log_scale: float) -> float:
        return -(target * np.log(np.maximum(scaled(log_scale)(probability), nested.FLOOR))).sum()

    if not known.any():
        return scaled(0.0)
    return scaled(float(minimize_scalar(loss, bounds=LOG_SCALES, method="bounded").x))


def logistic(class_weight: str | None, strength: float, **options):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight=class_weight, max_iter=1000, **options)


def _probability(model, logits: np.ndarray, classes: int) -> np.ndarray:
    """(N, C) over all labels; the model may know only some of them."""
    if len(model.classes_) == 2:  # scikit-learn keeps one row of coefficients then
        logits = np.concatenate([-logits, logits], 1) / 2
    probability = np.zeros((len(logits), classes))
    probability[:, model.classes_] = label_shift.softmax(logits.astype(np.float64))
    return probability


def _nested(
    inputs: Standardized, some: np.ndarray, clips: Clips, should_stop: ShouldStop = never
) -> tuple[np.ndarray, np.ndarray]:
    """Index into ``SETTINGS`` (K,) of each fold, and ``CrossFitted.nested_oof`` under it."""
    predicted = _without_two_folds(inputs, some, clips, should_stop)
    scored = some[clips.labeled]
    return nested.select(clips, len(SETTINGS), predicted, USUAL, scored=scored, loss=nested.waf_loss)


def _without_two_folds(
    inputs: Standardized, some: np.ndarray, clips: Clips, should_stop: ShouldStop
) -> Iterator[tuple[int, tuple[int, int], np.ndarray, np.ndarray]]:
    """Predictions of models without two folds for the clips of both, as :func:`nested.select` takes them."""
    classes, labeled = len(clips.labels), np.flatnonzero(clips.labeled)
    x, truth, some = inputs.rows(labeled), clips.truth[labeled], some[labeled]
    for pair in combinations(range(clips.folds), 2):
        judged = np.isin(clips.fold[labeled], pair)
        rows = ~judged & some
        if len(np.unique(truth[rows])) < 2:
            continue
        empty = ~some[judged]
        for option, p in each_setting(x[rows], truth[rows], x[judged], classes, should_stop):
            p[empty] = label_shift.shares(truth[~judged], classes)
            yield option, pair, np.flatnonzero(judged), p


def each_setting(
    x: np.ndarray, truth: np.ndarray, asked: np.ndarray, classes: int, should_stop: ShouldStop = never
) -> Iterator[tuple[int, np.ndarray]]:
    """Index into ``SETTINGS``, and the probabilities (n, C) of ``asked`` (n, D) by a model with that setting.

    Args:
        x: (N, D), with ``truth`` (N,) to train on.
    """
    for weights in CLASS_WEIGHTS:
        # From the strongest ridge to the weakest: each starts from the one before.
        model = logistic(weights, STRENGTHS[0], warm_start=True, tol=1e-3)
        for strength in STRENGTHS:
            boundary(should_stop, "in a linear probe")
            model.set_params(C=strength).fit(x, truth)
            yield (
                SETTINGS.index((weights, strength)),
                _probability(model, asked @ model.coef_.T + model.intercept_, classes),
            )
