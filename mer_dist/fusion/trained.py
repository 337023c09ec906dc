"""What fusion learned, to answer clips that it has not seen.

Nothing is trained again, and no statistic of the new clips enters: moments, calibration and label shares are
those of training, so the answer to a clip does not depend on the clips beside it. On disk it is JSON and
safetensors.

Shapes: n clips, C labels, K folds, S sets, E members of a round's ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from mer_dist.config.config import Config, as_dict
from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import UserError, reading
from mer_dist.core.feature_set_id import TUNED, FeatureSetId
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.features import join, split_check, store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import recipes
from mer_dist.fusion.new_prior import LabeledClips
from mer_dist.fusion.pooling import Pooling
from mer_dist.fusion.probe_models import ProbeModels
from mer_dist.fusion.stacked_probe import StackedModel
from mer_dist.storage import files
from mer_dist.storage.run_folder import ALL_SETS, STACKED, Run

if TYPE_CHECKING:
    from mer_dist.fusion.batch import FeatureBatch
    from mer_dist.fusion.members import FusionModel

VOTE = "vote"
#: Why the features of a clip are not used.
UNUSABLE = f"values that are NaN, infinite, or beyond {join.OUTLIER:g} standard deviations of training"
#: Raise it when the files of :meth:`TrainedFusion.save` change.
FORMAT = 1
_FACTS, _TENSORS = "fusion.json", "fusion.safetensors"
_PROBES, _ROUNDS, _MOMENTS, _LABELED = "linear_probes", "rounds", "moments", "labeled"


@dataclass(frozen=True)
class TrainedSet:
    """A feature set that was fused."""

    name: str
    modality: str
    width: int


@dataclass(frozen=True, kw_only=True)
class TrainedFusion:
    labels: list[str]
    #: In the order of fusion.
    sets: list[TrainedSet]
    settings: FuseConfig
    #: Models of a round: folds × seeds.
    ensemble: int
    #: Parts of the run folder that vote: rounds and linear probes.
    members: list[str]
    pooling: Pooling
    #: The row that answers: ``vote``, or the part of another.
    answered_by: str
    #: ``run.seed``
    seed: int
    #: Part, ``moments`` or ``labeled`` -> its arrays.
    arrays: dict[str, dict[str, np.ndarray]]

    @classmethod
    def of_run(cls, config: Config, run: Run, labeled: bool = False) -> TrainedFusion:
        """What the run learned.

        Args:
            labeled: with what estimating the class prior of new clips needs.

        Raises:
            UserError: it has no answer yet, an earlier version made it, or a file of it is not readable.
        """
        recipes.check_fresh(config, run)
        with reading(run.vote.prior, "run fuse again"):
            prior = files.read_json(run.vote.prior)
            if "pooling" not in prior:
                raise UserError(
                    f"{run.folder}: an earlier version of mer-dist made its models; run fuse again"
                )
            pooling, members = Pooling.of(prior["pooling"]), [str(part) for part in prior["members"]]
            answered_by = str(prior.get("answered_by_row", {}).get("part", VOTE))
        sets = [_described(run, name) for name in join.fused_sets(config)]
        arrays = {part: _arrays(run, part) for part in dict.fromkeys([*members, *_needed(answered_by, sets)])}
        arrays[_MOMENTS] = _read(run.round(0).moments)
        if labeled:
            own = LabeledClips.of_run(join.present_clips(config, run), run, config.folds.group)
            arrays[_LABELED] = own.arrays()
        return cls(
            labels=list(config.corpus.labels),
            sets=sets,
            settings=config.fuse,
            ensemble=config.folds.count * config.fuse.seeds,
            members=members,
            pooling=pooling,
            answered_by=answered_by,
            seed=config.run.seed,
            arrays=arrays,
        )

    def save(self, folder: Path) -> None:
        """Write ``fusion.json`` and ``fusion.safetensors``.

        Raises:
            UserError: ``fuse.model`` is the user's own, whose code this cannot carry.
        """
        if self.settings.model not in FUSION_MODELS.built_in:
            raise UserError(
                f"fuse.model {self.settings.model} is code of your own, which a bundle does not carry; predict from "
                "the run folder"
            )
        settings = {
            key: value for key, value in as_dict(self.settings).items() if key not in ("labels", "sets")
        }
        facts = {
            "format": FORMAT,
            "labels": self.labels,
            "sets": [vars(one) for one in self.sets],
            "settings": settings,
            "ensemble": self.ensemble,
            "members": self.members,
            "pooling": self.pooling.as_values(),
            "answered_by": self.answered_by,
            "seed": self.seed,
        }
        files.write_json(folder / _FACTS, facts)
        tensors = {
            f"{part}/{name}": np.ascontiguousarray(array)
            for part, own in self.arrays.items()
            for name, array in own.items()
        }
        files.write_bytes(folder / _TENSORS, safetensors.numpy.save(tensors))

    @classmethod
    def load(cls, folder: Path) -> TrainedFusion:
        """What :meth:`save` wrote.

        Raises:
            UserError: a file is missing, damaged, or of another version.
        """
        path = folder / _FACTS
        with reading(path, "make the bundle again"):
            facts = files.read_json(path)
            if facts["format"] != FORMAT:
                raise UserError(
                    f"{path}: its format is {facts['format']}, and this version of mer-dist reads {FORMAT}; make the "
                    "bundle again with this version"
                )
            values: dict[str, Any] = {
                "labels": [str(label) for label in facts["labels"]],
                "sets": [TrainedSet(**one) for one in facts["sets"]],
                "settings": FuseConfig(**facts["settings"]),
                "ensemble": int(facts["ensemble"]),
                "members": [str(part) for part in facts["members"]],
                "pooling": Pooling.of(facts["pooling"]),
                "answered_by": str(facts["answered_by"]),
                "seed": int(facts["seed"]),
            }
            if values["settings"].model not in FUSION_MODELS.built_in:
                raise ValueError(f"its fusion model {values['settings'].model} is not one of mer-dist")
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for name, array in _read(folder / _TENSORS).items():
            part, _, own = name.rpartition("/")
            arrays.setdefault(part, {})[own] = array
        return cls(**values, arrays=arrays)

    @property
    def labeled(self) -> LabeledClips | None:
        """None where it was left out."""
        return LabeledClips(**self.arrays[_LABELED]) if _LABELED in self.arrays else None

    @property
    def names(self) -> list[str]:
        """Of the feature sets."""
        return [one.name for one in self.sets]


def _needed(answered_by: str, sets: list[TrainedSet]) -> list[str]:
    """The parts that the answering row reads beside those of the vote."""
    stacked = [f"{_PROBES}/{one.name}" for one in sets] if answered_by == f"{_PROBES}/{STACKED}" else []
    return [*stacked, *([answered_by] if answered_by != VOTE else [])]


def _described(run: Run, name: str) -> TrainedSet:
    wanted = FeatureSetId.parse(name)
    stored = FeatureSetId.of_adapter(wanted.name, None) if wanted.variant == TUNED else wanted
    facts = store.description(run.features(stored))
    return TrainedSet(name, str(facts["modality"]), int(facts["width"]))


def _arrays(run: Run, part: str) -> dict[str, np.ndarray]:
    kind, _, name = part.partition("/")
    if kind == _ROUNDS:
        return _read(run.round(int(name)).models)
    found = _read(run.linear_probes.arrays(name))
    found.pop("nested_oof", None)
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "run fuse again, or make the bundle again"):
        return safetensors.numpy.load_file(path)


@dataclass(frozen=True, kw_only=True)
class FusedAnswers:
    """Predictions for n clips."""

    #: (n, C)
    probability: np.ndarray
    #: (n,) bool: False for a clip without any of the feature sets, which gets the label shares of training.
    present: np.ndarray
    #: Feature set -> (n,) bool: whether a clip has it, with finite numbers.
    valid: dict[str, np.ndarray]
    #: Feature set -> (n, C) that it predicts alone.
    alone: dict[str, np.ndarray]
    #: (K, n, C) by the models of each fold of round 0, to estimate the class prior; None: not asked for.
    fold_predictions: np.ndarray | None = None
    #: Channel of AGT's gating -> its weight (n,), mean over the ensemble; empty unless asked for.
    gates: dict[str, np.ndarray] = field(default_factory=dict)


class FusionPredictor:
    """Predicts clips from their features."""

    def __init__(self, trained: TrainedFusion, device: str = "cpu"):
        """
        Raises:
            UserError: its arrays do not fit its settings.
        """
        self.trained, self.device = trained, device
        self._models: dict[str, FusionModel] = {}
        with reading(Path(_TENSORS), "run fuse again, or make the bundle again"):
            self._probes = {
                part: ProbeModels.of(trained.arrays[part])
                for part in trained.arrays
                if part.startswith(_PROBES) and part != f"{_PROBES}/{STACKED}"
            }
            moments = trained.arrays[_MOMENTS]
            self._moments = [
                (moments[f"shift.{number}"], moments[f"scale.{number}"])
                for number in range(len(trained.sets))
            ]

    def __call__(
        self,
        features: Mapping[str, FeatureSet],
        names: Sequence[str],
        explain: bool = False,
        by_fold: bool = False,
    ) -> FusedAnswers:
        """Predict the clips ``names``, each from those of the ``features`` that have it.

        Args:
            features: feature set -> embeddings as extracted; sets that are absent are missing for all clips.
            explain: with the weights of AGT's gating.
            by_fold: with the predictions of each fold of round 0.

        Raises:
            UserError: a set has another width, or lacks the frame level.
        """
        names = list(names)
        utterances = [self._utterances(features, number, names) for number in range(len(self.trained.sets))]
        values, valid = map(list, zip(*utterances, strict=True))
        present = np.any(valid, 0)
        probed = {part: self._probe(part, values, valid) for part in self._probes}
        alone = {
            one.name: probed[f"{_PROBES}/{one.name}"]
            for one in self.trained.sets
            if f"{_PROBES}/{one.name}" in probed
        }
        inputs = self._inputs(features, values, valid, names)

        def member(part: str) -> np.ndarray:
            return probed[part] if part in probed else self._of_folds(part, inputs, present).mean(0)

        answered_by = self.trained.answered_by
        if answered_by == VOTE:
            probability = self.trained.pooling(np.stack([*map(member, self.trained.members)]), present)
        elif answered_by == f"{_PROBES}/{STACKED}":
            probability = self._stacked(alone)
        else:
            probability = member(answered_by)
        return FusedAnswers(
            probability=probability,
            present=present,
            valid=dict(zip(self.trained.names, valid, strict=True)),
            alone=alone,
            fold_predictions=self._of_folds(f"{_ROUNDS}/00", inputs, present) if by_fold else None,
            gates=self._gates(inputs, present) if explain else {},
        )

    def doubts(self, features: Mapping[str, FeatureSet]) -> list[str]:
        """Why features from elsewhere may not be of the kind that was learned from; of values that can be used."""
        found = []
        for number, one in enumerate(self.trained.sets):
            if one.name not in features:
                continue
            names = features[one.name].names
            values, valid = self._utterances(features, number, names)
            rows = values[valid]
            if self.trained.settings.level == "frame":
                tokens, mask = features[one.name].tokens(names, self.trained.settings.tokens)
                rows = tokens[mask & valid[:, None]]
            if not len(rows):
                continue
            own, clips = self._moments[number], int(valid.sum())
            if why := split_check.foreign(rows, *own, clips):
                found.append(f"features {one.name}: {why}")
            found += [
                f"features {one.name}: the new clips are much more like {other.name} of training than like {one.name}: were "
                "the two folders swapped?"
                for other, moments in zip(self.trained.sets, self._moments, strict=True)
                if other is not one and split_check.swapped(rows, own, moments, clips)
            ]
        return found

    def _utterances(
        self, features: Mapping[str, FeatureSet], number: int, names: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        one = self.trained.sets[number]
        if one.name not in features:
            return np.zeros((len(names), one.width), np.float32), np.zeros(len(names), bool)
        found = features[one.name]
        if found.width != one.width:
            raise UserError(
                f"features {one.name}: they have {found.width} numbers a clip, and the model learned from {one.width}"
            )
        values, valid = found.utterances(names)
        shift, scale = self._moments[number]
        with np.errstate(invalid="ignore", over="ignore"):
            farthest = np.abs((values - shift) / scale).max(1, initial=0)
        usable = valid & (farthest <= join.OUTLIER)  # also False for NaN
        return np.where(usable[:, None], values, 0).astype(np.float32), usable

    def _inputs(
        self,
        features: Mapping[str, FeatureSet],
        values: list[np.ndarray],
        valid: list[np.ndarray],
        names: list[str],
    ) -> FeatureBatch:
        """The standardised tokens of the clips."""
        import torch

        from mer_dist.fusion.batch import FeatureBatch, apply_moments

        batch = FeatureBatch([one.modality for one in self.trained.sets], [], [])
        for number, one in enumerate(self.trained.sets):
            tokens, mask = values[number][:, None].copy(), valid[number][:, None]
            if self.trained.settings.level == "frame":
                shape = (len(names), self.trained.settings.tokens)
                tokens, mask = np.zeros((*shape, one.width), np.float32), np.zeros(shape, bool)
                if one.name in features:
                    tokens, mask = features[one.name].tokens(names, shape[1])
                    mask = mask & valid[number][:, None]
            x, there = torch.from_numpy(tokens), torch.from_numpy(np.ascontiguousarray(mask))
            apply_moments(x, there, *map(torch.from_numpy, self._moments[number]))
            batch.values.append(x)
            batch.mask.append(there)
        return batch.to(self.device)

    def _of_folds(self, part: str, inputs: FeatureBatch, present: np.ndarray) -> np.ndarray:
        """(K, n, C) of a round, the mean over the seeds of each fold."""
        import torch

        from mer_dist.fusion import ensemble

        shares, rows = next(iter(self._probes.values())).shares, np.flatnonzero(present)
        probability = np.tile(shares[:, None], (1, len(present), 1))
        if len(rows):
            on_device = torch.from_numpy(rows).to(self.device)
            found = ensemble.predict(self._model(part), inputs, on_device).double().exp().numpy()
            probability[:, rows] = found.reshape(len(shares), -1, *found.shape[1:]).mean(1)
        return probability

    def _probe(self, part: str, values: list[np.ndarray], valid: list[np.ndarray]) -> np.ndarray:
        """(n, C) of a linear probe."""
        own = list(range(len(values)))
        if part != f"{_PROBES}/{ALL_SETS}":
            own = [self.trained.names.index(part.removeprefix(f"{_PROBES}/"))]
        return self._probes[part]([values[number] for number in own], [valid[number] for number in own])

    def _stacked(self, alone: dict[str, np.ndarray]) -> np.ndarray:
        members = np.stack([*alone.values()])
        arrays = self.trained.arrays.get(f"{_PROBES}/{STACKED}")
        return StackedModel.of(arrays)(members) if arrays else members.mean(0)

    def _model(self, part: str) -> FusionModel:
        if part not in self._models:
            import torch

            from mer_dist.fusion.batch import FeatureBatch
            from mer_dist.fusion.members import build

            tokens = self.trained.settings.tokens if self.trained.settings.level == "frame" else 1
            some = FeatureBatch([one.modality for one in self.trained.sets], [], [])
            for one in self.trained.sets:
                some.values.append(torch.zeros(1, tokens, one.width))
                some.mask.append(torch.ones(1, tokens, dtype=torch.bool))
            seeds = [0] * self.trained.ensemble
            model = build(some.to(self.device), len(self.trained.labels), self.trained.settings, seeds)
            with reading(Path(part), "run fuse again, or make the bundle again"):
                state = {name: torch.from_numpy(array) for name, array in self.trained.arrays[part].items()}
                model.load_state_dict(state)
            self._models[part] = model.eval()
        return self._models[part]

    def _gates(self, inputs: FeatureBatch, present: np.ndarray) -> dict[str, np.ndarray]:
        """The weights of the last round's gating, where it has one."""
        import torch

        from mer_dist.fusion import ensemble
        from mer_dist.fusion.models import AGT

        rounds = [part for part in self.trained.members if part.startswith(_ROUNDS)]
        model = self._model(rounds[-1]) if rounds else None
        if not isinstance(model, AGT) or model.fuse.kind != "gating":
            return {}
        seen: list[torch.Tensor] = []
        hook = model.fuse.register_forward_hook(
            lambda module, given, _: seen.append(module.gates(*given).mean(0).cpu())
        )
        rows = np.flatnonzero(present)
        try:
            if len(rows):
                ensemble.predict(model, inputs, torch.from_numpy(rows).to(self.device))
        finally:
            hook.remove()
        weights = np.full((len(present), len(model.channels)), np.nan)
        if seen:
            weights[rows] = torch.cat(seen).double().numpy()
        return {name: weights[:, number] for number, name in enumerate(model.channels)}
