"""What is in a run folder, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import Problem
from mer_dist.crossfit import folds
from mer_dist.features import join, store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import predictions, recipes
from mer_dist.storage import files, quarantine, run_folder


@dataclass(frozen=True, kw_only=True)
class Score:
    """Out-of-fold weighted average F1 of a row of the result table, in [0, 1]."""

    title: str
    waf: float
    #: 95 % bootstrap interval, over clips or, with ``folds.group``, over groups.
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The vote of a run. Shapes: U unlabelled clips, L labelled ones, C labels."""

    labels: list[str]
    #: Unlabelled clip -> its answer, as in ``answer.csv``.
    answers: dict[str, str]
    #: Of the unlabelled clips, in the order of ``probability``.
    names: list[str]
    #: (U, C)
    probability: np.ndarray
    #: Of the labelled clips, in the order of ``oof_probability``.
    oof_names: list[str]
    #: (L, C): by models that never saw the clip's label.
    oof_probability: np.ndarray
    #: The result table, the simplest row first; the last is the vote.
    oof_scores: list[Score]
    #: Title of the row that answers: the vote, or another by ``vote.answer: best``.
    answered_by: str

    @classmethod
    def of_run(cls, folder: str | Path) -> Result:
        """
        Raises:
            UserError: the run has not voted yet, or a file is not readable.
        """
        run = run_folder.Run(folder)
        if not run.config.exists():
            raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
        config = configuration.of_run(run)
        recipes.check_fresh(config, run)
        made, own = predictions.read(run.vote.predictions), join.present_clips(config, run)
        truth = dict(zip(own.names, own.truth.tolist(), strict=True))
        labeled = made.labeled
        names = np.array(made.names, object)
        group = config.folds.group
        groups = [folds.group_of(name, group) or name for name in names[labeled]] if group else None
        scores = []
        for path in predictions.all_of(run):
            row = predictions.read(path)
            true = np.array([truth.get(name, -1) for name in np.array(row.names, object)[row.labeled]])
            answer = row.answer[row.labeled]
            scores.append(
                Score(
                    title=row.title,
                    waf=metrics.waf(true, answer),
                    interval=metrics.waf_interval(true, answer, groups=groups),
                )
            )
        return cls(
            labels=made.labels,
            answers=predictions.voted(run),
            names=names[~labeled].tolist(),
            probability=made.probability[~labeled],
            oof_names=names[labeled].tolist(),
            oof_probability=made.probability[labeled],
            oof_scores=scores,
            answered_by=files.read_json(run.vote.prior).get("answered_by_row", {}).get("title", made.title),
        )

    @property
    def oof_score(self) -> Score:
        """Of the vote."""
        return self.oof_scores[-1]

    @property
    def answering(self) -> Score:
        """Of the row that answers."""
        return next(row for row in self.oof_scores if row.title == self.answered_by)


class Run:
    """A run folder to look into: ``Run("runs/mine").features("hubert").utterance``."""

    def __init__(self, folder: str | Path):
        """
        Raises:
            UserError: there is no run.
        """
        self._run = run_folder.Run(folder)
        if not self._run.begun and not self._run.config.exists():
            raise UserError(f"{self._run.folder}: no run there; it has no {self._run.config.name}")

    @property
    def folder(self) -> Path:
        return self._run.folder

    @property
    def config(self) -> Config:
        """The configuration of the last stage."""
        return configuration.of_run(self._run)

    @property
    def feature_sets(self) -> list[str]:
        """The names that :meth:`features` takes."""
        found = {path.name for path in self._run.feature_sets()}
        tuned = {name.partition("@")[0] for name in found if "@" in name}
        return sorted({name for name in found if "@" not in name} | {f"{name}@tuned" for name in tuned})

    def features(self, name: str, frames: bool = False) -> FeatureSet:
        """A feature set: ``names``, ``utterance`` (N, D), and with ``frames`` also ``frame`` (F, D) and ``offsets``.

        Of a set that was fine-tuned per fold, ``clip@tuned``, each labelled clip comes from an adapter that never saw
        its label.

        Raises:
            UserError: there is no such set, or it has no frame level.
        """
        wanted = FeatureSetId.parse(name)
        if wanted.is_tuned:
            own = join.present_clips(self.config, self._run)
            if not own.fold_of:
                raise UserError(f"{self.folder}: its folds are not those of its labels; run fuse again")
            found = join.tuned(self._run, wanted.name, own.fold_of, frames)
        else:
            found = store.load(self._run.features(name), frames)
        if frames:
            found.ragged()
        return found

    def result(self) -> Result:
        """The vote.

        Raises:
            UserError: the run has not voted yet.
        """
        return Result.of_run(self.folder)

    def quarantine(self, *stages: str) -> list[Problem]:
        """What could not be used, and why; of these stages, or of all."""
        return quarantine.read(self._run.quarantine, *stages)
