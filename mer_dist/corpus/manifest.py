"""Any corpus through one CSV file: ``name,video,audio,transcript,label,split``.

``video`` and ``audio`` are paths relative to the CSV; without ``audio`` the sound is the audio
stream of ``video``. ``transcript`` is the text itself. Any of them may be empty, as may
``label``, or hold a word for that, as ``NA``. ``split`` is labeled or unlabeled; empty, it follows
from the label. A column in which nothing would stand may be absent.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from mer_dist.corpus import cells, table
from mer_dist.corpus.encoding import UTF8
from mer_dist.corpus.texts import Texts
from mer_dist.errors import UserError
from mer_dist.log import logger
from mer_dist.records import UNLABELED, Clip, Problem

COLUMNS = ("name", "video", "audio", "transcript", "label", "split")
#: Other words for these columns; one of them is hardly meant to be passed over.
SYNONYMS = {
    **dict.fromkeys(("text", "transcription", "sentence", "utterance", "chinese", "english"), "transcript"),
    **dict.fromkeys(("emotion", "discrete", "emo", "class"), "label"),
    **dict.fromkeys(("path", "file", "clip"), "video"),
    **dict.fromkeys(("wav", "sound"), "audio"),
    **dict.fromkeys(("part", "set", "subset"), "split"),
}


def clips(path: str | Path, labels: list[str], encoding: str = UTF8) -> tuple[list[Clip], list[Problem]]:
    """Every clip that may be used, by split and name, and the reasons for the others.

    Raises:
        UserError: no such file or column, or a name is unsafe or occurs twice.
    """
    path = Path(path)
    rows = table.read(path, ("name",), encoding)
    _check_columns(path, rows.columns)
    files, emotions, texts = cells.Files(path), cells.Labels(labels, path.name), Texts(path.name)
    found = []
    problems = [Problem(stage="shard", name=name, lost="clip", reason=why) for name, why in rows.bad.items()]
    for name, row in rows.rows.items():
        row = dict.fromkeys(COLUMNS, "") | row
        split, label, why = _split(row, emotions)
        if why:
            problems.append(
                Problem(stage="shard", name=name, lost="clip", reason=f"{rows.place(name)}: {why}")
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
            )
        )
    if not rows.rows and not rows.bad:
        raise UserError(f"{path}: it names no clip")
    hidden = sum(
        clip.split == UNLABELED and bool(rows.rows[clip.name].get("label", "").strip()) for clip in found
    )
    if hidden:
        logger.info("%s: %d clips of split unlabeled have a label, which is not used", path, hidden)
    for told in (files, emotions, texts):
        told.tell()
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _check_columns(path: Path, columns: list[str]) -> None:
    """Refuse a header without any part of a clip, or with one under what looks like another name."""
    absent = [column for column in COLUMNS if column not in columns]
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
        logger.info("%s: columns that are not used: %s", path, ", ".join(map(repr, others[:20])))


def _split(row: dict[str, str], labels: cells.Labels) -> tuple[str, str | None, str]:
    """Split, label, and why the row cannot be used."""
    cell = labels.cell(row["label"])
    split, why = cells.split(row["split"], cell)
    if why or split == UNLABELED:
        return split, None, why
    return split, *labels.read(row["label"])
