"""The input of fusion: the clips with label and fold, and their features, joined by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mer_dist.config.config import Config
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import TUNED, FeatureSetId
from mer_dist.core.log import logger
from mer_dist.core.records import UNLABELED, Problem
from mer_dist.corpus import cells, mertools, table
from mer_dist.corpus.encoding import UTF8
from mer_dist.crossfit import folds
from mer_dist.features import split_check, store
from mer_dist.features.moments import moments
from mer_dist.features.store import FeatureSet
from mer_dist.shards import shard_index
from mer_dist.storage import files
from mer_dist.storage.run_folder import FeatureFolder, Run

STAGE = "fuse"
#: Name of a part of :class:`Clips`, see ``Clips.fingerprints``.
LABELS = "labels"
#: An embedding whose largest value is this many times that of the median one counts as broken.
OUTLIER = 1e4


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Every clip of the run: the labelled ones first, each part ordered by name."""

    labels: list[str]
    names: list[str]
    #: (N,) int: index into ``labels``; -1 for an unlabelled clip.
    truth: np.ndarray
    #: (N,) int: -1 for an unlabelled clip.
    fold: np.ndarray
    folds: int

    @property
    def labeled(self) -> np.ndarray:
        return self.truth >= 0

    @property
    def fold_of(self) -> dict[str, int]:
        pairs = zip(self.names, self.fold.tolist(), strict=True)
        return {name: fold for name, fold in pairs if fold >= 0}

    def outside(self, *folds_left_out: int) -> np.ndarray:
        """Indices of the labelled clips that belong to none of these folds."""
        return np.flatnonzero(self.labeled & ~np.isin(self.fold, folds_left_out))

    @cached_property
    def fingerprint(self) -> str:
        return files.fingerprint_of([self.labels, self.names, self.truth.tolist(), self.fold.tolist()])

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Each of its parts in words -> its own fingerprint."""
        labeled = [[name, row] for name, row in zip(self.names, self.truth.tolist(), strict=True) if row >= 0]
        asked = [name for name, row in zip(self.names, self.truth.tolist(), strict=True) if row < 0]
        return {
            LABELS: files.fingerprint_of([self.labels, labeled]),
            "clips to be answered": files.fingerprint_of(asked),
            "folds": files.fingerprint_of(self.fold_of),
        }


def read_clips(config: Config, run: Run) -> tuple[Clips, list[Problem]]:
    """The clips of the shards, or of the label file ``fuse.labels``, and the problems of that file.

    Raises:
        UserError: no clip has a label, or a label has too few clips for the folds.
    """
    label_of, problems = labels_of(config, run, tell=True)
    labeled = {name: label for name, label in label_of.items() if label is not None}
    if not labeled:
        source = config.fuse.labels or str(run.shards)
        first = f"; the first of its rows that cannot be used: {problems[0].reason}" if problems else ""
        raise UserError(f"{source}: no clip has one of the labels {', '.join(config.corpus.labels)}{first}")
    if len(kinds := {*labeled.values()}) == 1:
        raise UserError(
            f"{config.fuse.labels or run.shards}: every labelled clip is {kinds.pop()}, and "
            "nothing can be learned from one label; add clips of others of corpus.labels: "
            f"{', '.join(config.corpus.labels)}"
        )
    fold_of = folds.of_run(config, labeled)
    without = sorted(set(config.corpus.labels) - set(labeled.values()))
    if without:
        logger.warning("no labelled clip is %s, so this is never predicted", " or ".join(without))
    for line in folds.unseen(labeled, fold_of, config.folds.group, folds.twins_of(run)):
        logger.warning("folds: %s", line)
    if not config.fuse.labels and shard_index.unstored(run.shards) is None:
        logger.warning(
            "%s: an earlier version made these shards and did not list the unlabelled clips that "
            "could not be stored, so they get no answer; run shard, which keeps the "
            "shards and lists them",
            run.shards,
        )
    return _clips(config, label_of, fold_of), problems


def present_clips(config: Config, run: Run) -> Clips:
    """The same without log lines or writes: where the saved folds do not match these labels, the clips
    have none.

    Raises:
        UserError: the labels cannot be read.
    """
    label_of, _ = labels_of(config, run)
    labeled = {name: label for name, label in label_of.items() if label is not None}
    return _clips(config, label_of, folds.saved_of_run(config, run, labeled) or {})


def _clips(config: Config, label_of: dict[str, str | None], fold_of: dict[str, int]) -> Clips:
    labeled = sorted(name for name, label in label_of.items() if label is not None)
    names = [*labeled, *sorted(label_of.keys() - {*labeled})]
    index: dict[str | None, int] = {label: row for row, label in enumerate(config.corpus.labels)}
    return Clips(
        labels=list(config.corpus.labels),
        names=names,
        truth=np.array([index.get(label_of[name], -1) for name in names]),
        fold=np.array([fold_of.get(name, -1) for name in names]),
        folds=config.folds.count,
    )


def labels_of(config: Config, run: Run, tell: bool = False) -> tuple[dict[str, str | None], list[Problem]]:
    """name -> label, or None if unlabelled, of every clip that is fused.

    They include unlabelled clips that could not be stored: these also need an answer.

    Args:
        tell: log how a label file was understood. Commands that ask for the labels several times do not.
    """
    if config.fuse.labels:
        return read_labels(Path(config.fuse.labels), config.corpus.labels, config.corpus.encoding, tell)
    index = shard_index.read(run.shards)
    found = dict(zip(index.names, index.column("label"), strict=True))
    unstored = shard_index.unstored(run.shards) or {}
    return found | {name: None for name, split in unstored.items() if split == UNLABELED}, []


def asked(config: Config, run: Run) -> list[str] | None:
    """The unlabelled clips that the corpus wants answers for; None: all of them, as with a label file.

    Raises:
        UserError: their list is not readable.
    """
    return None if config.fuse.labels else shard_index.asked(run.shards)


def read_labels(
    path: Path, labels: list[str], encoding: str = UTF8, tell: bool = True
) -> tuple[dict[str, str | None], list[Problem]]:
    """name -> label (None: unlabelled) of a label file, and the unusable rows.

    It is a CSV ``name,label[,split]``, where ``discrete`` may replace ``label``, or the baseline's
    ``.npz``. Other columns, as one of train and test under another name, are told and not used. A clip is unlabelled if its label is empty or its split is ``unlabeled``; the label of the
    latter is ignored. A label outside ``labels`` excludes its clip, not the run.

    Raises:
        UserError: no such file or column, or a name is unsafe or occurs twice.
    """
    if mertools.is_label_file(path):
        rows = mertools.label_table(path)
    else:
        rows = table.read(path, ("name",), encoding)
    column = cells.label_column(path, rows.columns)
    found: dict[str, str | None] = {}
    bad, known = dict(rows.bad), cells.Labels(labels, rows.file)
    for name, row in rows.rows.items():
        cell, label = known.cell(row[column]), None
        split, why = cells.split(row.get("split", ""), cell)
        if not why and split != UNLABELED:
            label, why = known.read(row[column])
        if why:
            bad[name] = f"{rows.location(name)}: {why}"
        else:
            found[name] = label
    if tell:
        known.tell()
        cells.tell_unused(path, rows.columns, ("name", column, "split"))
    return found, [Problem(stage=STAGE, name=name, lost="clip", reason=why) for name, why in bad.items()]


def fused_sets(config: Config) -> list[str]:
    """The feature sets that AGT fuses: ``fuse.sets``, or each extractor's tuned, else frozen one.

    Raises:
        UserError: there is none, or one comes from an extractor without adapters per fold.
    """
    best = [
        str(FeatureSetId(name, TUNED if item.finetune else "")) for name, item in config.extractors.items()
    ]
    if not (config.fuse.sets or best):
        raise UserError("fuse.sets names no feature set, and there are no extractors either")
    chosen = list(config.fuse.sets) or best
    for name in chosen:
        _check_crossed(config, FeatureSetId.parse(name))
    return chosen


def _check_crossed(config: Config, wanted: FeatureSetId) -> None:
    extractor = config.extractors.get(wanted.name)
    if wanted.variant and extractor and extractor.finetune and not extractor.finetune.cross_fit:
        raise UserError(
            f"fuse: set {wanted}: extractors.{wanted.name}.finetune.cross_fit is false, so labelled clips "
            "have no features free of their own labels to fuse; run shard, finetune and extract by "
            "themselves, or set it to true"
        )


def all_sets(config: Config, run: Run) -> list[str]:
    """The fused sets, and the frozen features of fine-tuned extractors where they exist."""
    frozen = [name for name in config.extractors if FeatureFolder(run.features(name)).description.exists()]
    return list(dict.fromkeys([*fused_sets(config), *frozen]))


def set_fingerprint(run: Run, set_name: str, count: int) -> str:
    """Fingerprint of a set, from the fingerprints of all its shards.

    Raises:
        UserError: a part of the set is missing or incomplete.
    """
    facts = []
    for stored in FeatureSetId.parse(set_name).stored(count):
        folder = run.features(stored)
        store.description(folder)
        paths = FeatureFolder(folder).shards()
        marker = files.read_marker(folder)
        if marker is None:
            raise UserError(f"{folder}: these features are incomplete; run extract or import again")
        if gone := {*marker.get("shards", ())} - {int(path.stem) for path in paths}:
            raise UserError(
                f"{FeatureFolder(folder).shard(min(gone))}: this shard's features are missing; run "
                "extract or import again"
            )
        shards = [[path.name, store.stored_fingerprint(path)] for path in paths]
        facts.append([str(stored), store.description(folder), shards])
    return files.fingerprint_of(facts)


def read_set(run: Run, set_name: str, clips: Clips, frames: bool = False) -> tuple[FeatureSet, list[Problem]]:
    """A set for these clips, adapters joined, and the clips whose embeddings are not finite.

    Raises:
        UserError: the set does not exist, lacks the frame level, is from the wrong adapters, or has none of the clips.
    """
    wanted = FeatureSetId.parse(set_name)
    if wanted.is_tuned:
        found = tuned(run, wanted.name, clips.fold_of, frames)
    else:
        found = store.load(run.features(set_name), frames, clips.names)
    if frames and not found.has_frames:
        raise UserError(
            f"features {set_name} have no frame level; extract with extract.frame_level=true, or set "
            "fuse.level=utterance"
        )
    known = set(clips.names)
    if known.isdisjoint(found.names):
        raise UserError(
            f"features {set_name}: none of its {len(found.names)} clips is among the {len(known)} "
            "clips of this run; are the names the same? For example it has "
            f"{min(found.names, default='none')!r}, and this run {min(known)!r}"
        )
    if unknown := sorted(set(found.names) - known):
        logger.warning(
            "features %s: %d of its clips are not among the clips of this run and are left "
            "out, for example %s; with fuse.labels, these are its usable rows, with an empty label "
            "where a clip needs an answer",
            set_name,
            len(unknown),
            ", ".join(unknown[:3]),
        )
    broken = {found.names[row] for row in np.flatnonzero(~_usable(found))} & known
    if broken and broken >= known.intersection(found.names):
        raise UserError(
            f"features {set_name}: none of the {len(broken)} clips has finite embeddings; "
            "delete the folder and run extract again, which reports what to set, or import others"
        )
    absent = len(known) - len(known.intersection(found.names)) + len(broken)
    if absent:
        logger.info("features %s: %d of %d clips have none", set_name, absent, len(known))
        having = set(found.names) - broken
        usable = np.array([name in having for name in clips.names])
        for kind, own in (("labelled", clips.labeled), ("unlabelled", ~clips.labeled)):
            if own.any() and not usable[own].any():
                logger.warning("features %s: none of the %d %s clips has any", set_name, own.sum(), kind)
    found = found.only(known - broken) if broken else found
    _tell_doubts(set_name, found, clips)
    why = f"features {set_name}: values that are NaN, infinite, or beyond {OUTLIER:g} times the usual"
    return found, [
        Problem(stage=STAGE, name=name, lost=str(found.modality), reason=why, part=set_name)
        for name in broken
    ]


def _tell_doubts(set_name: str, found: FeatureSet, clips: Clips) -> None:
    labeled = dict(zip(clips.names, clips.labeled.tolist(), strict=True))
    own = [labeled.get(name) for name in found.names]
    parts = (np.array([value is part for value in own]) for part in (True, False))
    for doubt in split_check.doubts(found.utterance, *parts):
        logger.warning("features %s: %s", set_name, doubt)


def _usable(found: FeatureSet) -> np.ndarray:
    """(N,) bool: clips with finite values only, of a magnitude that others have, too.

    One clip with 1e12 would make the standard deviation so large that all others become equal.
    """
    usable = _in_range(found.utterance)
    if found.has_frames:
        frame, offsets = found.ragged()
        before = np.concatenate([[0], np.cumsum(~_in_range(frame))])
        usable &= before[offsets[1:]] == before[offsets[:-1]]
    return usable


def _in_range(values: np.ndarray) -> np.ndarray:
    """(N,) bool, by the largest absolute value of each row; NaN and infinity are out of range."""
    largest = np.maximum(values.max(1, initial=0), -values.min(1, initial=0)).astype(np.float64)
    finite = np.isfinite(largest)
    usual = np.median(largest[finite]) if finite.any() else 0.0
    return finite & ((largest <= OUTLIER * usual) | (usual == 0))


def tuned(run: Run, extractor: str, fold_of: dict[str, int], frames: bool = False) -> FeatureSet:
    """One set from the adapters of an extractor, no clip from an adapter that saw its label.

    A labelled clip of fold k comes from adapter ``fold-k``, which never trained on fold k, an
    unlabelled one from adapter ``all``. The spaces of the adapters are joined without labels: all
    adapters start from the same weights and seed, so their axes correspond, and training shifts
    and stretches them. Each adapter's embeddings are therefore standardised, per dimension, by
    mean and standard deviation over the *anchors*, the unlabelled clips that every adapter has.
    The anchors are the same clips everywhere, so the remaining differences are between clips, not
    between adapters. Without anchors each adapter uses its own moments.

    Raises:
        UserError: an adapter is missing, or a labelled clip's row would come from an adapter that
            may have trained on it.
    """
    stored = FeatureSetId(extractor, TUNED).stored(max(fold_of.values()) + 1)
    parts = {one: _of_adapter(run, one, fold_of, frames) for one in stored}
    anchors = set.intersection(*(set(part.names) for part in parts.values())) - fold_of.keys()
    joined, alignment = [], None
    for one, part in parts.items():
        own = part.only(anchors) if len(anchors) > 1 else part
        if own.names:
            mean, std = (of.astype(np.float32) for of in moments(own.utterance.astype(np.float64)))
            part = part.mapped(mean, std)
            alignment = (mean, std) if one.held_out_fold is None else alignment
        joined.append(part if one.held_out_fold is None else part.only(set(fold_of)))
    return replace(store.join(joined), alignment=alignment)


def _of_adapter(run: Run, stored: FeatureSetId, fold_of: dict[str, int], frames: bool) -> FeatureSet:
    """The features of one adapter, after a check that it never trained on any of their labelled clips."""
    folder, variant, held_out_fold = run.features(stored), stored.variant, stored.held_out_fold
    description = store.description(folder)
    if description.get("variant") != variant or description.get("held_out_fold") != held_out_fold:
        raise UserError(
            f"{folder}: by its {FeatureFolder(folder).description.name} this is {description.get('variant')!r}, trained "
            f"without fold {description.get('held_out_fold')}; {variant!r} is needed; extract again"
        )
    found = store.load(folder, frames)
    leaks = sorted(name for name in found.names if name in fold_of and fold_of[name] != held_out_fold)
    if leaks:
        raise UserError(
            f"{folder}: {len(leaks)} labelled clips are not of the fold that this adapter never "
            f"trained on, for example {', '.join(leaks[:3])}; their features leak their labels. "
            "Delete the folder and run finetune and extract again"
        )
    return found
