"""Stacking: a logistic regression on what the linear probes of single sets predict (Wolpert 1992)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features.join import Clips
from mer_dist.features.moments import moments
from mer_dist.fusion import label_shift, nested
from mer_dist.fusion.cross_fitted import CrossFitted
from mer_dist.fusion.linear_probe import SETTINGS, USUAL, each_setting, logistic
from mer_dist.fusion.predictions import Predictions

_TINY = 1e-7


def stacked_probe(
    probes: Sequence[CrossFitted], clips: Clips, title: str = "", should_stop: ShouldStop = never
) -> Predictions:
    """Logistic regression on the calibrated log-probabilities of single sets' probes.

    That of fold k is trained and tuned on ``nested_oof``, predictions without fold k, so no label of fold k
    influences the predictions of its clips; that of the unlabelled clips on the out-of-fold predictions of all
    labelled ones. Where there is none, as with two folds, the probes have equal weights.

    Args:
        probes: of at least two sets.
        title: of the row in the result table.
    """
    labeled, truth = np.flatnonzero(clips.labeled), clips.truth[clips.labeled]
    probability = np.stack([probe.oof.probability for probe in probes])
    stacked = probability.mean(0)
    for fold in (*range(clips.folds), -1):
        boundary(should_stop, "in the stacked linear probe")
        judged = (
            probability[:, labeled] if fold < 0 else np.stack([probe.nested_oof[fold] for probe in probes])
        )
        known = np.isfinite(judged).all((0, 2))
        rows = np.flatnonzero(clips.fold == fold)
        if len(rows) and len(np.unique(truth[known])) > 1:
            stacked[rows] = _stack(
                judged[:, known], truth[known], clips.fold[labeled[known]], probability[:, rows]
            )
    return Predictions.of(clips, title, stacked)


def _stack(judged: np.ndarray, truth: np.ndarray, fold: np.ndarray, unjudged: np.ndarray) -> np.ndarray:
    """(n, C) for ``unjudged`` (M, n, C), trained on ``judged`` (M, N, C) of these folds (N,)."""
    calibrated = [label_shift.calibrate(member.astype(np.float64), truth) for member in judged]
    x, asked = _logs(calibrated, judged), _logs(calibrated, unjudged)
    mean, std = moments(x)
    x, asked = (x - mean) / std, (asked - mean) / std
    model = logistic(*SETTINGS[_setting(x, truth, fold, judged.shape[2])]).fit(x, truth)
    found = np.zeros(unjudged.shape[1:])
    found[:, model.classes_] = model.predict_proba(asked)
    return found


def _setting(x: np.ndarray, truth: np.ndarray, fold: np.ndarray, classes: int) -> int:
    """Index into ``SETTINGS`` of the ridge and class weights with the best WAF over these folds."""
    predicted = np.full((len(SETTINGS), len(truth), classes), np.nan)
    for one in np.unique(fold):
        own = fold == one
        if len(np.unique(truth[~own])) > 1:
            for option, probability in each_setting(x[~own], truth[~own], x[own], classes):
                predicted[option, own] = probability
    known = np.isfinite(predicted[0]).all(1)
    if not known.any():
        return USUAL
    return int(np.argmin([nested.waf_loss(one[known], truth[known]) for one in predicted]))


def _logs(calibrated: Sequence[label_shift.Calibration], members: np.ndarray) -> np.ndarray:
    """(n, M·C): the calibrated log-probabilities of members (M, n, C), side by side."""
    each = [own(member.astype(np.float64)) for own, member in zip(calibrated, members, strict=True)]
    return np.log(np.maximum(np.concatenate(each, 1), _TINY))
