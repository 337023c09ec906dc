"""Any corpus through one CSV file: ``name,video,audio,transcript,label,split``.

``video`` and ``audio`` are paths relative to the CSV; without ``audio`` the sound is the audio
stream of ``video``. ``transcript`` is the text itself. Any of them, and ``label``, may be empty or
hold a word for empty, as ``NA``. ``split`` is labeled or unlabeled; if empty, it follows from the
label. An empty column may be absent.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import UNLABELED, Clip, Problem
from mer_dist.corpus import cells, register, table
from mer_dist.corpus.encoding import UTF8
from mer_dist.corpus.table import Table
from mer_dist.corpus.texts import Texts

COLUMNS = ("name", "video", "audio", "transcript", "label", "split")
#: Synonyms of these columns; a column with such a name is hardly meant to be ignored.
SYNONYMS = {
    **dict.fromkeys(("text", "transcription", "sentence", "utterance", "chinese", "english"), "transcript"),
    **dict.fromkeys(("emotion", "discrete", "emo", "class"), "label"),
    **dict.fromkeys(("path", "file", "clip"), "video"),
    **dict.fromkeys(("wav", "sound"), "audio"),
    **dict.fromkeys(("part", "set", "subset"), "split"),
}
#: Column names, reduced to letters, for the begin and end of a part of a file. Columns with other names or in
#: other languages are found by their values.
_TIMES = re.compile(
    r"(t|time|seg|segment|clip|utt|utterance)?(start|begin|beginning|onset|from|end|ending|stop|offset|until|to)"
    r"(s{1,2}|secs?|seconds?|ms|msec|milliseconds|times?|frame|timestamp|hh|mm|in|code){0,7}"
    r"|[tx](min|max)|timestamps?"
)
#: A time in any unit: 12.5, 12,5, 340 ms, 00:01:02.5.
_TIME = re.compile(r"((?:\d{1,3}:){0,3})(\d+(?:[.,]\d+)?)(?:\s*(?:s|secs?|ms|msec))?", re.IGNORECASE)


@register("manifest")
def clips(
    path: str | Path, labels: list[str] | None, encoding: str = UTF8
) -> tuple[list[Clip], list[Problem]]:
    """The usable clips, by split and name, and the problems of the others.

    Args:
        labels: ``corpus.labels``; None: labels and splits are not read, and no clip has any.

    Raises:
        UserError: no such file or column, or a name is unsafe or occurs twice.
    """
    path = Path(path)
    rows = table.read(path, ("name",), encoding)
    unread = ("label", "split") if labels is None else ()
    _check_columns(path, rows.columns, unread)
    files, emotions, texts = cells.Files(path), cells.Labels(labels or [], path.name), Texts(path.name)
    found = []
    problems = [Problem(stage="shard", name=name, lost="clip", reason=why) for name, why in rows.bad.items()]
    for name, row in rows.rows.items():
        row = dict.fromkeys(COLUMNS, "") | row
        split, label, why = (UNLABELED, None, "") if labels is None else _split(row, emotions)
        if why:
            problems.append(
                Problem(stage="shard", name=name, lost="clip", reason=f"{rows.location(name)}: {why}")
            )
            continue
        transcript, remarks = texts.read(row, "transcript")
        found.append(
            Clip(
                name=name,
                video=files.find(row["video"]),
                audio=files.find(row["audio"]),
                transcript=transcript,
                label=label,
                split=split,
                remarks=remarks,
                annotations=rows.others(name, COLUMNS),
            )
        )
    if not rows.rows and not rows.bad:
        raise UserError(f"{path}: it names no clip")
    hidden = sum(
        clip.split == UNLABELED and bool(rows.rows[clip.name].get("label", "").strip()) for clip in found
    )
    if hidden and labels is not None:
        logger.info("%s: %d clips of split unlabeled have a label, which is not used", path, hidden)
    for reader in (files, emotions, texts):
        reader.tell()
    found, parts = _whole(path, rows, found)
    problems += parts
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _check_columns(path: Path, columns: list[str], unread: tuple[str, ...] = ()) -> None:
    """Refuse a header without a column for any modality, or with a column under a likely synonym.

    Args:
        unread: columns that do not matter.
    """
    absent = [column for column in COLUMNS if column not in columns and column not in unread]
    others = [column for column in columns if column and column not in COLUMNS]
    if not {"video", "audio", "transcript"} & {*columns}:
        raise UserError(
            f"{path}: its first line has none of the columns video, audio, transcript; it has: "
            f"{', '.join(map(repr, columns[:20]))}"
        )
    for other in others:
        meant = SYNONYMS.get(other) or next(iter(difflib.get_close_matches(other, COLUMNS, 1, 0.8)), None)
        if meant in absent:
            raise UserError(
                f"{path}: it has no column {meant}, but one {other!r}; call it {meant} if that "
                f"is what it holds, or give the table an empty column {meant}"
            )
    if others:
        logger.info("%s: columns that are kept and not used: %s", path, ", ".join(map(repr, others[:20])))


def _whole(path: Path, rows: Table, found: list[Clip]) -> tuple[list[Clip], list[Problem]]:
    """Drop clips that columns of times mark as parts of a file, since a file is stored completely.

    If each clip has its own file, the times only show where it was cut out. Clips are parts if rows of one
    file have different times; if most rows are parts, all rows are.

    Raises:
        UserError: all clips are parts.
    """
    columns = [column for column in rows.columns if _TIMES.fullmatch(re.sub("[^a-z]", "", column))]
    columns = columns or _spans_by_value(rows, found)
    spans: dict[str, tuple[str, ...]] = {}
    by_file: dict[Path, list[str]] = {}
    for clip in found:
        cut = tuple(rows.rows[clip.name][column].strip() for column in columns)
        media = clip.audio or clip.video
        if media and not all(map(cells.is_nothing, cut)):
            spans[clip.name] = cut
            by_file.setdefault(media, []).append(clip.name)
    shared = {
        name for names in by_file.values() if len({spans[name] for name in names}) > 1 for name in names
    }
    parts = {*spans} if 2 * len(shared) > len(spans) else shared
    problems = []
    for clip in found:
        if clip.name in parts:
            media = clip.audio or clip.video
            times = ", ".join(map(" ".join, zip(columns, spans[clip.name], strict=True)))
            why = (
                f"{rows.location(clip.name)}: it is a part of {media and media.name} by its columns ({times}), and "
                "files are stored whole; cut each part into a file of its own, as ffmpeg -ss START -to END -i "
                "FILM PART does, and name that"
            )
            problems.append(Problem(stage="shard", name=clip.name, lost="clip", reason=why))
    if problems and len(problems) == len(found):
        raise UserError(f"{path}: every clip is a part of a file; the first: {problems[0].reason}")
    return [clip for clip in found if clip.name not in parts], problems


def _spans_by_value(rows: Table, found: list[Clip]) -> list[str]:
    """Two columns of times under any name, the first before the second in every row; empty if none fit.

    In each file, every row begins at or after the end of the row before it. More than one row must do so:
    with two rows any numbers may.
    """
    by_file: dict[Path, list[dict[str, str]]] = {}
    for clip in found:
        if media := clip.audio or clip.video:
            by_file.setdefault(media, []).append(rows.rows[clip.name])
    if sum(map(len, by_file.values())) < len(by_file) + 2:
        return []
    others = [column for column in rows.columns if column and column not in COLUMNS]
    for begin, end in itertools.permutations(others, 2):
        # One file at a time: the first file rules out most pairs.
        spans = ([(row[begin], row[end]) for row in own] for own in by_file.values())
        if _follow([span for span in own if not all(map(cells.is_nothing, span))] for own in spans):
            return [begin, end]
    return []


def _follow(files: Iterable[list[tuple[str, str]]]) -> bool:
    """Whether these cells are times that begin and end, one after the other in each file."""
    follow = 0
    for spans in files:
        ended = -math.inf
        for begin, end in sorted((_time(begin), _time(end)) for begin, end in spans):
            if not (ended <= begin < end):  # also False for NaN
                return False
            follow += ended >= 0
            ended = end
    return follow > 1


def _time(cell: str) -> float:
    """The time in a cell, in its own unit; NaN if there is none."""
    matched = _TIME.fullmatch(cell.strip())
    if not matched:
        return math.nan
    time = 0.0
    for part in (*matched[1].split(":")[:-1], matched[2].replace(",", ".")):
        time = 60 * time + float(part)
    return time


def _split(row: dict[str, str], labels: cells.Labels) -> tuple[str, str | None, str]:
    """Split, label, and why the row cannot be used."""
    cell = labels.cell(row["label"])
    split, why = cells.split(row["split"], cell)
    if why or split == UNLABELED:
        return split, None, why
    return split, *labels.read(row["label"])
