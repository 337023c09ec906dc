"""Predictions of the cross-fitted models of a linear baseline or of a round, in memory and on disk.

Shapes: N clips, L of them labelled and U not, C labels, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from mer_dist.core.errors import reading
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import AGAIN, Predictions
from mer_dist.fusion.probe_models import ProbeModels
from mer_dist.storage import files
from mer_dist.storage.run_folder import RoundFolder, Run


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """A linear baseline on one feature set or on all."""

    #: Of every clip: out of fold for a labelled one, else the mean of all folds' models.
    oof: Predictions
    #: (K, L, C): probabilities of the labelled clips by models that left out fold k and the clip's own fold.
    #: NaN for the clips of fold k itself, and where too few labels are left to train on, as with two folds.
    #: Temperature, thresholds and vote weights for fold k are fitted on these.
    nested_oof: np.ndarray
    #: What made these predictions; None where they were read from a run, which only predicting reads.
    models: ProbeModels | None = None
    #: Its feature set, or ``@all``.
    name: str = ""

    @property
    def part(self) -> str:
        """Where it lies in a run folder."""
        return f"linear_probes/{self.name}"

    @classmethod
    def load(cls, run: Run, name: str) -> CrossFitted:
        """Read the baseline on this feature set.

        Raises:
            UserError: one of its files is not readable.
        """
        arrays = run.linear_probes.arrays(name)
        with reading(arrays, AGAIN):
            nested_oof = safetensors.numpy.load_file(arrays)["nested_oof"]
        return cls(
            oof=predictions.read(run.linear_probes.predictions(name)), nested_oof=nested_oof, name=name
        )

    def save(self, run: Run, name: str) -> None:
        arrays = {"nested_oof": self.nested_oof, **(self.models.tensors() if self.models else {})}
        files.write_bytes(run.linear_probes.arrays(name), safetensors.numpy.save(arrays))
        predictions.write(run.linear_probes.predictions(name), self.oof)


@dataclass(frozen=True, kw_only=True)
class CrossFittedRound:
    """A round of the fusion model.

    All rounds use the nested predictions of round 0 and the dropout chosen with them: later rounds would
    need pseudo-labels from models without three folds, and so on. They are also NaN for clips without any
    modality.
    """

    number: int
    oof: Predictions
    #: (K, L, C), see :class:`CrossFitted`.
    nested_oof: np.ndarray
    #: (K, U, C): probabilities of the unlabelled clips from the models of each fold.
    fold_predictions: np.ndarray
    #: (N,) bool: clips that have any of the fused modalities.
    present: np.ndarray
    #: (K,): of the models of each fold.
    dropout: np.ndarray

    @property
    def part(self) -> str:
        """Where it lies in a run folder."""
        return f"rounds/{self.number:02d}"

    @classmethod
    def load(cls, run: Run, number: int) -> CrossFittedRound:
        """Read this round.

        Raises:
            UserError: a file of this round or of round 0 is not readable.
        """
        own, first = run.round(number).fold_predictions, run.round(0).fold_predictions
        with reading(own, AGAIN):
            tensors = safetensors.numpy.load_file(own)
            fold_predictions, present = tensors["probability"], tensors["present"].astype(bool)
        with reading(first, AGAIN):
            tensors = safetensors.numpy.load_file(first) if number else tensors
            nested_oof, dropout = tensors["nested_oof"], tensors["dropout"]
        return cls(
            number=number,
            oof=predictions.read(run.round(number).predictions),
            nested_oof=nested_oof,
            fold_predictions=fold_predictions,
            present=present,
            dropout=dropout,
        )

    def save(self, folder: RoundFolder) -> None:
        tensors = {"probability": self.fold_predictions, "present": self.present.astype(np.uint8)}
        if self.number == 0:
            tensors |= {"nested_oof": self.nested_oof, "dropout": self.dropout}
        files.write_bytes(folder.fold_predictions, safetensors.numpy.save(tensors))
        predictions.write(folder.predictions, self.oof)
