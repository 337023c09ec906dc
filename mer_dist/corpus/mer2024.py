"""The MER2024 folder as distributed.

::

    video-labeled/*.mp4   video-unlabeled*/*.mp4
    label-disdim.csv          name,discrete[,valence]
    label-transcription.csv   name,chinese[,english]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mer_dist.corpus import cells, names, table
from mer_dist.corpus.encoding import UTF8
from mer_dist.errors import UserError
from mer_dist.log import logger
from mer_dist.records import LABELED, UNLABELED, Clip, Modality, Problem

LABELS = "label-disdim.csv"
TRANSCRIPTS = "label-transcription.csv"


def clips(
    folder: str | Path, labels: list[str], encoding: str = UTF8
) -> tuple[list[Clip], list[Problem]]:
    """Every clip that may be used, by split and name, and the reasons for the others.

    Raises:
        UserError: the layout is not there, or a name is unsafe or occurs twice.
    """
    folder = Path(folder)
    videos = _cleaned(folder, _videos(folder))
    emotions = table.read(folder / LABELS, ("name", "discrete"), encoding)
    spoken = _transcripts(folder, encoding)
    known = cells.Labels(labels, emotions.file)
    found, problems = [], []

    def lose(name: str, lost: str, reason: str) -> None:
        problems.append(Problem(stage="shard", name=name, lost=lost, reason=reason))

    for name, (split, path) in videos.items():
        label = None
        if split == LABELED:
            label, why = _label(name, emotions, known)
            if why:
                lose(name, "clip", why)
                continue
        if why := _unspoken(name, spoken):
            lose(name, Modality.TEXT, why)
        transcript = table.text_or_none(spoken.rows.get(name, {}).get("chinese"))
        found.append(Clip(name=name, video=path, audio=None, transcript=transcript,
                          label=label, split=split))
    _report_rows_without_clip(videos, emotions, spoken, lose)
    known.tell()
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _videos(folder: Path) -> dict[str, tuple[str, Path]]:
    """name -> (split, file) of both parts of the corpus."""
    labeled = folder / "video-labeled"
    if not labeled.is_dir():
        raise UserError(f"{folder}: no folder video-labeled; corpus.path is the MER2024 folder")
    others = sorted(part for part in folder.glob("video-unlabeled*") if part.is_dir())
    parts = [(labeled, LABELED), *((part, UNLABELED) for part in others)]
    entries = []
    for part, split in parts:
        with os.scandir(part) as listing:
            entries += [
                (entry.name[:-4], split, part / entry.name)
                for entry in sorted(listing, key=lambda entry: entry.name)
                # A link that leads nowhere is a clip that cannot be read, not no clip.
                if entry.name.lower().endswith(".mp4") and not entry.is_dir()
            ]
    if not entries:
        raise UserError(f"{folder}: no mp4 files in video-labeled or video-unlabeled*")
    names.check((name, str(path.relative_to(folder))) for name, _, path in entries)
    return {name: (split, path) for name, split, path in entries}


def _cleaned(folder: Path, videos: dict[str, tuple[str, Path]]) -> dict[str, tuple[str, Path]]:
    """With the names that tables would give these files: a disk may spell an accent otherwise."""
    names.check((names.clean(name), str(path.relative_to(folder))) for name, (_, path) in videos.items())
    return {names.clean(name): place for name, place in videos.items()}


def _transcripts(folder: Path, encoding: str) -> table.Table:
    found = table.Table(file=TRANSCRIPTS)
    if (folder / TRANSCRIPTS).exists():
        found = table.read(folder / TRANSCRIPTS, ("name", "chinese"), encoding)
    if not (found.rows or found.bad):
        logger.warning("%s: no %s with a row in it, so every clip lacks its transcript", folder, TRANSCRIPTS)
    return found


def _unspoken(name: str, spoken: table.Table) -> str:
    """Why a clip's transcript is lost; empty if it is there, or absent on purpose: an empty field is a clip
    in which no word was heard, and without a table no clip has words. A table that is there has a row for
    every clip, as the challenge's has."""
    if name in spoken.bad:
        return spoken.bad[name]
    expected = name not in spoken.rows and (spoken.rows or spoken.bad)
    return f"{spoken.file} has no row for it" if expected else ""


def _label(name: str, emotions: table.Table, known: cells.Labels) -> tuple[str | None, str]:
    """The label, or why there is none."""
    if name in emotions.bad:
        return None, emotions.bad[name]
    if name not in emotions.rows:
        return None, f"it is in video-labeled, but {emotions.file} has no row for it"
    label, why = known.read(emotions.rows[name]["discrete"])
    return label, why and f"{emotions.place(name)}: {why}"


def _report_rows_without_clip(
    videos: dict, emotions: table.Table, spoken: table.Table, lose: Callable[[str, str, str], None]
) -> None:
    for name in emotions.rows:
        if name not in videos:
            lose(name, "clip", f"{emotions.place(name)}: video-labeled has no file {name}.mp4")
        elif videos[name][0] != LABELED:
            where = videos[name][1].parent.name
            lose(name, "label", f"{emotions.place(name)}: not used, because the clip is in {where}")
    for name, why in emotions.bad.items():
        if name not in videos or videos[name][0] != LABELED:
            lose(name, "clip" if name not in videos else "label", why)
    for name, why in spoken.bad.items():
        if name not in videos:
            lose(name, Modality.TEXT, why)
    extra = len(spoken.rows.keys() - videos.keys())
    if extra:
        logger.info("%s: %d rows belong to no clip of this folder", spoken.file, extra)
