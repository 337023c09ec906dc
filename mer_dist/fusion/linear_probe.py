"""Linear probes: logistic regression, what feature sets predict without any hidden layer.

One per feature set measures a modality alone; one on all sets side by side is the baseline of
fusion. Needs only numpy and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features.join import Clips
from mer_dist.fusion import label_shift, nested
from mer_dist.fusion.cross_fitted import CrossFitted
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.probe_models import ProbeModels, Standardized, for_all_labels

#: What cross-validation chooses from: class weights, and inverse ridge strengths C; features are standardised.
#: With five strengths, chosen by likelihood, poor modalities looked seven points worse than they are: docs/results.md.
CLASS_WEIGHTS = (None, "balanced")
STRENGTHS = tuple(float(f"{strength:.2g}") for strength in np.logspace(-5, 0, 9))
SETTINGS = tuple(product(CLASS_WEIGHTS, STRENGTHS))
#: The default where there are too few folds to choose.
USUAL = SETTINGS.index((None, STRENGTHS[5]))
#: Edges of the logarithm of an inverse temperature.
LOG_SCALES = (-3.0, 9.0)


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
    chosen, nested_oof = _nested(inputs, some, clips, should_stop)
    fitted, scales, shares = [], [], []
    for fold in range(clips.folds):
        boundary(should_stop, "in a linear probe")
        rows = clips.outside(fold)
        shares.append(label_shift.shares(clips.truth[rows], classes))
        rows = rows[some[rows]]
        if len(np.unique(clips.truth[rows])) < 2:
            raise UserError(
                f"outside fold {fold}, the clips that have this feature set have fewer than two "
                "labels; it cannot be fused: name the others in fuse.sets"
            )
        model = logistic(*SETTINGS[chosen[fold]]).fit(inputs.rows(rows), clips.truth[rows])
        fitted.append(for_all_labels(model, classes))
        sure = _temperature(nested_oof[fold], clips, some)
        scales.append(sure.scale)
        nested_oof[fold, some[clips.labeled]] = sure(nested_oof[fold, some[clips.labeled]])
    coefficients, intercepts = (np.stack(parts) for parts in zip(*fitted, strict=True))
    models = ProbeModels(
        coefficients=coefficients.astype(np.float32),
        intercepts=intercepts,
        scales=np.array(scales),
        shares=np.stack(shares),
        mean=inputs.mean,
        std=inputs.std,
    )
    every = models.of_folds(values, valid)
    probability = every.mean(0)
    probability[clips.labeled] = every[clips.fold[clips.labeled], np.flatnonzero(clips.labeled)]
    return CrossFitted(oof=Predictions.of(clips, title, probability), nested_oof=nested_oof, models=models)


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
            coefficients, intercept = for_all_labels(model, classes)
            logits = (asked @ coefficients.T + intercept).astype(np.float64)
            yield SETTINGS.index((weights, strength)), label_shift.softmax(logits)
