"""The arrays of a feature set in the challenge baseline's layout: which files there are, and what they hold."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.corpus import mertools, padding

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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Sorted names of the entries of a folder. Hidden folders and files are left out."""

    folder: Path
    arrays: list[str]
    folders: list[str]
    others: list[str]

    @classmethod
    def of(cls, folder: Path) -> Listing:
        arrays, folders, others = [], [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders += [entry.name] * (entry.name[0] != ".")
                elif mertools.is_array(entry.name):
                    arrays.append(entry.name)
                elif entry.name[0] != ".":
                    others.append(entry.name)
        return cls(folder=folder, arrays=sorted(arrays), folders=sorted(folders), others=sorted(others))

    def others_by_suffix(self) -> str:
        """The files that are not arrays, with an example each."""
        by_suffix: dict[str, list[str]] = {}
        for name in self.others:
            by_suffix.setdefault(Path(name).suffix or "without a suffix", []).append(name)
        return ", ".join(f"{len(own)} {suffix} (as {own[0]})" for suffix, own in by_suffix.items())


@dataclass(kw_only=True)
class Clips:
    """The clips of a set: each is a file ``<name>.npy``, or a folder with a file for each frame."""

    folder: Path
    #: Clip -> name of its file or folder.
    entries: dict[str, str]
    #: Whether each is a folder of frames.
    in_frames: bool
    #: name -> why it cannot be the name of a clip.
    unsafe: dict[str, str]

    @classmethod
    def of(cls, listing: Listing) -> Clips:
        """Those of a folder: its files, or its folders if it has no files.

        Raises:
            UserError: two files belong to one clip, or the folder holds several sets.
        """
        found = cls(folder=listing.folder, entries={}, in_frames=not listing.arrays, unsafe={})
        if found.in_frames:
            _check_folders(listing)
        elif listing.folders:
            logger.warning(
                "%s: folders beside the .npy files are not read: %s",
                listing.folder,
                ", ".join(listing.folders[:5]),
            )
        locations = []
        for entry in listing.folders if found.in_frames else listing.arrays:
            stem = entry if found.in_frames else entry[: -len(".npy")]
            name = clip_names.clean(stem)
            if why := clip_names.unsafe(name):
                name = stem.encode("utf-8", "backslashreplace").decode()
                found.unsafe[name] = f"not usable as a clip name: {why}"
            else:
                locations.append((name, entry))
            found.entries[name] = entry
        clip_names.check(locations)
        return found

    def path(self, name: str) -> Path:
        return self.folder / self.entries[name]

    def paths(self) -> Iterator[Path]:
        return map(self.path, self.entries)

    def read(self, name: str) -> tuple[np.ndarray, list[str]]:
        """The array of a clip, ``(D,)`` or ``(T, D)``, and the faults of its frames.

        Raises:
            ValueError: why it cannot be used.
        """
        if self.in_frames:
            return mertools.read_frames(self.path(name))
        return mertools.read_feature(self.path(name)), []


def _check_folders(listing: Listing) -> None:
    """
    Raises:
        UserError: these folders are not clips.
    """
    if sets := [name for name in listing.folders if name.endswith(("-UTT", "-FRA"))]:
        raise UserError(
            f"{listing.folder}: it holds sets, as {sets[0]}, and not clips; leave the set's "
            f"name out and give --modality {sets[0]}=MODALITY for each"
        )
    if listing.folders and all(name.casefold() in PARTS for name in listing.folders):
        raise UserError(
            f"{listing.folder}: {', '.join(listing.folders)} are parts of a corpus and "
            "not clips; put the files of all parts into one folder, and import that"
        )


@dataclass(kw_only=True)
class Survey:
    """The content of the files of a set."""

    clips: Clips
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

    def read(self, name: str) -> np.ndarray:
        """The clip as ``(D,)`` or ``(T, D)``."""
        array, _ = self.clips.read(name)
        if name in self.columns:
            return array.reshape(-1)
        array = array[self.filled[name]] if name in self.filled else array
        return array[(array != 0).any(1)] if name in self.gaps else array


def survey(clips: Clips) -> Survey:
    """What the files hold, and how they are meant.

    Raises:
        UserError: time is the second axis of the arrays, or they have no common width.
    """
    folder, shapes, found = clips.folder, {}, Survey(clips=clips, bad={**clips.unsafe})
    sequences: dict[str, padding.Sequence] = {}
    profile = padding.Profile()
    for name in clips.entries:
        if name in clips.unsafe:
            continue
        try:
            array, faults = clips.read(name)
        except ValueError as error:
            found.bad[name] = str(error)
            continue
        if not clips.in_frames and array.ndim == 2 and 1 not in array.shape:
            sequences[name] = padding.Sequence.of(array)
            profile.add(array)
        shapes[name] = array.shape
        if faults:
            found.partial[name] = f"{len(faults)} faults in its frames, which are left out: {faults[0]}"
    found.columns = set() if clips.in_frames else _columns(shapes)
    found.long = {name for name, shape in shapes.items() if len(shape) == 2 and shape[0] > 1} - found.columns
    found.filled = _filled(folder, sequences)
    if why := padding.copies(sequences.values()):
        logger.warning(
            "%s: %s, which are kept as frames; if they are padding, cut it off before the arrays are saved",
            folder,
            why,
        )
    elif why := profile.doubt():
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
    _doubt(found)
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


def _gaps(folder: Path, sequences: dict[str, padding.Sequence], found: Survey) -> set[str]:
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


def _doubt(found: Survey) -> None:
    """Log how the files were interpreted if another interpretation is as likely."""
    clips = found.clips
    if len(found.long) == len(clips.entries) == 1 and not clips.in_frames:
        logger.warning(
            "%s: its only array, %s, is taken as one clip of many frames; if its rows are clips, "
            "write each into a file of its own, <name>.npy",
            clips.folder,
            *clips.entries.values(),
        )
    if not clips.in_frames:
        return
    frames = (name for path in clips.paths() for name in Listing.of(path).arrays)
    first = next(frames, "1")
    name, entry = next(iter(clips.entries.items()))
    logger.info(
        "%s: each of its %d folders is taken as one clip, and their files as its frames, as %s",
        clips.folder,
        len(clips.entries),
        " ".join([f"{name}:", *Listing.of(clips.folder / entry).arrays[:3]]),
    )
    if re.search("layer", first, re.IGNORECASE):
        logger.warning(
            "%s: the files in its folders, as %s, seem to be layers of a model, of which the mean is taken as that of "
            "frames; import the folder of one layer, or one file a clip",
            clips.folder,
            first,
        )
    if not any(re.search(r"\d", name) for name in itertools.chain([first], frames)):
        logger.warning(
            "%s: each folder in it is taken as one clip, and each file in those as a frame, "
            "though no name, as %s, has a number; if the files are clips, import their folder",
            clips.folder,
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
