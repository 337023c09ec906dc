"""The folders of MER2025 and MER2026 as distributed: one folder of videos, and tables that say what each clip is for.

::

    video/<name>.mp4   audio/<name>.wav   subtitle_chieng.csv   name,chinese,english
    MER2025: track1_train_disdim.csv   name,discrete,…    track_all_candidates.csv        name,…
    MER2026: track1_train.csv          name,discrete      track1_track2_candidate.csv     name,…

A clip is labelled, or a candidate, which gets an answer, or neither: these are there to learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import LABELED, UNLABELED, Clip, Modality, Problem
from mer_dist.corpus import cells, challenge, register, table
from mer_dist.corpus.encoding import UTF8
from mer_dist.corpus.table import Table
from mer_dist.corpus.texts import Texts
from mer_dist.storage import files

TRANSCRIPTS = "subtitle_chieng.csv"
SHOWN = 5
Lose = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Year:
    """Names of its tables."""

    labels: str
    candidates: str


YEARS = {
    "mer2025": Year("track1_train_disdim.csv", "track_all_candidates.csv"),
    "mer2026": Year("track1_train.csv", "track1_track2_candidate.csv"),
}


@register("mer2025")
def clips_of_2025(
    folder: str | Path, labels: list[str], encoding: str = UTF8, *, language: str = "chinese"
) -> tuple[list[Clip], list[Problem]]:
    """As :func:`clips`."""
    return clips(YEARS["mer2025"], Path(folder), labels, encoding, language)


@register("mer2026")
def clips_of_2026(
    folder: str | Path, labels: list[str], encoding: str = UTF8, *, language: str = "chinese"
) -> tuple[list[Clip], list[Problem]]:
    """As :func:`clips`."""
    return clips(YEARS["mer2026"], Path(folder), labels, encoding, language)


def clips(
    year: Year, folder: Path, labels: list[str], encoding: str, language: str
) -> tuple[list[Clip], list[Problem]]:
    """The usable clips, by split and name, and the problems of the others.

    Raises:
        UserError: the layout is not found, nobody is a candidate, or a name is unsafe or occurs twice.
    """
    videos, sounds = _media(folder, "video"), _media(folder, "audio")
    names = videos.keys() | sounds.keys()
    emotions = table.read(folder / year.labels, challenge.LABEL_COLUMNS, encoding, names)
    candidates = table.read(folder / year.candidates, ("name",), encoding, names)
    if not candidates.rows:
        raise UserError(f"{folder / year.candidates}: it names no candidate, so no clip would get an answer")
    spoken = challenge.transcripts(folder / TRANSCRIPTS, language, encoding, names)
    known, texts = cells.Labels(labels, emotions.file), Texts(spoken.file)
    found, problems = [], []

    def lose(name: str, lost: str, reason: str) -> None:
        problems.append(Problem(stage="shard", name=name, lost=lost, reason=reason))

    # A candidate gets an answer even if nothing of it is there.
    for name in sorted(names | candidates.rows.keys()):
        asked, label = name in candidates.rows, None
        if name in emotions.rows and not asked:
            label, why = known.read(emotions.rows[name]["discrete"])
            if why:
                lose(name, "clip", f"{emotions.location(name)}: {why}")
                continue
        if why := challenge.unspoken(name, spoken):
            lose(name, Modality.TEXT, why)
        transcript, remarks = challenge.spoken(texts, spoken.rows.get(name, {}), challenge.COLUMNS[language])
        found.append(
            Clip(
                name=name,
                video=videos.get(name),
                audio=sounds.get(name),
                transcript=transcript,
                label=label,
                split=UNLABELED if label is None else LABELED,
                remarks=remarks,
                asked=asked,
                annotations={} if label is None else emotions.others(name, challenge.LABEL_COLUMNS),
            )
        )
    logger.info(
        "%s: %d labelled clips, %d candidates to be answered, %d others to learn from",
        folder,
        sum(clip.label is not None for clip in found),
        sum(clip.asked for clip in found),
        sum(clip.label is None and not clip.asked for clip in found),
    )
    _note_labels(emotions, names, candidates, lose)
    _note_others(folder, names, videos, sounds, candidates, spoken, lose)
    known.tell()
    texts.tell()
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _media(folder: Path, kind: str) -> dict[str, Path]:
    """name -> file, of ``video`` or ``audio``."""
    part = folder / kind
    if kind == "audio":
        if not part.is_dir():
            logger.warning("%s: no folder audio; sound is that of the videos", folder)
            return {}
        entries = challenge.clips_in(part, clip_names.AUDIO_SUFFIXES, "a sound file")
    elif part.is_dir():
        entries = challenge.clips_in(part)
    else:
        raise UserError(
            f"{folder}: no folder video; corpus.path is the MER2025 or MER2026 folder{files.started_from(folder)}"
        )
    if not entries and kind == "video":
        raise UserError(f"{part}: no video files in it")
    clip_names.check((name, str(path.relative_to(folder))) for name, path in entries)
    return dict(entries)


def _note_labels(emotions: Table, names: set[str], candidates: Table, lose: Lose) -> None:
    for name in emotions.rows:
        if name in candidates.rows:
            where = candidates.location(name)
            lose(
                name,
                "label",
                f"{emotions.location(name)}: not used, because the clip is a candidate ({where})",
            )
        elif name not in names:
            lose(name, "clip", f"{emotions.location(name)}: neither video nor audio has a file of that name")
    for name, why in emotions.bad.items():
        lose(name, "label" if name in names else "clip", why)


def _note_others(
    folder: Path,
    names: set[str],
    videos: dict[str, Path],
    sounds: dict[str, Path],
    candidates: Table,
    spoken: Table,
    lose: Lose,
) -> None:
    """Tell what is in one place and not in another."""
    for name, why in candidates.bad.items():
        lose(name, "clip", why)
    for name in spoken.bad.keys() - names:
        lose(name, Modality.TEXT, spoken.bad[name])
    for what, some in (
        (f"candidates of {candidates.file} have neither video nor sound", candidates.rows.keys() - names),
        (f"rows of {spoken.file} belong to no clip", spoken.rows.keys() - names - candidates.rows.keys()),
        ("clips have no video", sounds.keys() - videos.keys()),
        (
            "clips have no file in audio, and the sound of their video is taken",
            videos.keys() - sounds.keys() if sounds else set(),
        ),
    ):
        if some:
            logger.warning(
                "%s: %d %s: %s%s",
                folder,
                len(some),
                what,
                ", ".join(sorted(some)[:SHOWN]),
                ", …" * (len(some) > SHOWN),
            )
