"""The new clips: a folder of media files, one file, or a table, and their transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import UNLABELED, Clip, Problem
from mer_dist.corpus import challenge, manifest, table
from mer_dist.corpus.texts import Texts
from mer_dist.storage import files

STAGE = "predict"
#: Columns of a table of transcripts, the first that it has.
COLUMNS = ("transcript", "text", "sentence")
TABLES = (".csv", ".tsv", ".txt")
SHOWN = 3


def find(
    path: Path, transcripts: Path | None = None, language: str = "chinese"
) -> tuple[list[Clip], list[Problem]]:
    """The clips by name, and what of them cannot be used.

    Args:
        path: a folder of media files, one media file, or a CSV ``name,video,audio,transcript``. Labels in it are not
            read.
        transcripts: CSV ``name,transcript``, or of a challenge, of which the columns of this ``language`` are read.

    Raises:
        UserError: nothing is there, no clip is in it, or a name is unsafe or occurs twice.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder{files.started_from(path)}")
    problems: list[Problem] = []
    if path.is_dir():
        found = _in_folder(path)
    elif path.suffix.lower() in TABLES:
        found, problems = manifest.clips(path, None)
    else:
        found = [_of_file(clip_names.clean(path.name), path)]
        clip_names.check([(found[0].name, str(path))])
    problems = [replace(problem, stage=STAGE) for problem in problems]
    if transcripts is not None:
        found, more = _with_transcripts(found, transcripts, language)
        problems += more
    return sorted(found, key=lambda clip: clip.name), problems


def _in_folder(folder: Path) -> list[Clip]:
    suffixes = challenge.SUFFIXES | clip_names.AUDIO_SUFFIXES
    entries = challenge.clips_in(folder, suffixes, "a media file")
    if not entries:
        raise UserError(f"{folder}: no media files in it; their names end in {' '.join(sorted(suffixes))}")
    clip_names.check((name, str(path.relative_to(folder))) for name, path in entries)
    return [_of_file(name, path) for name, path in entries]


def _of_file(name: str, path: Path) -> Clip:
    sound = path.suffix.lower() in clip_names.AUDIO_SUFFIXES
    return Clip(
        name=name,
        video=None if sound else path,
        audio=path if sound else None,
        transcript=None,
        label=None,
        split=UNLABELED,
    )


def _with_transcripts(found: list[Clip], path: Path, language: str) -> tuple[list[Clip], list[Problem]]:
    """The clips with the transcripts of a table; one that a clip brought along is replaced.

    Raises:
        UserError: it is no table, has no column of transcripts, or none of its names is that of a clip.
    """
    names = {clip.name for clip in found}
    rows = table.read(path, ("name",), known=names)
    ways = (*((column,) for column in COLUMNS), challenge.COLUMNS[language])
    columns = next((own for own in ways if {*own} <= {*rows.columns}), None)
    if columns is None:
        wanted = " or ".join((*COLUMNS, *challenge.COLUMNS[language]))
        raise UserError(f"{path}: it has no column {wanted}; it has: {', '.join(rows.columns)}")
    if not names & rows.rows.keys():
        some = ", ".join([*rows.rows][:SHOWN])
        raise UserError(f"{path}: none of its {len(rows.rows)} names is that of a clip; it has {some}")
    texts = Texts(rows.file)
    spoken: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
        name: challenge.spoken(texts, row, columns) for name, row in rows.rows.items() if name in names
    }
    texts.tell()
    if extra := sorted(rows.rows.keys() - names):
        logger.warning("%s: %d rows belong to no clip: %s", path, len(extra), ", ".join(extra[:SHOWN]))
    if without := sorted(names - spoken.keys()):
        logger.warning(
            "%s: %d clips have no row, and no transcript: %s", path, len(without), ", ".join(without[:SHOWN])
        )
    problems = [
        Problem(stage=STAGE, name=name, lost="text", reason=why)
        for name, why in rows.bad.items()
        if name in names
    ]
    return [
        replace(clip, transcript=spoken[clip.name][0], remarks=spoken[clip.name][1])
        if clip.name in spoken
        else clip
        for clip in found
    ], problems
