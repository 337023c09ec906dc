"""The fitted linear probes of a feature set or of several, to answer clips: those of the run and others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mer_dist.features.moments import moments
from mer_dist.fusion import label_shift
from mer_dist.fusion.label_shift import Calibration


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


@dataclass(frozen=True, kw_only=True)
class ProbeModels:
    """The logistic regressions of all K folds on the same sets, D numbers side by side, for C labels."""

    #: (K, C, D) float32, of standardised features.
    coefficients: np.ndarray
    #: (K, C); -inf for a label that a fold's training clips lack.
    intercepts: np.ndarray
    #: (K,) inverse temperatures.
    scales: np.ndarray
    #: (K, C) label shares of the training clips: what a clip gets that has none of the sets.
    shares: np.ndarray
    #: Each (D of the set,).
    mean: list[np.ndarray]
    std: list[np.ndarray]

    def of_folds(self, values: list[np.ndarray], valid: list[np.ndarray]) -> np.ndarray:
        """(K, N, C) probabilities of clips.

        Args:
            values: per set (N, D).
            valid: per set (N,) bool, True where the clip has it.
        """
        inputs, some = Standardized(values, valid, self.mean, self.std), np.any(valid, 0)
        every = np.tile(self.shares[:, None], (1, len(some), 1))
        for fold, scale in enumerate(self.scales):
            logits = inputs.logits(self.coefficients[fold], self.intercepts[fold])
            probability = label_shift.softmax(logits[some].astype(np.float64))
            every[fold, some] = Calibration(float(scale), np.zeros(probability.shape[1]))(probability)
        return every

    def __call__(self, values: list[np.ndarray], valid: list[np.ndarray]) -> np.ndarray:
        """(N, C): the mean over the folds."""
        return self.of_folds(values, valid).mean(0)

    def before(self, alignments: list[tuple[np.ndarray, np.ndarray] | None]) -> ProbeModels:
        """The same for embeddings that were not yet mapped: per set ``(x - shift) / scale``, None: as they are."""
        mean, std = [], []
        for own_mean, own_std, alignment in zip(self.mean, self.std, alignments, strict=True):
            shift, scale = alignment or (0.0, 1.0)
            mean.append((shift + scale * own_mean).astype(np.float32))
            std.append((scale * own_std).astype(np.float32))
        return replace(self, mean=mean, std=std)

    def tensors(self) -> dict[str, np.ndarray]:
        """As arrays by name, of which :meth:`of` makes the same again."""
        whole = {name: getattr(self, name) for name in ("coefficients", "intercepts", "scales", "shares")}
        for number, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            whole |= {f"mean.{number}": mean, f"std.{number}": std}
        return {name: np.ascontiguousarray(values) for name, values in whole.items()}

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray]) -> ProbeModels:
        """
        Raises:
            KeyError: one is missing, as in a run of an earlier version.
        """
        sets = sum(name.startswith("mean.") for name in tensors)
        return cls(
            **{name: tensors[name] for name in ("coefficients", "intercepts", "scales", "shares")},
            mean=[tensors[f"mean.{number}"] for number in range(sets)],
            std=[tensors[f"std.{number}"] for number in range(sets)],
        )


def for_all_labels(model, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (C, D) and intercepts (C,) over all labels of a scikit-learn model, which may know only some."""
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row of coefficients then
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    every, offsets = np.zeros((classes, coefficients.shape[1]), coefficients.dtype), np.full(classes, -np.inf)
    every[model.classes_], offsets[model.classes_] = coefficients, intercept
    return every, offsets
