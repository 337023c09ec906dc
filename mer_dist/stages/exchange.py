"""Features from and to the challenge baseline's layout, one .npy file a clip."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np

from mer_dist import features, files, quarantine
from mer_dist.corpus import mertools, names
from mer_dist.errors import UserError
from mer_dist.features import FeatureSet
from mer_dist.layout import Run
from mer_dist.log import logger, progress
from mer_dist.records import Modality, Problem

STAGE = "import"
CLIPS_PER_SHARD = 5000


def import_npy(run: Run, set_name: str, modality: str, folder: Path) -> int:
    """Take ``folder/<name>.npy`` as the feature set ``set_name``.

    A file that cannot be used costs its clip, which goes to quarantine and counts as missing.
    Arrays ``(T, D)`` are kept at frame level and their mean over time at utterance level.

    Returns:
        How many files cannot be used.

    Raises:
        UserError: the set's name or modality cannot be used, or no file can.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", set_name):
        raise UserError(f"feature set {set_name!r}: a name is letters, digits, '.', '_' and '-'")
    if modality not in list(Modality):
        raise UserError(f"modality {modality!r} must be one of: {', '.join(Modality)}")
    made_here = run.features(set_name) / features.DESCRIPTION
    if made_here.exists() and not features.description(made_here.parent).get("imported"):
        raise UserError(f"feature set {set_name} was extracted in this run; import under another name")
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(Path(folder).glob("*.npy"))
    width, bad = _survey(paths)
    if width is None:
        why = f"; the first: {next(iter(bad.items()))}" if bad else ""
        raise UserError(f"{folder}: no .npy file there can be used{why}")
    with files.atomic_folder(run.features(set_name)) as store:
        starts = range(0, len(paths), CLIPS_PER_SHARD)
        chunks = [paths[start : start + CLIPS_PER_SHARD] for start in starts]
        shown = progress(chunks, len(chunks), f"import {set_name}", "shards")
        for number, chunk in enumerate(shown):
            shard = _shard(chunk, modality, width, bad)
            features.write_shard(store / f"{number:05d}.safetensors", shard, _content(shard))
        features.describe(store, modality=modality, width=width, imported=True, part="imported",
                          trained_without=None)
        made_from = files.fingerprint([files.stamp(path) for path in paths])
        files.mark(store, made_from, clips=len(paths), shards=[*range(len(chunks))])
    _quarantine(run, set_name, modality, bad)
    logger.info("imported %s: %d clips of width %d, %d not usable", set_name, len(paths) - len(bad),
                width, len(bad))
    return len(bad)


def _survey(paths: list[Path]) -> tuple[int | None, dict[str, str]]:
    """The width that most files have, and name -> why of those that cannot be used."""
    widths, bad = {}, {}
    for path in paths:
        unsafe = names.unsafe(path.stem)
        try:
            if unsafe:
                raise ValueError(f"not usable as a clip name: {unsafe}")
            widths[path.stem] = mertools.read_feature(path).shape[-1]
        except ValueError as error:
            bad[path.stem] = str(error)
    if not widths:
        return None, bad
    width = Counter(widths.values()).most_common(1)[0][0]
    bad |= {
        name: f"{own} values a vector, most files have {width}"
        for name, own in widths.items() if own != width
    }
    return width, bad


def _shard(paths: list[Path], modality: str, width: int, bad: dict[str, str]) -> FeatureSet:
    arrays = {path.stem: mertools.read_feature(path) for path in paths if path.stem not in bad}
    ragged = [array for array in arrays.values() if array.ndim == 2]
    frame = offsets = None
    # All of one set have the same level: a vector among sequences is a sequence of one.
    if ragged:
        sequences = [np.atleast_2d(array) for array in arrays.values()]
        frame = np.concatenate(sequences)
        offsets = np.cumsum([0, *map(len, sequences)])
    vectors = [array.mean(0, np.float32) if array.ndim == 2 else array for array in arrays.values()]
    return FeatureSet(
        modality=modality, names=list(arrays), frame=frame, offsets=offsets,
        utterance=np.stack(vectors) if vectors else np.zeros((0, width), np.float32),
        missing={path.stem: bad[path.stem] for path in paths if path.stem in bad},
    )


def _content(shard: FeatureSet) -> str:
    """Fingerprint of the values, so that importing the same files again changes nothing later."""
    digest = hashlib.sha256("\0".join(shard.names).encode())
    for array in (shard.utterance, shard.frame):
        if array is not None:
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def _quarantine(run: Run, set_name: str, modality: str, bad: dict[str, str]) -> None:
    """Note this set's problems beside those of other imported sets."""
    about = f"features {set_name}:"
    others = [
        problem for problem in quarantine.read(run.quarantine)
        if problem.stage == STAGE and not problem.reason.startswith(about)
    ]
    own = [
        Problem(stage=STAGE, name=name, lost=modality, reason=f"{about} {why}")
        for name, why in bad.items()
    ]
    quarantine.replace(run.quarantine, STAGE, [*others, *own])


def export_npy(run: Run, set_name: str, folder: Path, level: str) -> None:
    """Write a feature set as ``folder/<set>-<level>/<name>.npy``, float as stored.

    Clips without a row are left out: the baseline's zeros would pass for data.

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
    # The set may come from elsewhere, and a name such as ../../x would lead out of the folder.
    names.check((name, str(run.features(set_name))) for name in found.names)
    with files.atomic_folder(mertools.feature_folder(folder, set_name, level)) as target:
        for row, name in enumerate(progress(found.names, len(found.names), f"export {set_name}")):
            span = slice(*found.offsets[row : row + 2]) if level == "FRA" else row
            array = found.frame[span] if level == "FRA" else found.utterance[span]
            np.save(target / f"{name}.npy", array, allow_pickle=False)
    if found.missing:
        logger.info("export %s: %d clips have no such feature", set_name, len(found.missing))
