"""What the cross-fitted models of a linear baseline or of a round predict, in memory and on disk.

Shape suffixes in words: N clips, L of them labelled and U not, C labels, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from mer_dist.core.errors import reading
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import AGAIN, Predictions
from mer_dist.storage import files
from mer_dist.storage.run_folder import RoundFolder, Run


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """A linear baseline on one feature set or on all."""

    #: Of every clip: out of fold of a labelled one, else the mean of all folds' models.
    oof: Predictions
    #: (K, L, C): probabilities of the labelled clips by models that left out fold k and their own fold. NaN
    #: for the clips of fold k itself, and where too few labels are left to learn from, as with two folds.
    #: Used by whatever is fitted for fold k: temperature, thresholds, and the weights of the vote.
    nested_oof: np.ndarray

    @classmethod
    def load(cls, run: Run, name: str) -> CrossFitted:
        """The baseline on this feature set.

        Raises:
            UserError: a file of it is not readable.
        """
        arrays = run.linear_probes.nested_oof(name)
        with reading(arrays, AGAIN):
            nested_oof = safetensors.numpy.load_file(arrays)["nested_oof"]
        return cls(oof=predictions.read(run.linear_probes.predictions(name)), nested_oof=nested_oof)

    def save(self, run: Run, name: str) -> None:
        arrays = safetensors.numpy.save({"nested_oof": self.nested_oof})
        files.write_bytes(run.linear_probes.nested_oof(name), arrays)
        predictions.write(run.linear_probes.predictions(name), self.oof)


@dataclass(frozen=True, kw_only=True)
class CrossFittedRound:
    """A round of the fusion model.

    Nested predictions, and the dropout that they chose, are those of round 0 in all rounds: for later ones
    they would need pseudo-labels from models without three folds, and so on. They are NaN also for clips
    without any modality.
    """

    number: int
    oof: Predictions
    #: (K, L, C), see :class:`CrossFitted`.
    nested_oof: np.ndarray
    #: (K, U, C): probabilities of the unlabelled clips by the models of each fold.
    fold_predictions: np.ndarray
    #: (N,) bool: clips that have any of the fused modalities.
    present: np.ndarray
    #: (K,): of the models of each fold.
    dropout: np.ndarray

    @classmethod
    def load(cls, run: Run, number: int) -> CrossFittedRound:
        """This round.

        Raises:
            UserError: a file of it, or of round 0, is not readable.
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
