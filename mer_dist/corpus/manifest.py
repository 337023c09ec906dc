"""Any corpus through one CSV file: ``name,video,audio,transcript,label,split``.

``video`` and ``audio`` are paths relative to the CSV; without ``audio`` the sound is the audio
stream of ``video``. ``transcript`` is the text itself. Any of them may be empty, as may
``label``. ``split`` is labeled or unlabeled; empty, it follows from the label.
"""

from __future__ import annotations

from pathlib import Path

from mer_dist.corpus import table
from mer_dist.errors import UserError
from mer_dist.log import logger
from mer_dist.records import LABELED, UNLABELED, Clip, Problem

COLUMNS = ("name", "video", "audio", "transcript", "label", "split")


def clips(path: str | Path, labels: list[str]) -> tuple[list[Clip], list[Problem]]:
    """Every clip that may be used, by split and name, and the reasons for the others.

    Raises:
        UserError: no such file or column, or a name is unsafe or occurs twice.
    """
    path = Path(path)
    rows = table.read(path, COLUMNS)
    found = []
    problems = [Problem(stage="shard", name=name, lost="clip", reason=why)
                for name, why in rows.bad.items()]
    for name, row in rows.rows.items():
        split, label, why = _split(row, labels)
        if why:
            problems.append(Problem(stage="shard", name=name, lost="clip",
                                    reason=f"{rows.place(name)}: {why}"))
            continue
        found.append(Clip(
            name=name, video=_file(path, row["video"]), audio=_file(path, row["audio"]),
            transcript=table.text_or_none(row["transcript"]), label=label, split=split,
        ))
    if not rows.rows and not rows.bad:
        raise UserError(f"{path}: it names no clip")
    hidden = sum(clip.split == UNLABELED and bool(rows.rows[clip.name]["label"].strip())
                 for clip in found)
    if hidden:
        logger.info("%s: %d clips of split unlabeled have a label, which is not used", path, hidden)
    found.sort(key=lambda clip: (clip.split, clip.name))
    return found, problems


def _split(row: dict[str, str], labels: list[str]) -> tuple[str, str | None, str]:
    """Split, label, and why the row cannot be used."""
    label, split = row["label"].strip(), row["split"].strip()
    split = split or (LABELED if label else UNLABELED)
    if split not in (LABELED, UNLABELED):
        return split, None, f"split {split!r} is neither {LABELED} nor {UNLABELED}"
    if split == UNLABELED:
        return split, None, ""
    if label not in labels:
        return split, None, f"label {label!r} is not in corpus.labels: {', '.join(labels)}"
    return split, label, ""


def _file(path: Path, entry: str) -> Path | None:
    return path.parent / entry.strip() if entry.strip() else None
