"""Stacking: a logistic regression on what the linear probes of single sets predict (Wolpert 1992)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features.join import Clips
from mer_dist.features.moments import moments
from mer_dist.fusion import label_shift, nested
from mer_dist.fusion.cross_fitted import CrossFitted
from mer_dist.fusion.label_shift import Calibration
from mer_dist.fusion.linear_probe import SETTINGS, USUAL, each_setting, logistic
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.probe_models import for_all_labels

_TINY = 1e-7


@dataclass(frozen=True)
class StackedModel:
    """A logistic regression on calibrated log-probabilities of M members."""

    calibrations: list[Calibration]
    #: (M·C,), of the log-probabilities.
    mean: np.ndarray
    std: np.ndarray
    #: (C, M·C), and (C,).
    coefficients: np.ndarray
    intercept: np.ndarray

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """(n, C) from the members' probabilities (M, n, C)."""
        x = (_logs(self.calibrations, members) - self.mean) / self.std
        return label_shift.softmax(x @ self.coefficients.T + self.intercept)

    def tensors(self) -> dict[str, np.ndarray]:
        """As arrays by name, of which :meth:`of` makes the same again."""
        whole = {name: getattr(self, name) for name in ("mean", "std", "coefficients", "intercept")}
        whole["scales"] = np.array([own.scale for own in self.calibrations])
        whole["biases"] = np.stack([own.bias for own in self.calibrations])
        return {name: np.ascontiguousarray(values) for name, values in whole.items()}

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray]) -> StackedModel:
        """
        Raises:
            KeyError: one is missing.
        """
        pairs = zip(tensors["scales"].tolist(), tensors["biases"], strict=True)
        return cls(
            calibrations=[Calibration(scale, bias) for scale, bias in pairs],
            **{name: tensors[name] for name in ("mean", "std", "coefficients", "intercept")},
        )


def stacked_probe(
    probes: Sequence[CrossFitted], clips: Clips, title: str = "", should_stop: ShouldStop = never
) -> tuple[Predictions, StackedModel | None]:
    """Logistic regression on the calibrated log-probabilities of single sets' probes.

    That of fold k is trained and tuned on ``nested_oof``, predictions without fold k, so no label of fold k
    influences the predictions of its clips; that of the unlabelled clips on the out-of-fold predictions of all
    labelled ones. Where there is none, as with two folds, the probes have equal weights.

    Args:
        probes: of at least two sets.
        title: of the row in the result table.

    Returns:
        The predictions, and the model of unlabelled clips; None where the probes have equal weights.
    """
    labeled, truth = np.flatnonzero(clips.labeled), clips.truth[clips.labeled]
    probability = np.stack([probe.oof.probability for probe in probes])
    stacked, model = probability.mean(0), None
    for fold in (*range(clips.folds), -1):
        boundary(should_stop, "in the stacked linear probe")
        judged = (
            probability[:, labeled] if fold < 0 else np.stack([probe.nested_oof[fold] for probe in probes])
        )
        known, rows = np.isfinite(judged).all((0, 2)), np.flatnonzero(clips.fold == fold)
        if (len(rows) or fold < 0) and len(np.unique(truth[known])) > 1:
            model = _fit(judged[:, known], truth[known], clips.fold[labeled[known]])
            stacked[rows] = model(probability[:, rows])
        else:
            model = None
    return Predictions.of(clips, title, stacked), model


def _fit(judged: np.ndarray, truth: np.ndarray, fold: np.ndarray) -> StackedModel:
    """Trained on ``judged`` (M, N, C) of these folds (N,)."""
    classes = judged.shape[2]
    calibrated = [label_shift.calibrate(member.astype(np.float64), truth) for member in judged]
    x = _logs(calibrated, judged)
    mean, std = moments(x)
    x = (x - mean) / std
    fitted = logistic(*SETTINGS[_setting(x, truth, fold, classes)]).fit(x, truth)
    return StackedModel(calibrated, mean, std, *for_all_labels(fitted, classes))


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
