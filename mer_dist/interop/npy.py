"""Imports and exports features in the challenge baseline's layout, one .npy file a clip."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Modality, Problem
from mer_dist.corpus import mertools, padding
from mer_dist.features import store as features
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import recipes
from mer_dist.interop import duplicates
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run

STAGE = "import"
CLIPS_PER_SHARD = 5000
#: A hint on arrays with one axis and different lengths.
_STEPS = "sequences of one value, as a pitch, have to be saved as (T, 1)"
#: Names of splits: if all folders have such names, they contain clips and are not clips themselves.
PARTS = {
    "train",
    "training",
    "test",
    "testing",
    "val",
    "valid",
    "validation",
    "dev",
    "eval",
    "labeled",
    "labelled",
    "unlabeled",
    "unlabelled",
}


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
    there = _folders(folder)
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


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


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
    sources = _sources(folder)
    found = _survey(folder, sources)
    _doubt(folder, sources, found)
    if found.width is None:
        why = "; the first: {}: {}".format(*next(iter(found.bad.items()))) if found.bad else ""
        others = _others(folder)
        there = f"; it has {others}" if others else ""
        raise UserError(f"{folder}: no .npy file there can be used{why}{there}")
    if others := _others(folder):
        logger.warning("%s: beside the .npy files, not imported: %s", folder, others)
    before = _names(run.features(set_name))
    with files.atomic_folder(run.features(set_name)) as store:
        starts = range(0, len(sources), CLIPS_PER_SHARD)
        chunks = [[*sources.items()][start : start + CLIPS_PER_SHARD] for start in starts]
        shown = progress(chunks, len(chunks), f"import {set_name}", "shards")
        for number, chunk in enumerate(shown):
            shard = _shard(dict(chunk), modality, found, found.width)
            features.write_shard(FeatureFolder(store).shard(number), shard, _content(shard))
        features.describe(
            store, modality=modality, width=found.width, imported=True, variant="imported", held_out_fold=None
        )
        fingerprint = files.fingerprint_of([files.size_and_mtime(path) for path in sources.values()])
        files.write_marker(store, fingerprint, clips=len(sources), shards=[*range(len(chunks))])
    logger.info("imported %s: %d clips of width %d", set_name, len(sources) - len(found.bad), found.width)
    if gone := sorted(before - sources.keys()):
        logger.warning(
            "%s: %d of the %d clips that it had before have no file in %s and are no longer in it, for example %s",
            set_name,
            len(gone),
            len(before),
            folder,
            ", ".join(gone[:3]),
        )
    _quarantine(run, set_name, modality, found)
    return len(found.bad), len(sources)


def _names(folder: Path) -> set[str]:
    """The clips of a set that have features; empty if the set is incomplete."""
    try:
        paths = FeatureFolder(folder).shards()
        return {name for path in paths for name in features.StoredShard.open(path, frames=False).names}
    except UserError:
        return set()  # It is about to be replaced.


def _sources(folder: Path) -> dict[str, Path]:
    """Clip -> its file, or its folder of frames if there are no files.

    Raises:
        UserError: two files belong to one clip, or the folder holds several sets.
    """
    paths = sorted(path for path in folder.iterdir() if mertools.is_array(path))
    folders = [folder / name for name in _folders(folder) if not mertools.is_array(folder / name)]
    if paths and folders:
        logger.warning(
            "%s: folders beside the .npy files are not read: %s",
            folder,
            ", ".join(path.name for path in folders[:5]),
        )
    if not paths:
        paths = folders
        if sets := [path.name for path in paths if path.name.endswith(("-UTT", "-FRA"))]:
            raise UserError(
                f"{folder}: it holds sets, as {sets[0]}, and not clips; leave the set's "
                f"name out and give --modality {sets[0]}=MODALITY for each"
            )
        if paths and all(path.name.casefold() in PARTS for path in paths):
            raise UserError(
                f"{folder}: {', '.join(path.name for path in paths)} are parts of a corpus and "
                "not clips; put the files of all parts into one folder, and import that"
            )
    found, locations = {}, []
    for path in paths:
        name = clip_names.clean(path.name if path.is_dir() else path.stem)
        if clip_names.unsafe(name):
            name = path.name[: -len(".npy")].encode("utf-8", "backslashreplace").decode()
        else:
            locations.append((name, path.name))
        found[name] = path
    clip_names.check(locations)
    return found


def _others(folder: Path) -> str:
    """The files there that are not arrays, by suffix, with an example each; without hidden files."""
    by_suffix: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name[0] != "." and not mertools.is_array(path):
            by_suffix.setdefault(path.suffix or "without a suffix", []).append(path.name)
    return ", ".join(f"{len(own)} {suffix} (as {own[0]})" for suffix, own in by_suffix.items())


@dataclass(kw_only=True)
class _Survey:
    """The content of the files of a set."""

    #: Width of most files; None if none can be used.
    width: int | None = None
    #: Clips whose array (D, 1) is a vector.
    columns: set[str] = field(default_factory=set)
    #: Clips whose array has more than one row.
    long: set[str] = field(default_factory=set)
    #: name -> why it cannot be used.
    bad: dict[str, str] = field(default_factory=dict)
    #: name -> which frames are left out, and why.
    partial: dict[str, str] = field(default_factory=dict)
    #: Clip -> the rows of its array that are not padding, if it has padding.
    filled: dict[str, slice] = field(default_factory=dict)
    #: Clips whose array has other rows of zeros, for frames without a vector.
    gaps: set[str] = field(default_factory=set)

    def read(self, name: str, path: Path) -> np.ndarray:
        """The clip as ``(D,)`` or ``(T, D)``."""
        array = mertools.read_frames(path)[0] if path.is_dir() else mertools.read_feature(path)
        if name in self.columns:
            return array.reshape(-1)
        array = array[self.filled[name]] if name in self.filled else array
        return array[(array != 0).any(1)] if name in self.gaps else array


def _survey(folder: Path, sources: dict[str, Path]) -> _Survey:
    """
    Raises:
        UserError: time is the second axis of the arrays, or they have no common width.
    """
    shapes, found = {}, _Survey()
    sequences: dict[str, padding.Sequence] = {}
    profile = padding.Profile()
    for name, path in sources.items():
        unsafe = clip_names.unsafe(clip_names.clean(path.name if path.is_dir() else path.stem))
        faults: list[str] = []
        try:
            if unsafe:
                raise ValueError(f"not usable as a clip name: {unsafe}")
            if path.is_dir():
                array, faults = mertools.read_frames(path)
            else:
                array = mertools.read_feature(path)
                if array.ndim == 2 and 1 not in array.shape:
                    sequences[name] = padding.Sequence.of(array)
                    profile.add(array)
            shapes[name] = array.shape
        except ValueError as error:
            found.bad[name] = str(error)
        if faults:
            found.partial[name] = f"{len(faults)} faults in its frames, which are left out: {faults[0]}"
    found.columns = _columns({name: shape for name, shape in shapes.items() if not sources[name].is_dir()})
    found.long = {name for name, shape in shapes.items() if len(shape) == 2 and shape[0] > 1} - found.columns
    found.filled = _filled(folder, sequences)
    if why := profile.doubt():
        logger.warning("%s: %s", folder, why)
    widths = {name: shape[0] if name in found.columns else shape[-1] for name, shape in shapes.items()}
    if not widths:
        return found
    found.width = _width(folder, shapes, widths)
    others = {name: own for name, own in widths.items() if own != found.width}
    steps = len({widths[name] for name in others if len(shapes[name]) == 1}) > 1
    for name, own in others.items():
        meant = f"; {_STEPS}" if steps and len(shapes[name]) == 1 else ""
        found.bad[name] = f"{own} values a vector, most files have {found.width}{meant}"
    found.gaps = _gaps(folder, {name: one for name, one in sequences.items() if name not in found.bad}, found)
    return found


def _width(folder: Path, shapes: dict[str, tuple[int, ...]], widths: dict[str, int]) -> int:
    """The width of most arrays.

    Raises:
        UserError: no width is that of at least half of the arrays, so the right one is not clear.
    """
    (width, count), *_ = Counter(widths.values()).most_common()
    if 2 * count < len(widths):
        flat = sum(len(shape) == 1 for shape in shapes.values())
        meant = "the last axis of each has to be the vector"
        if 2 * flat > len(shapes):
            meant = f"arrays (T,) are read as vectors; {_STEPS}: numpy.save(path, array[:, None])"
        raise UserError(
            f"{folder}: its {len(widths)} arrays, as {next(iter(widths))}, have "
            f"{len({*widths.values()})} widths, none of which half of them have: {meant}"
        )
    return width


def _filled(folder: Path, sequences: dict[str, padding.Sequence]) -> dict[str, slice]:
    """Clip -> the rows that are not padding, in a set whose sequences are padded with zeros.

    Raises:
        UserError: time is the second axis of the arrays.
    """
    if why := padding.turned(sequences.values()):
        raise UserError(
            f"{folder}: the arrays of {len(sequences)} clips, as {next(iter(sequences))}, are (D, T), and not (T, D) with a "
            f"row for each frame: {why}; turn each before it is saved: numpy.save(path, array.T)"
        )
    front, behind = padding.ends(sequences.values())
    filled = {
        name: slice(one.first_rows * front, one.rows - one.last_rows * behind)
        for name, one in sequences.items()
        if (front and one.first_rows) or (behind and one.last_rows)
    }
    if filled:
        rows = sum(sequences[name].rows - own.stop + own.start for name, own in filled.items())
        logger.warning(
            "%s: %d of %d sequences %s in rows of zeros; these are padding and are left out, %d of %d rows in all",
            folder,
            len(filled),
            len(sequences),
            " and ".join(["begin"] * front + ["end"] * behind),
            rows,
            sum(one.rows for one in sequences.values()),
        )
    return filled


def _gaps(folder: Path, sequences: dict[str, padding.Sequence], found: _Survey) -> set[str]:
    """Clips with frames without a vector, written as rows of zeros; logs these and ambiguous zero rows."""
    empty = {}
    for name, one in sequences.items():
        own = found.filled.get(name, slice(0, one.rows))
        if count := one.empty_rows - (one.rows - own.stop + own.start):
            empty[name] = count
    if not empty:
        return set()
    dense = padding.dense(sequences.values())
    meant = (
        "these are frames without a vector and are left out"
        if dense
        else "these are kept as frames, as other rows have few non-zero values; remove those that stand for "
        "frames without a vector"
    )
    logger.warning(
        "%s: %d of %d sequences have rows of zeros within; %s, %d of %d rows in all",
        folder,
        len(empty),
        len(sequences),
        meant,
        sum(empty.values()),
        sum(one.rows for one in sequences.values()),
    )
    return {*empty} if dense else set()


def _doubt(folder: Path, sources: dict[str, Path], found: _Survey) -> None:
    """Log how the files were interpreted if another interpretation is as likely."""
    if len(found.long) == len(sources) == 1 and not (path := next(iter(sources.values()))).is_dir():
        logger.warning(
            "%s: its only array, %s, is taken as one clip of many frames; if its rows are clips, "
            "write each into a file of its own, <name>.npy",
            folder,
            path.name,
        )
    frames = (
        path.name
        for own in sources.values()
        if own.is_dir()
        for path in own.iterdir()
        if mertools.is_array(path)
    )
    first = next(frames, "1")
    if not any(re.search(r"\d", name) for name in itertools.chain([first], frames)):
        logger.warning(
            "%s: each folder in it is taken as one clip, and each file in those as a frame, "
            "though no name, as %s, has a number; if the files are clips, import their folder",
            folder,
            first,
        )


def _columns(shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Clips whose array ``(D, 1)`` is a vector, as the baseline reads it.

    If such arrays have many different lengths, they are sequences of one value a step, as a pitch is.
    """
    lengths = {name: shape[0] for name, shape in shapes.items() if len(shape) == 2 and shape[1] == 1}
    if not lengths:
        return set()
    count = max(Counter(lengths.values()).values())
    if 2 * count <= len(lengths):
        logger.info("%d arrays (T, 1) of many lengths are sequences of one value a step", len(lengths))
        return set()
    logger.info("%d arrays (D, 1) are read as vectors of D values", len(lengths))
    return {*lengths}


def _shard(sources: dict[str, Path], modality: str, found: _Survey, width: int) -> FeatureSet:
    arrays = {name: found.read(name, path) for name, path in sources.items() if name not in found.bad}
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
        missing={name: found.bad[name] for name in sources if name in found.bad},
    )


def _content(shard: FeatureSet) -> str:
    """Fingerprint of the values, so that importing the same files again changes nothing downstream."""
    digest = hashlib.sha256("\0".join(shard.names).encode())
    for array in (shard.utterance, shard.frame):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _quarantine(run: Run, set_name: str, modality: str, found: _Survey) -> None:
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
