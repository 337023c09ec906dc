"""Predictions for new clips: decoded, through the extractors and through fusion, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import UNLABELED, Clip, Problem
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.trained import UNUSABLE, FusedAnswers, FusionPredictor
from mer_dist.predict.bundle import load
from mer_dist.predict.model import TrainedExtractor, TrainedModel
from mer_dist.shards.encode import Encoded
from mer_dist.shards.reader import MemoryReader

if TYPE_CHECKING:
    import torch

    from mer_dist.models.extractor import Extractor

STAGE = "predict"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted for a clip."""

    name: str
    label: str
    #: Of each label, in the order of the model's.
    probability: dict[str, float]
    #: Modalities that the models had nothing of. With all of them missing, the answer is the most frequent label.
    missing: list[str]
    #: Feature set -> label -> probability by that set alone, empty where the clip lacks it; only if asked for.
    alone: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Modality -> its weight in AGT's gating, None for a clip without any; only if asked for.
    gates: dict[str, float | None] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        return self.probability[self.label]


class Predictor:
    """Predicts clips one by one or many at once; the models are loaded once."""

    def __init__(
        self,
        model: TrainedModel,
        device: str | torch.device | None = None,
        extract: bool = True,
        shard: ShardConfig | None = None,
    ):
        """
        Args:
            device: None: a GPU where there is one.
            extract: False: new clips come as features, and no extractor is loaded.
            shard: how clips are cut; None: ``model.cut()``.

        Raises:
            UserError: a file of a model is missing, damaged, or belongs to another model.
        """
        import torch

        self.model = model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.fusion = FusionPredictor(model.fusion, str(self.device))
        self.extractors: list[tuple[TrainedExtractor, Extractor]] = []
        if extract:
            if model.imported:
                raise UserError(
                    f"{model.folder}: the feature sets {', '.join(model.imported)} were imported, so new clips must "
                    "bring theirs: --features SET=FOLDER"
                )
            self.shard = shard or model.cut()
            model.check()
            self.extractors = [(one, self._loaded(one)) for one in model.extractors]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        models: Mapping[str, str | Path] | None = None,
        device: str | torch.device | None = None,
        extract: bool = True,
        openface: str | Path | None = None,
    ) -> Predictor:
        """From a run folder or a bundle.

        Args:
            models: extractor -> folder of its base model, where that has moved.
            device, extract: as for the class.
            openface: folder of the new clips' faces, of a model that learned from those of OpenFace.

        Raises:
            UserError: there is neither there, or a file is missing, damaged, or of another model or version.
        """
        moved = {name: Path(path) for name, path in (models or {}).items()}
        model = load(Path(folder), moved)
        shard = model.cut(None if openface is None else Path(openface)) if extract else None
        return cls(model, device, extract, shard)

    @property
    def labels(self) -> list[str]:
        return self.model.fusion.labels

    def __call__(
        self,
        video: str | Path | None = None,
        *,
        audio: str | Path | None = None,
        transcript: str | None = None,
        name: str = "",
        explain: bool = False,
    ) -> Prediction:
        """Predict one clip; decoded in this process, so a file may end it that a worker process would survive.

        Args:
            video: a media file; of a file without pictures the sound is taken.
            audio: its sound, where that is another file.

        Raises:
            UserError: none of the three is given, or there is no such file.
        """
        from mer_dist.corpus.convert import convert

        parts = [None if path is None else Path(path) for path in (video, audio)]
        for path in filter(None, parts):
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
        if transcript is not None and not isinstance(transcript, str):
            raise UserError(f"a transcript is text, and not a {type(transcript).__name__}")
        if not any(parts) and transcript is None:
            raise UserError("a clip has a video, an audio file or a transcript, and none is given")
        clip = Clip(
            name=name or next((path.stem for path in parts if path), "clip"),
            video=parts[0],
            audio=parts[1],
            transcript=transcript,
            label=None,
            split=UNLABELED,
        )
        encoded = convert(self.shard, clip)
        (made,), refused, _ = self.encoded([encoded], explain)
        for problem in [*encoded.problems, *refused]:
            logger.warning("%s: %s: %s", clip.name, problem.lost, problem.reason)
        for remark in encoded.remarks:
            logger.warning("%s: %s", clip.name, remark)
        return made

    def encoded(
        self, clips: Sequence[Encoded], explain: bool = False, by_fold: bool = False
    ) -> tuple[list[Prediction], list[Problem], FusedAnswers]:
        """Predict decoded clips; also why an extractor refuses one, and the same as arrays.

        Args:
            by_fold: with the predictions of each fold of round 0, to estimate the class prior.
        """
        features, problems = self._features([one for one in clips if one.members])
        names = [one.clip.name for one in clips]
        made, answers = self._answered(features, names, explain, by_fold)
        return made, problems + self.unusable(features, names, answers), answers

    def features(
        self,
        features: Mapping[str, FeatureSet],
        names: Sequence[str],
        explain: bool = False,
        by_fold: bool = False,
    ) -> tuple[list[Prediction], FusedAnswers]:
        """Predict clips from their features: feature set -> embeddings as extracted; also as arrays. Features that seem
        to be those of another program are logged.

        Raises:
            UserError: a set has another width, or lacks the frame level.
        """
        for line in self.fusion.doubts(features):
            logger.warning("%s", line)
        return self._answered(features, names, explain, by_fold)

    def _answered(
        self, features: Mapping[str, FeatureSet], names: Sequence[str], explain: bool, by_fold: bool
    ) -> tuple[list[Prediction], FusedAnswers]:
        answers = self.fusion(features, names, explain, by_fold)
        return [self._prediction(answers, row, name, explain) for row, name in enumerate(names)], answers

    def unusable(
        self, features: Mapping[str, FeatureSet], names: Sequence[str], answers: FusedAnswers
    ) -> list[Problem]:
        """The features that fusion could not use."""
        found = []
        for one in self.model.fusion.sets:
            there = {*features[one.name].names} if one.name in features else set()
            found += [
                Problem(stage=STAGE, name=name, lost=one.modality, reason=UNUSABLE, part=one.name)
                for name, valid in zip(names, answers.valid[one.name], strict=True)
                if name in there and not valid
            ]
        return found

    def _prediction(self, answers: FusedAnswers, row: int, name: str, explain: bool) -> Prediction:
        labels, sets = self.labels, self.model.fusion.sets
        there = {one.modality for one in sets if answers.valid[one.name][row]}
        modalities = dict.fromkeys(one.modality for one in sets)
        alone = {
            set_name: _by_label(labels, probability[row]) if answers.valid[set_name][row] else {}
            for set_name, probability in answers.alone.items()
        }
        gates = {channel: float(weight[row]) for channel, weight in answers.gates.items()}
        return Prediction(
            name=name,
            label=labels[int(answers.probability[row].argmax())],
            probability=_by_label(labels, answers.probability[row]),
            missing=[modality for modality in modalities if modality not in there],
            alone=alone if explain else {},
            gates={channel: w if np.isfinite(w) else None for channel, w in gates.items()},
        )

    def _loaded(self, one: TrainedExtractor) -> Extractor:
        from mer_dist.models.classifier import load_extractor

        return load_extractor(one.config, one.adapter, self.device if self.device.type == "cuda" else None)

    def _features(self, usable: Sequence[Encoded]) -> tuple[dict[str, FeatureSet], list[Problem]]:
        """Feature set -> embeddings of these clips, and why an extractor has none of a clip."""
        from mer_dist.features import store
        from mer_dist.features.finite import keepable
        from mer_dist.models.family import NOT_IN_SHARD
        from mer_dist.models.feeding import clip_embeddings

        reader, found, problems = MemoryReader(usable), {}, []
        for one, extractor in self.extractors:
            embeddings: dict[str, np.ndarray] = {}
            refused: dict[str, str] = {}
            for _, name, result in clip_embeddings(extractor, reader, {0: reader.rows}):
                if isinstance(result, str):
                    refused[name] = result
                else:
                    embeddings[name] = result
            embeddings, more = keepable(extractor, one.set_name, embeddings, self.model.extract)
            refused |= more
            problems += [
                Problem(stage=STAGE, name=name, lost=extractor.modality, reason=reason, part=one.name)
                for name, reason in refused.items()
                if reason != NOT_IN_SHARD
            ]
            settings = self.model.extract
            found[one.set_name] = store.pack(embeddings, extractor.modality, extractor.width, settings)
        return found, problems


def _by_label(labels: list[str], probability: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, probability.tolist(), strict=True))
