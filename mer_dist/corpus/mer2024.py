"""The MER2024 folder as distributed.

::

    video-labeled/*.mp4   video-unlabeled*/*.mp4     (or another container: challenge.SUFFIXES)
    label-disdim.csv          name,discrete[,valence]
    label-transcription.csv   name,chinese[,english]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import LABELED, UNLABELED, Clip, Modality, Problem
from mer_dist.corpus import cells, challenge, register, table
from mer_dist.corpus.challenge import clips_in, transcripts, unspoken
from mer_dist.corpus.encoding import UTF8
from mer_dist.corpus.texts import Texts
from mer_dist.storage import files

LABELS = "label-disdim.csv"
TRANSCRIPTS = "label-transcription.csv"
SHOWN = 5


@register("mer2024")
def clips(
    folder: str | Path, labels: list[str], encoding: str = UTF8, *, language: str = "chinese"
) -> tuple[list[Clip], list[Problem]]:
    """The usable clips, by split and name, and the problems of the others.

    Raises:
        UserError: the layout is not found, or a name is unsafe or occurs twice.
    """
    folder = Path(folder)
    videos = _videos(folder)
    emotions = table.read(folder / LABELS, challenge.LABEL_COLUMNS, encoding, videos)
    spoken = transcripts(folder / TRANSCRIPTS, language, encoding, videos)
    known, texts = cells.Labels(labels, emotions.file), Texts(spoken.file)
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
        if why := unspoken(name, spoken):
            lose(name, Modality.TEXT, why)
        transcript, remarks = challenge.spoken(texts, spoken.rows.get(name, {}), challenge.COLUMNS[language])
        found.append(
            Clip(
                name=name,
                video=path,
                audio=None,
                transcript=transcript,
                label=label,
                split=split,
                remarks=remarks,
                annotations=emotions.others(name, challenge.LABEL_COLUMNS) if split == LABELED else {},
            )
        )
    _report_rows_without_clip(videos, emotions, spoken, lose)
    known.tell()
    texts.tell()
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _videos(folder: Path) -> dict[str, tuple[str, Path]]:
    """name -> (split, file) of both parts of the corpus."""
    labeled = folder / "video-labeled"
    if not labeled.is_dir():
        raise UserError(
            f"{folder}: no folder video-labeled; corpus.path is the MER2024 folder{files.started_from(folder)}"
        )
    unlabeled = sorted(part for part in folder.glob("video-unlabeled*") if part.is_dir())
    others = sorted({*(part for part in folder.glob("*video*") if part.is_dir())} - {labeled, *unlabeled})
    if others or not unlabeled:
        logger.warning(
            "%s: clips without labels belong in video-unlabeled* (%d found); folders not read: %s",
            folder,
            len(unlabeled),
            ", ".join(part.name for part in others[:SHOWN]) or "nothing else",
        )
    entries = [(name, LABELED, path) for name, path in clips_in(labeled)]
    entries += [(name, UNLABELED, path) for part in unlabeled for name, path in clips_in(part)]
    if not entries:
        raise UserError(f"{folder}: no video files in video-labeled or video-unlabeled*")
    clip_names.check((name, str(path.relative_to(folder))) for name, _, path in entries)
    return {name: (split, path) for name, split, path in entries}


def _label(name: str, emotions: table.Table, known: cells.Labels) -> tuple[str | None, str]:
    """The label, or why there is none."""
    if name in emotions.bad:
        return None, emotions.bad[name]
    if name not in emotions.rows:
        return None, f"it is in video-labeled, but {emotions.file} has no row for it"
    label, why = known.read(emotions.rows[name]["discrete"])
    return label, why and f"{emotions.location(name)}: {why}"


def _report_rows_without_clip(
    videos: dict, emotions: table.Table, spoken: table.Table, lose: Callable[[str, str, str], None]
) -> None:
    for name in emotions.rows:
        if name not in videos:
            lose(
                name,
                "clip",
                f"{emotions.location(name)}: video-labeled has no file {name}.mp4, nor another video of that name",
            )
        elif videos[name][0] != LABELED:
            where = videos[name][1].parent.name
            lose(name, "label", f"{emotions.location(name)}: not used, because the clip is in {where}")
    for name, why in emotions.bad.items():
        if name not in videos or videos[name][0] != LABELED:
            lose(name, "clip" if name not in videos else "label", why)
    for name, why in spoken.bad.items():
        if name not in videos:
            lose(name, Modality.TEXT, why)
    if extra := sorted(spoken.rows.keys() - videos.keys()):
        logger.warning(
            "%s: %d rows belong to no clip of this folder: %s%s",
            spoken.file,
            len(extra),
            ", ".join(extra[:SHOWN]),
            ", …" * (len(extra) > SHOWN),
        )
