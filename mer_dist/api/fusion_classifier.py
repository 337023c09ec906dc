"""Semi-supervised learning over features of several modalities, with scikit-learn's conventions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from mer_dist.api.results import Result, Score
from mer_dist.config.config import Config
from mer_dist.config.sections import (
    CorpusConfig,
    FoldConfig,
    FuseConfig,
    RunConfig,
    SelfTrainConfig,
    VoteConfig,
)
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.records import Modality
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.trained import FusionPredictor, TrainedFusion
from mer_dist.storage import files
from mer_dist.storage.run_folder import FeatureFolder, Run

#: ``y`` of an unlabelled clip, as in ``sklearn.semi_supervised``.
UNLABELED = -1
_ALONE = "features"


class FusionClassifier(ClassifierMixin, BaseEstimator):
    """Linear probes, a fusion model with self-training, and a calibrated vote over all of them.

    ``X`` maps the name of a feature set to an array (N, D), or is one array. A row of NaN is a clip without this set.
    ``y`` has the labels, and -1 for the unlabelled clips, which self-training learns from.

    Args:
        model: ``agt``, ``attention``, ``mlp`` or ``linear``.
        modality: feature set -> ``audio``, ``video`` or ``text``, for sets of other names.
        folds: of cross-fitting; fewer where a label has fewer clips.
        rounds: of self-training.
        epochs, seeds, width, heads: of the fusion model.
        answer: ``vote``, or ``best``: the row of the result table with the best out-of-fold score.
        random_state: seed of folds and models.

    Attributes:
        classes_: (C,) the labels.
        oof_score_: weighted average F1 of the row that answers, with its interval, on the labelled clips, each predicted by models
            that never saw its label.
        oof_scores_: the same of every row of the result table: single sets, all of them, each round, the vote.
        oof_proba_: (L, C) the predictions of the vote for them, in the order of the labelled clips.
        transduction_: (N,) the labels given in ``y``, and predicted ones for the unlabelled clips, whose class prior is
            corrected where it differs.
    """

    def __init__(
        self,
        model: str = "agt",
        *,
        modality: Mapping[str, str] | None = None,
        folds: int = 5,
        rounds: int = 2,
        epochs: int = 30,
        seeds: int = 3,
        width: int = 64,
        heads: int = 4,
        answer: str = "vote",
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.model = model
        self.modality = modality
        self.folds = folds
        self.rounds = rounds
        self.epochs = epochs
        self.seeds = seeds
        self.width = width
        self.heads = heads
        self.answer = answer
        self.random_state = random_state

    def fit(
        self, X: Mapping[str, np.ndarray] | np.ndarray, y: Any, groups: Sequence | None = None
    ) -> FusionClassifier:
        """Learn from the labelled clips and, by self-training, from the others.

        Args:
            groups: (N,) clips of one group, as of one speaker, share a fold, so that out-of-fold scores are of unseen
                groups.

        Raises:
            ValueError: shapes do not fit, there is no label, or a label has fewer than two clips.
        """
        sets = self._sets(X, y)
        y = column_or_1d(y)
        known = ~_is_unlabeled(y)
        if y.dtype == object and known.any():
            # Numbers among which there was a None.
            y = np.where(known, y, UNLABELED)
            own = np.array(y[known].tolist())
            y = y.astype(own.dtype) if own.dtype.kind in "iuf" else y
        if any(len(values) != len(y) for values in sets.values()):
            sizes = ", ".join(f"{name} {len(values)}" for name, values in sets.items())
            raise ValueError(f"X and y have different numbers of clips: {sizes}, y {len(y)}")
        check_classification_targets(y[known])
        self.classes_, truth = np.unique(y[known], return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"there is nothing to tell apart: y has the one class {self.classes_.tolist()} of labelled clips"
            )
        least = int(np.bincount(truth).min())
        if least < 2:
            rare = self.classes_[np.bincount(truth) < 2].tolist()
            raise ValueError(f"cross-fitting needs two clips of each class; there is one of {rare}")
        with tempfile.TemporaryDirectory(prefix="mer_dist-") as folder:
            config = self._config(Path(folder), list(sets), min(self.folds, least), groups is not None)
            names = _names(len(y), groups)
            self._write(config, sets, names, known, truth)
            self._fuse(config, list(sets), names, y, known)
        return self

    def predict_proba(self, X: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
        """(N, C): of each clip by itself; no statistic of ``X`` enters."""
        check_is_fitted(self)
        sets = self._sets(X)
        count = len(next(iter(sets.values())))
        names = _names(count)
        if unknown := sorted(sets.keys() - self.sets_.keys()):
            raise ValueError(
                f"X has {', '.join(unknown)}, and the classifier learned from {', '.join(self.sets_)}"
            )
        features = {
            self.sets_[name]: _feature_set(self._modality(name), names, values)
            for name, values in sets.items()
        }
        return self._predictor(features, names).probability

    def predict(self, X: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
        """(N,) the most probable labels."""
        probability = self.predict_proba(X)
        return self.classes_[probability.argmax(1)]

    def __getstate__(self) -> dict[str, Any]:
        # Torch's generators cannot be pickled.
        return {name: value for name, value in super().__getstate__().items() if name != "_predictor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "trained_" in state:
            self._predictor = FusionPredictor(self.trained_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = False
        return tags

    def _sets(self, X: Mapping[str, np.ndarray] | np.ndarray, y: Any = None) -> dict[str, np.ndarray]:
        """Feature set -> (N, D) float32; one array is checked as scikit-learn's own estimators do."""
        # A sparse array may be a mapping, too; as one array it is refused.
        if isinstance(X, Mapping) and not issparse(X):
            sets = {str(name): np.asarray(values, np.float32) for name, values in X.items()}
            odd = [
                f"X[{name!r}] has the shape {values.shape}"
                for name, values in sets.items()
                if values.ndim != 2
            ]
            if not sets or odd:
                raise ValueError(
                    "X maps the name of each feature set to an array (N, D), one vector a clip, and has at least one; "
                    f"{odd[0] if odd else 'it has none'}"
                )
            for name, values in sets.items():
                if (~np.isfinite(values).all(1) & ~np.isnan(values).all(1)).any():
                    raise ValueError(
                        f"X[{name!r}] has rows of which a part is NaN or infinite; a clip without this set is a row of "
                        "NaN alone"
                    )
            if len({len(values) for values in sets.values()}) > 1:
                sizes = ", ".join(f"{name} {len(values)}" for name, values in sets.items())
                raise ValueError(f"the feature sets of X have different numbers of clips: {sizes}")
            return sets
        if y is None:
            return {_ALONE: validate_data(self, X, dtype=np.float32, reset=False)}
        checked, _ = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        return {_ALONE: checked}

    def _modality(self, name: str) -> str:
        own = (self.modality or {}).get(name, Modality.AUDIO if name == _ALONE else name)
        if own not in list(Modality):
            raise ValueError(
                f"the feature set {name!r} is of no known modality; give it: modality={{{name!r}: 'audio'}}, or 'video', "
                "or 'text'"
            )
        return str(own)

    def _config(self, folder: Path, sets: list[str], folds: int, grouped: bool) -> Config:
        given = self.random_state
        seed = given if isinstance(given, int) else int(check_random_state(given).randint(2**31))
        return Config(
            run=RunConfig(folder=str(folder / "run"), seed=seed),
            corpus=CorpusConfig(labels=[f"class{number}" for number in range(len(self.classes_))]),
            folds=FoldConfig(count=folds, seed=seed, group="^(g[0-9]+)_" if grouped else ""),
            fuse=FuseConfig(
                labels=str(folder / "labels.csv"),
                sets=_stored_names(sets),
                model=self.model,
                epochs=self.epochs,
                seeds=self.seeds,
                width=self.width,
                heads=self.heads,
            ),
            self_train=SelfTrainConfig(rounds=self.rounds),
            vote=VoteConfig(answer=self.answer),
        )

    def _write(
        self,
        config: Config,
        sets: dict[str, np.ndarray],
        names: list[str],
        known: np.ndarray,
        truth: np.ndarray,
    ) -> None:
        """Labels and features as the stage reads them."""
        labels = iter(truth.tolist())
        rows = [
            f"{name},{f'class{next(labels)}' if own else ''}" for name, own in zip(names, known, strict=True)
        ]
        files.write_text(Path(config.fuse.labels), "\n".join(["name,label", *rows, ""]))
        for own, (name, values) in zip(config.fuse.sets, sets.items(), strict=True):
            folder = Run(config.run.folder).features(own)
            found = _feature_set(self._modality(name), names, values)
            store.write_shard(FeatureFolder(folder).shard(0), found)
            store.describe(folder, modality=found.modality, width=found.width)
            files.write_marker(folder, "", shards=[0])

    def _fuse(
        self, config: Config, sets: list[str], names: list[str], y: np.ndarray, known: np.ndarray
    ) -> None:
        """Fuse, and keep what predicting and looking at the result needs."""
        from mer_dist.stages.fuse import fuse

        fuse(config)
        result = Result.of_run(config.run.folder)
        trained = TrainedFusion.of_run(config, Run(config.run.folder))
        self.sets_ = dict(zip(sets, config.fuse.sets, strict=True))
        self.trained_ = trained
        self.oof_score_: Score = result.answering
        self.oof_scores_: list[Score] = result.oof_scores
        row_of = {name: row for row, name in enumerate(result.oof_names)}
        self.oof_proba_ = result.oof_probability[
            [row_of[name] for name, own in zip(names, known, strict=True) if own]
        ]
        self.transduction_ = y.copy()
        for row in np.flatnonzero(~known):
            number = int(result.answers[names[row]].removeprefix("class"))
            self.transduction_[row] = self.classes_[number]
        self._predictor = FusionPredictor(trained)


def _stored_names(sets: list[str]) -> list[str]:
    """Names that feature sets can have on disk: their own, where they can."""
    found: list[str] = []
    for name in sets:
        own, number = name if NAME.fullmatch(name) else "set", 2
        while own in found or (own != name and own in sets):
            own, number = f"set{number}", number + 1
        found.append(own)
    return found


def _is_unlabeled(y: np.ndarray) -> np.ndarray:
    """(N,) bool: -1, None, NaN, or an empty text, also where numpy has made texts of them."""
    if y.dtype.kind in "iuf":
        return (y == UNLABELED) | (np.isnan(y) if y.dtype.kind == "f" else False)
    words = ("", str(UNLABELED), "None", "nan")
    return np.array([value is None or value == UNLABELED or str(value) in words for value in y], bool)


def _names(count: int, groups: Sequence | None = None) -> list[str]:
    """Of clips, with the group in front."""
    width = len(str(count))
    names = [f"{row:0{width}d}" for row in range(count)]
    if groups is None:
        return names
    if len(groups) != count:
        raise ValueError(f"groups has {len(groups)} entries, and there are {count} clips")
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    return [f"g{own}_{name}" for own, name in zip(number, names, strict=True)]


def _feature_set(modality: str, names: list[str], values: np.ndarray) -> FeatureSet:
    there = ~np.isnan(values).all(1)
    own = [name for name, present in zip(names, there, strict=True) if present]
    return FeatureSet(modality=modality, names=own, utterance=np.ascontiguousarray(values[there]))
