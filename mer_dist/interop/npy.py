"""Imports and exports features in the challenge baseline's layout, one .npy file a clip."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import numpy as np

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Modality, Problem
from mer_dist.corpus import mertools
from mer_dist.features import store as features
from mer_dist.features.codes import Codes
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import recipes
from mer_dist.interop import duplicates
from mer_dist.interop.npy_files import Clips, Listing, Survey, survey
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run

STAGE = "import"
CLIPS_PER_SHARD = 5000


def import_sets(run: Run, source: list[str], modalities: list[str]) -> bool:
    """Import ``SET FOLDER`` as one feature set, or ``FOLDER`` as several, ``FOLDER/<set>``.

    Args:
        source: the name of the set, for one set, and the folder.
        modalities: the modality; for several sets ``SET=MODALITY`` for each.

    Returns:
        Whether most clips of each set can be used.

    Raises:
        UserError: a set's name, folder or modality is not valid, or none of its files can be used.
    """
    *name, folder = source
    if len(name) > 1:
        raise UserError(f"import-features takes SET FOLDER, or FOLDER alone, and not {' '.join(source)}")
    if name:
        if len(modalities) > 1:
            raise UserError(f"one set has one modality, and not {', '.join(modalities)}")
        chosen = {name[0]: modalities[0]}
    else:
        chosen = _chosen(Path(folder), modalities)
    for set_name, modality in chosen.items():
        _check(run, set_name, modality, Path(folder, *([] if name else [set_name])))
    good = True
    for set_name, modality in chosen.items():
        lost, count = import_npy(run, set_name, modality, Path(folder, *([] if name else [set_name])))
        if 2 * lost > count:
            good = False
            logger.warning("%s: most of its clips, %d of %d, cannot be used", set_name, lost, count)
    duplicates.note(run)
    for line in recipes.stale_lines(run):
        logger.warning("%s", line)
    return good


def _chosen(folder: Path, modalities: list[str]) -> dict[str, str]:
    """Set -> modality of the selected sets below ``folder``."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    there = Listing.of(folder).folders
    pairs = [text.partition("=") for text in modalities]
    chosen = {set_name: modality for set_name, equals, modality in pairs if equals}
    if not there or len(chosen) < len(modalities) or not chosen.keys() <= {*there}:
        has = f"sets: {', '.join(there[:20])}" if there else "no folder in it"
        raise UserError(
            f"{folder}: without a set's name before it this is a folder of sets, each taken by "
            f"--modality SET=MODALITY, as --modality {(there or ['hubert-UTT'])[0]}=audio; it has {has}"
        )
    if left := [name for name in there if name not in chosen]:
        logger.info("%s: not taken, as --modality does not name them: %s", folder, ", ".join(left))
    return chosen


def _check(run: Run, set_name: str, modality: str, folder: Path) -> None:
    if not NAME.fullmatch(set_name):
        raise UserError(f"feature set {set_name!r}: a name is letters, digits, '.', '_' and '-'")
    if modality not in list(Modality):
        raise UserError(f"modality {modality!r} must be one of: {', '.join(Modality)}")
    made_here = FeatureFolder(run.features(set_name)).description
    if made_here.exists() and not features.description(made_here.parent).get("imported"):
        raise UserError(f"feature set {set_name} was extracted in this run; import under another name")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")


def import_npy(run: Run, set_name: str, modality: str, folder: Path) -> tuple[int, int]:
    """Import ``folder/<name>.npy``, or ``folder/<name>/<frame>.npy``, as the feature set ``set_name``.

    The clip of an unusable file goes to quarantine and counts as missing. Arrays ``(T, D)`` are kept at
    frame level, and their mean over time at utterance level. Rows of zeros that are padding or stand for
    frames without a vector are dropped.

    Returns:
        The number of unusable clips, and of all clips.

    Raises:
        UserError: the set's name or modality is not valid, two files belong to one clip, no file can be
            used, or the arrays have no common width.
    """
    folder = Path(folder)
    _check(run, set_name, modality, folder)
    listing = Listing.of(folder)
    clips = Clips.of(listing)
    found = survey(clips)
    others = listing.others_by_suffix()
    if found.width is None:
        why = "; the first: {}: {}".format(*next(iter(found.bad.items()))) if found.bad else ""
        there = f"; it has {others}" if others else ""
        raise UserError(f"{folder}: no .npy file there can be used{why}{there}")
    if others:
        logger.warning("%s: beside the .npy files, not imported: %s", folder, others)
    before = _names(run.features(set_name))
    with files.atomic_folder(run.features(set_name)) as store:
        names, codes = list(clips.entries), Codes()
        starts = range(0, len(names), CLIPS_PER_SHARD)
        for number, start in enumerate(progress(starts, len(starts), f"import {set_name}", "shards")):
            shard = _shard(names[start : start + CLIPS_PER_SHARD], modality, found, found.width)
            codes.add(shard)
            features.write_shard(FeatureFolder(store).shard(number), shard, _content(shard))
        features.describe(
            store, modality=modality, width=found.width, imported=True, variant="imported", held_out_fold=None
        )
        fingerprint = files.fingerprint_of([files.size_and_mtime(path) for path in clips.paths()])
        files.write_marker(store, fingerprint, clips=len(names), shards=[*range(len(starts))])
    logger.info("imported %s: %d clips of width %d", set_name, len(names) - len(found.bad), found.width)
    for line in codes.lines():
        logger.warning("features %s: %s", set_name, line)
    if gone := sorted(before - clips.entries.keys()):
        logger.warning(
            "%s: %d of the %d clips that it had before have no file in %s and are no longer in it, for example %s",
            set_name,
            len(gone),
            len(before),
            folder,
            ", ".join(gone[:3]),
        )
    _quarantine(run, set_name, modality, found)
    return len(found.bad), len(names)


def _names(folder: Path) -> set[str]:
    """The clips of a set that have features; empty if the set is incomplete."""
    try:
        paths = FeatureFolder(folder).shards()
        return {name for path in paths for name in features.StoredShard.open(path, frames=False).names}
    except UserError:
        return set()  # It is about to be replaced.


def _shard(names: list[str], modality: str, found: Survey, width: int) -> FeatureSet:
    arrays = {name: found.read(name) for name in names if name not in found.bad}
    ragged = [array for array in arrays.values() if array.ndim == 2]
    frame = offsets = None
    # All clips of a set have the same level: a vector among sequences becomes a sequence of one.
    if ragged:
        sequences = [np.atleast_2d(array) for array in arrays.values()]
        frame = np.concatenate(sequences)
        offsets = np.cumsum([0, *map(len, sequences)])
    embeddings = [array.mean(0, np.float32) if array.ndim == 2 else array for array in arrays.values()]
    return FeatureSet(
        modality=modality,
        names=list(arrays),
        frame=frame,
        offsets=offsets,
        utterance=np.stack(embeddings) if embeddings else np.zeros((0, width), np.float32),
        missing={name: found.bad[name] for name in names if name in found.bad},
    )


def _content(shard: FeatureSet) -> str:
    """Fingerprint of the values, so that importing the same files again changes nothing downstream."""
    digest = hashlib.sha256("\0".join(shard.names).encode())
    for array in (shard.utterance, shard.frame):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _quarantine(run: Run, set_name: str, modality: str, found: Survey) -> None:
    """Record and log this set's problems; those of other imported sets stay."""
    others = [problem for problem in quarantine.read(run.quarantine, STAGE) if problem.part != set_name]
    own = [
        Problem(stage=STAGE, name=name, lost=lost, reason=f"features {set_name}: {why}", part=set_name)
        for lost, why_of in ((modality, found.bad), (f"part of {modality}", found.partial))
        for name, why in why_of.items()
        if lost == modality or name not in found.bad
    ]
    quarantine.replace(run.quarantine, STAGE, [*others, *own])
    if own:
        logger.warning(
            "%s: %d clips cannot be used and are masked, %d lack some frames; all of them: "
            "mer-dist quarantine %s --stage %s",
            set_name,
            len(found.bad),
            len(own) - len(found.bad),
            shlex.quote(str(run.folder)),
            STAGE,
        )
        quarantine.tell_kinds(own)


def export_npy(run: Run, set_name: str, folder: Path, level: str) -> None:
    """Write a feature set as ``folder/<set>-<level>/<name>.npy``, float as stored.

    Clips without a row are left out: the baseline's zeros would be mistaken for data.

    Args:
        level: ``UTT``, one vector a clip, or ``FRA``, one row a frame or token.

    Raises:
        UserError: no such set or level, the set has no frames, or a clip has an unsafe name.
    """
    if level not in mertools.LEVELS:
        raise UserError(f"level {level!r} must be one of: {', '.join(mertools.LEVELS)}")
    found = features.load(run.features(set_name), frames=level == "FRA")
    if level == "FRA" and found.frame is None:
        raise UserError(f"features {set_name} have no frame level; extract with frame_level: true")
    # The set may come from another source, and a name such as ../../x would lead out of the folder.
    clip_names.check((name, str(run.features(set_name))) for name in found.names)
    with files.atomic_folder(mertools.feature_folder(folder, set_name, level)) as target:
        for row, name in enumerate(progress(found.names, len(found.names), f"export {set_name}")):
            array = found.frames_of(row) if level == "FRA" else found.utterance[row]
            np.save(target / f"{name}.npy", array, allow_pickle=False)
    if found.missing:
        logger.info("export %s: %d clips have no such feature", set_name, len(found.missing))
