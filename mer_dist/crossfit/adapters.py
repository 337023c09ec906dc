"""The adapters of a fine-tuned extractor: which clips each may see, and its folder.

``finetune`` trains them and ``extract`` uses them; both get the fingerprint of an adapter's inputs
here, so an adapter that was trained on other clips, labels or folds is never used by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mer_dist.config.config import Config, as_dict
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId, adapter_variant
from mer_dist.core.records import LABELED
from mer_dist.crossfit import folds
from mer_dist.models.family import family_of
from mer_dist.shards import shard_index
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


def check_whole(folder: Path) -> None:
    """Read every file of a finished adapter, and compare it with its marker.

    Raises:
        UserError: a file is damaged.
    """
    expected = (files.read_marker(folder) or {}).get("content", {})
    if faults := files.damaged(folder, expected):
        raise UserError(f"{folder}: {faults[0]}; delete this folder and run finetune")


@dataclass(kw_only=True)
class Adapter:
    """One adapter of an extractor (for full fine-tuning: its fine-tuned weights)."""

    name: str
    extractor: ExtractorConfig
    #: The fold it never sees; None: it sees all folds.
    held_out_fold: int | None
    #: Labelled clips it may see, all with the modality; none of the held-out fold.
    rows: list[shard_index.Row]
    #: Clip -> its group by ``folds.group`` and twins; empty where every clip is its own.
    group_of: dict[str, str]
    folder: Path
    fingerprint: str

    @property
    def variant(self) -> str:
        """``fold-K`` or ``all``."""
        return adapter_variant(self.held_out_fold)

    @property
    def features(self) -> FeatureSetId:
        """The feature set that is extracted with it."""
        return FeatureSetId.of_adapter(self.name, self.held_out_fold)

    @property
    def labels(self) -> dict[str, str]:
        """name -> label of the clips that it may see, in order."""
        return shard_index.labels(self.rows)


def held_out_folds(config: Config, extractor: str) -> list[int | None]:
    """The adapters of a fine-tuned extractor, each by the fold that it never sees."""
    if config.extractors[extractor].finetuning.cross_fit:
        return [*range(config.folds.count), None]
    return [None]


def crossed(config: Config) -> bool:
    """Whether any adapter leaves out a fold, so that folds are needed."""
    return any(item.finetune and item.finetune.cross_fit for item in config.extractors.values())


def planned(config: Config, fold_of: dict[str, int] | None = None) -> list[Adapter]:
    """Every adapter in the configuration, trained or not.

    Args:
        fold_of: labelled clip -> fold, for a reader that must not write them; None: those of the run.

    Raises:
        UserError: a clip's label is not in the configuration, a label has too few clips for the
            folds, or no labelled clip has the modality of an extractor.
    """
    tuned = {name: item for name, item in config.extractors.items() if item.finetune}
    if not tuned:
        return []
    run = Run(config.run.folder)
    index = shard_index.read(run.shards)
    labeled = list(index.where(split == LABELED for split in index.column("split")))
    label_of = shard_index.labels(labeled)
    folds.check_labels(config, label_of)
    if fold_of is None:
        fold_of = folds.of_run(config, label_of) if crossed(config) else {}
    group_of = folds.groups(sorted(label_of), config.folds.group, folds.twins_of(run))
    return [
        _planned(config, run, name, extractor, held_out_fold, labeled, fold_of, group_of)
        for name, extractor in tuned.items()
        for held_out_fold in held_out_folds(config, name)
    ]


def _planned(config, run, name, extractor, held_out_fold, labeled, fold_of, group_of) -> Adapter:
    family = family_of(extractor.family, extractor.path)
    rows = [
        row
        for row in (row.of_view(extractor.view) for row in labeled)
        if family.modality not in row.missing
        and family.enough(row)
        and (held_out_fold is None or fold_of[row.name] != held_out_fold)
    ]
    if not rows:
        raise UserError(f"extractors.{name}: no labelled clip has {family.modality} to fine-tune on")
    fingerprint = files.fingerprint_of(
        [
            _weights_settings(extractor),
            files.folder_fingerprint(Path(extractor.path)),
            config.run.seed,
            config.corpus.labels,
            held_out_fold,
            [[row.name, row.label, row.checksum] for row in rows],
            # They decide which clips choose the epoch.
            *([[group_of[row.name] for row in rows]] if group_of else []),
        ]
    )
    return Adapter(
        name=name,
        extractor=extractor,
        held_out_fold=held_out_fold,
        rows=rows,
        group_of=group_of,
        folder=run.adapter(name, adapter_variant(held_out_fold)),
        fingerprint=fingerprint,
    )


def _weights_settings(extractor: ExtractorConfig) -> list:
    """The settings that an adapter depends on: not the model's path, how it is fed, nor which
    other adapters there are."""
    training = as_dict(extractor.finetune)
    for key in ("batch_budget", "micro_batch", "gradient_checkpointing", "deterministic", "cross_fit"):
        del training[key]
    return [
        extractor.family,
        extractor.quantize,
        extractor.frames,
        extractor.window,
        extractor.max_tokens,
        training,
        *family_of(extractor.family, extractor.path).code,
        *([extractor.layers, extractor.pooling] if extractor.layers or extractor.pooling else []),
        *([extractor.prompt] if extractor.prompt else []),
        *([extractor.view] if extractor.view != "face" else []),
    ]
