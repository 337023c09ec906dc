"""The complete configuration of a run, ``load`` and ``save``.

The sections and their keys are in :mod:`mer_dist.config.sections` and :mod:`mer_dist.config.slurm`.
Reading is strict: see :mod:`mer_dist.config.yaml_reader`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mer_dist.config import moved, plugins, yaml_reader
from mer_dist.config.section import section
from mer_dist.config.sections import (
    CorpusConfig,
    ExtractConfig,
    ExtractorConfig,
    FoldConfig,
    FuseConfig,
    ReportConfig,
    RunConfig,
    SelfTrainConfig,
    ShardConfig,
    VoteConfig,
)
from mer_dist.config.slurm import SlurmConfig
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.records import plain
from mer_dist.storage.files import offered, write_text
from mer_dist.storage.run_folder import Run


@section("")
class Config:
    """The complete configuration; its sections have their own keys."""

    run: RunConfig = field(default_factory=RunConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    folds: FoldConfig = field(default_factory=FoldConfig)
    extractors: dict[str, ExtractorConfig] = field(default_factory=dict)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    self_train: SelfTrainConfig = field(default_factory=SelfTrainConfig)
    vote: VoteConfig = field(default_factory=VoteConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate trackers of fine-tuning: tensorboard, wandb."""
    plugins: list[str] = field(default_factory=list)
    """Your own modules that register encoder families or corpus formats: ``my_encoder`` for the file
    ``my_encoder.py`` beside this one, ``my_package.my_encoder`` from Python's path, or a file's path."""

    def __post_init__(self):
        for name in self.extractors:
            if not NAME.fullmatch(name):
                raise UserError(f"extractors.{name}: a name is letters, digits, '.', '_' and '-'")
        self._check_views()
        for tracker in self.trackers:
            if tracker not in ("tensorboard", "wandb"):
                raise UserError(f"trackers names {tracker!r}; valid: tensorboard, wandb")
        precisions = {item.finetune.precision for item in self.extractors.values() if item.finetune}
        if len(precisions) > 1:
            raise UserError("finetune.precision must be the same for all extractors of one run")
        given, feedback = self._by_label(self.vote.given), self._by_label(self.vote.scorer_feedback)
        self.vote = replace(self.vote, given=given, scorer_feedback=feedback)
        if self.vote.given and set(self.vote.given) != set(self.corpus.labels):
            raise UserError(
                "vote.given needs a share for each of corpus.labels, 0 where there is none: "
                f"{', '.join(self.corpus.labels)}; it has {self.vote.given}"
            )
        if self.vote.scorer_feedback:
            metrics.shares_of_constants(self.vote.scorer_feedback, self.corpus.labels)

    def _check_views(self) -> None:
        if "frame" in self.shard.views and self.shard.faces == "none":
            raise UserError(
                "shard.views names frame beside face, and with shard.faces: none both are the whole frame"
            )
        for name, extractor in self.extractors.items():
            if extractor.view not in self.shard.views:
                raise UserError(
                    f"extractors.{name}.view is {extractor.view}, and shard.views, the pictures that are stored, has no "
                    f"such view; write shard.views: [face, {extractor.view}]"
                )

    def _by_label(self, values: dict[str, float]) -> dict[str, float]:
        """``values`` by the spelling of ``corpus.labels``; unchanged if two keys are the same label."""
        labels = {plain(label): label for label in self.corpus.labels}
        found = {labels.get(plain(name), name): value for name, value in values.items()}
        return found if len(found) == len(values) else values


def _override(text: str) -> dict:
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    key, equals, raw = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise UserError(f"override {text!r}: write it as section.key=value")
    # The shell turns key="" into key=, which is empty text and not null.
    value = yaml_reader.parse(raw, f"override {text!r}") if raw.strip() else ""
    *above, last = key.split(".")
    nested = {last: value}
    for part in reversed(above):
        nested = {part: nested}
    return nested


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, merge ``key=value`` overrides, and return the checked configuration.

    Raises:
        UserError: with the file, the key and the valid ones, for anything unknown, of a wrong type,
            missing, or out of range; or a run folder's saved file that names another run folder.
    """
    config = _read(Path(path), overrides)
    if not any("folder" in _override(item).get("run", {}) for item in overrides):
        moved.check(Path(path), config.run.folder)
    return config


def of_run(run: Run) -> Config:
    """The configuration in a run folder, for a command on that folder, which may have been moved since."""
    config = _read(run.config, ())
    return replace(config, run=replace(config.run, folder=str(run.folder)))


def _read(path: Path, overrides: list[str] | tuple[str, ...]) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", error)
        raise UserError(f"configuration {path}: cannot be read: {why}{offered(path)}") from None
    values = yaml_reader.parse(text, str(path))
    layers = [(str(path), {} if values is None else values)]
    layers += [(f"override {item!r}", _override(item)) for item in overrides]
    for where, values in layers:
        yaml_reader.check_section(values, Config, where, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *(values for _, values in layers))
        # Resolved without types: a typed node would turn an interpolated "0123" into 83.
        untyped = OmegaConf.create(OmegaConf.to_container(merged))
        resolved: Any = OmegaConf.to_container(untyped, resolve=True, throw_on_missing=True)
        yaml_reader.check_section(resolved, Config, str(path), "")
        resolved["plugins"] = plugins.resolved(resolved["plugins"], path.parent)
        plugins.load(resolved["plugins"])
        return _typed(resolved)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        if name := re.search(r"Interpolation key '([A-Za-z_]\w*)' not found", reason):
            reason += f"; for a variable of the shell write ${{oc.env:{name[1]}}}"
        raise UserError(f"{path}: {key}: {reason}") from None
    except UserError as error:
        if str(error).startswith((str(path), "override")):
            raise
        where = " ".join([str(path), *overrides])
        raise UserError(f"{where}: {error}") from None


def _typed(values: dict) -> Config:
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values)))
    except UserError:
        for name, section in values["extractors"].items():
            _check_extractor(name, section)
        raise


def _check_extractor(name: str, values: dict) -> None:
    """Build one extractor's section alone, so that an error can name the extractor."""
    try:
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ExtractorConfig), values))
    except UserError as error:
        raise UserError(f"extractors.{name}.{error}") from None


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration; ``load`` returns an equal object."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def as_dict(section: Any) -> dict:
    """A section as plain values, for fingerprints."""
    return dataclasses.asdict(section)
