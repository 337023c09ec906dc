"""The MER2024 folder as distributed.

::

    video-labeled/*.mp4   video-unlabeled*/*.mp4     (other containers will do: SUFFIXES)
    label-disdim.csv          name,discrete[,valence]
    label-transcription.csv   name,chinese[,english]
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mer_dist.corpus import names, table
from mer_dist.errors import UserError
from mer_dist.log import logger
from mer_dist.records import LABELED, UNLABELED, Clip, Modality, Problem

LABELS = "label-disdim.csv"
TRANSCRIPTS = "label-transcription.csv"
#: Containers of video: every file of such a name is a clip, whatever turns out to be in it.
SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .3gp .3g2 .mkv .webm .avi .divx .wmv .asf .flv .f4v .mpg .mpeg .m2v .vob "
    ".ts .mts .m2ts .ogv .mxf .rm .rmvb .dv .h264 .264 .h265 .265 .hevc".split()
)
SHOWN = 5


def clips(folder: str | Path, labels: list[str]) -> tuple[list[Clip], list[Problem]]:
    """Every clip that may be used, by split and name, and the reasons for the others.

    Raises:
        UserError: the layout is not there, or a name is unsafe or occurs twice.
    """
    folder = Path(folder)
    videos = _videos(folder)
    emotions = table.read(folder / LABELS, ("name", "discrete"))
    spoken = _transcripts(folder)
    found, problems = [], []

    def lose(name: str, lost: str, reason: str) -> None:
        problems.append(Problem(stage="shard", name=name, lost=lost, reason=reason))

    for name, (split, path) in videos.items():
        label = None
        if split == LABELED:
            label, why = _label(name, emotions, labels)
            if why:
                lose(name, "clip", why)
                continue
        if name in spoken.bad:
            lose(name, Modality.TEXT, spoken.bad[name])
        transcript = table.text_or_none(spoken.rows.get(name, {}).get("chinese"))
        found.append(Clip(name=name, video=path, audio=None, transcript=transcript,
                          label=label, split=split))
    _report_rows_without_clip(videos, emotions, spoken, lose)
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _videos(folder: Path) -> dict[str, tuple[str, Path]]:
    """name -> (split, file) of both parts of the corpus."""
    labeled = folder / "video-labeled"
    if not labeled.is_dir():
        raise UserError(f"{folder}: no folder video-labeled; corpus.path is the MER2024 folder")
    unlabeled = sorted(part for part in folder.glob("video-unlabeled*") if part.is_dir())
    others = sorted({*(part for part in folder.glob("*video*") if part.is_dir())} - {labeled, *unlabeled})
    if others or not unlabeled:
        logger.warning("%s: clips to be answered lie in video-unlabeled*, of which there %s %d; not looked "
                       "into: %s", folder, "is" if len(unlabeled) == 1 else "are", len(unlabeled),
                       ", ".join(part.name for part in others[:SHOWN]) or "nothing else")
    entries = [(name, LABELED, path) for name, path in _clips_in(labeled)]
    entries += [(name, UNLABELED, path) for part in unlabeled for name, path in _clips_in(part)]
    if not entries:
        raise UserError(f"{folder}: no video files in video-labeled or video-unlabeled*")
    names.check((name, str(path.relative_to(folder))) for name, _, path in entries)
    return {name: (split, path) for name, split, path in entries}


def _clips_in(part: Path) -> list[tuple[str, Path]]:
    """Name and file of each clip, by file name; what else lies there is told, not passed over."""
    found, others = [], []
    with os.scandir(part) as listing:
        for entry in sorted(listing, key=lambda entry: entry.name):
            name, suffix = os.path.splitext(entry.name)
            suffix = suffix.lower()
            # A Mac leaves ._x.mp4, which holds no video, beside x.mp4 where it copies to a foreign disk.
            # A link that leads nowhere is a clip that cannot be read, not no clip.
            if suffix in SUFFIXES and not entry.name.startswith("._") and not entry.is_dir():
                # A Mac writes é as two letters; names are compared as tables write them.
                found.append((unicodedata.normalize("NFC", name), part / entry.name))
            else:
                others.append((entry.name, "folder" if entry.is_dir() else suffix or "no suffix"))
    if others:
        counts = Counter(kind for _, kind in others)
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        some = ", ".join(names.shown(name) for name, _ in others[:SHOWN])
        logger.warning("%s: %d entries are not taken for clips (%s), for example %s; a clip is a video file "
                       "that lies in this folder itself", part, len(others), kinds, some)
    return found


def _transcripts(folder: Path) -> table.Table:
    if (folder / TRANSCRIPTS).exists():
        return table.read(folder / TRANSCRIPTS, ("name", "chinese"))
    logger.warning("%s: no %s, so every clip lacks its transcript", folder, TRANSCRIPTS)
    return table.Table(file=TRANSCRIPTS)


def _label(name: str, emotions: table.Table, labels: list[str]) -> tuple[str | None, str]:
    """The label, or why there is none."""
    if name in emotions.bad:
        return None, emotions.bad[name]
    if name not in emotions.rows:
        return None, f"it is in video-labeled, but {emotions.file} has no row for it"
    label = emotions.rows[name]["discrete"].strip()
    if label not in labels:
        return None, (f"{emotions.place(name)}: label {label!r} is not in corpus.labels: "
                      f"{', '.join(labels)}")
    return label, ""


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
