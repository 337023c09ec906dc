"""All that a run learned and that a new clip needs: how clips are cut, extractors, fusion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import ExtractConfig, ExtractorConfig, ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId, adapter_variant
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.fusion.trained import TrainedFusion
from mer_dist.models import model_folder
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class TrainedExtractor:
    """What turns clips into the feature set that fusion learned from."""

    set_name: str
    #: Its name in the configuration.
    name: str
    #: Its precision is that of the features that fusion learned from.
    config: ExtractorConfig
    #: Of the adapter that was trained on all labelled clips; None: the published weights.
    adapter: Path | None
    #: What its base model is known by; None: not known, or the whole model is in the bundle.
    base: dict[str, list] | None


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    fusion: TrainedFusion
    #: How clips are cut; ``faces: none`` where they were those of OpenFace, see :meth:`cut`.
    shard: ShardConfig
    #: Whether it learned from faces that OpenFace cut out: those of new clips must be named.
    openface: bool
    #: ``corpus.language``
    language: str
    #: Outside labellers that joined the vote of the run, and of which new clips have none.
    teachers: list[str]
    extract: ExtractConfig
    #: Feature sets without one were imported, and new clips bring their features along.
    extractors: list[TrainedExtractor]
    #: Of what was trained.
    fingerprint: str
    #: Run folder or bundle.
    folder: Path

    @classmethod
    def of_run(
        cls, folder: Path, models: Mapping[str, Path] | None = None, labeled: bool = False
    ) -> TrainedModel:
        """What a run learned.

        Args:
            labeled: with what estimating the class prior of new clips needs.
            models: extractor -> folder of its base model, where that has moved.

        Raises:
            UserError: there is no run that has voted, or a name in ``models`` is none of its extractors.
        """
        run = Run(folder)
        if not run.config.exists():
            raise UserError(
                f"{run.folder}: no run and no bundle there; it has neither {run.config.name} nor bundle.json"
            )
        run.check_version()
        config = _moved(configuration.of_run(run), models or {})
        fusion = TrainedFusion.of_run(config, run, labeled)
        extractors = [
            _extractor(config, run, FeatureSetId.parse(one.name))
            for one in fusion.sets
            if FeatureSetId.parse(one.name).name in config.extractors
        ]
        marks = [(files.read_marker(run.vote.folder) or {})["fingerprint"]]
        marks += [files.required_marker(one.adapter)["fingerprint"] for one in extractors if one.adapter]
        return cls(
            fusion=fusion,
            shard=_without_openface(config.shard),
            openface=config.shard.faces == "openface",
            language=config.corpus.language,
            teachers=list(config.vote.teachers),
            extract=config.extract,
            extractors=extractors,
            fingerprint=files.fingerprint_of(marks),
            folder=run.folder,
        )

    def cut(self, openface: Path | None = None, workers: int | None = None) -> ShardConfig:
        """How new clips are cut.

        Args:
            openface: the folder of their faces by OpenFace.
            workers: processes that decode; None: one for each processor, up to four.

        Raises:
            UserError: the model learned from OpenFace's faces and none are named, or the other way round.
        """
        if workers is not None and workers < 1:
            raise UserError(f"--workers is {workers}; it must be at least 1")
        if openface is not None and not self.openface:
            raise UserError(f"--openface: the model learned from faces of shard.faces: {self.shard.faces}")
        if self.openface and openface is None:
            raise UserError(
                "the model learned from faces that OpenFace cut out; name those of the new clips with --openface FOLDER"
            )
        cut = replace(self.shard, workers=workers or min(len(os.sched_getaffinity(0)), 4))
        return replace(cut, faces="openface", openface=str(openface)) if openface else cut

    @property
    def imported(self) -> list[str]:
        """Feature sets that new clips must bring along."""
        made = {one.set_name for one in self.extractors}
        return [name for name in self.fusion.names if name not in made]

    def check(self) -> None:
        """Inspect the files of the extractors without reading a weight.

        Raises:
            UserError: one is missing, damaged, or belongs to another model.
        """
        from mer_dist.models.classifier import check_files

        for one in self.extractors:
            remedy = f"name the right folder: --models {one.name}=FOLDER"
            if one.base is not None:
                what = f"the base model of the extractor {one.name}"
                model_folder.check_identity(Path(one.config.path), one.config.family, one.base, what, remedy)
            try:
                if one.adapter is not None:
                    adapters.check_whole(one.adapter)
                check_files(one.config, one.adapter)
            except UserError as error:
                raise UserError(
                    f"extractor {one.name}: {error}; if its base model lies elsewhere, {remedy}"
                ) from None


def _without_openface(shard: ShardConfig) -> ShardConfig:
    """Faces of the run's clips are not those of new ones, whatever their names."""
    return replace(shard, faces="none", openface="") if shard.faces == "openface" else shard


def _moved(config: Config, models: Mapping[str, Path]) -> Config:
    """The configuration with these folders of base models.

    Raises:
        UserError: there is no such extractor.
    """
    if unknown := sorted(models.keys() - config.extractors.keys()):
        raise UserError(
            f"--models {unknown[0]}=…: the model has no such extractor; it has: {', '.join(config.extractors) or 'none'}"
        )
    own = {
        name: replace(extractor, path=str(models[name])) if name in models else extractor
        for name, extractor in config.extractors.items()
    }
    return replace(config, extractors=own)


def _extractor(config: Config, run: Run, wanted: FeatureSetId) -> TrainedExtractor:
    extractor, adapter = config.extractors[wanted.name], None
    stored = wanted
    if wanted.is_tuned:
        adapter = run.adapter(wanted.name, adapter_variant(None))
        stored = FeatureSetId.of_adapter(wanted.name, None)
        files.required_marker(adapter)
    facts = store.description(run.features(stored))
    return TrainedExtractor(
        set_name=str(wanted),
        name=wanted.name,
        config=replace(extractor, precision=str(facts.get("precision", extractor.precision))),
        adapter=adapter,
        base=facts.get("base") if _needs_base(adapter) else None,
    )


def _needs_base(adapter: Path | None) -> bool:
    """Whether weights of the base model are read beside those of the adapter."""
    return adapter is None or (adapter / "adapter_config.json").exists()
