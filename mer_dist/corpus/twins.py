"""Clips of different names that are one recording: the same file, or copies of it.

Folds keep them together, for a model that has learned the label of one knows the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from mer_dist.core.records import Clip

#: Bytes out of the middle of files of one size that are compared before the whole is.
PROBE = 4096
SAME = "one recording under several clip names; those that are labelled are in one fold"
DIFFERENT = (
    "one recording under several clip names with different labels, which no model can tell apart; they are "
    "in one fold"
)
SHOWN = 3
#: Clips with one sound beyond which it is no recording of theirs, as a silence that stands for none.
MOST = 8


def find(clips: Sequence[Clip], copies: bool = True) -> list[list[str]]:
    """The names of clips with the same sound, sorted, each group of two or more: the same files, or two cameras
    on one speaker.

    Clips that share a picture and have sounds of their own are none, as where a portrait stands for it. A sound
    that more than :data:`MOST` clips share is a placeholder; of these the clips with the same video are meant.

    Args:
        copies: files of equal content count as the same, too; without it those that are one on the disk.
    """
    known = _identities({path for clip in clips for path in (clip.video, clip.audio) if path}, copies)
    sounds: dict[Hashable, list[Clip]] = {}
    for clip in clips:
        own = [known.get(path) for path in (clip.video, clip.audio) if path]
        if own and None not in own:
            sounds.setdefault(own[-1], []).append(clip)
    groups: list[list[Clip]] = []
    for same in sounds.values():
        if len(same) <= MOST:
            groups.append(same)
            continue
        pictures: dict[Hashable, list[Clip]] = {}
        for clip in same:
            pictures.setdefault(known.get(clip.video) if clip.video else None, []).append(clip)
        groups += pictures.values()
    return sorted(sorted(clip.name for clip in own) for own in groups if len(own) > 1)


def _identities(paths: set[Path], copies: bool) -> dict[Path, Hashable]:
    """What tells each file from others; files that are not there or empty have nothing that does."""
    found: dict[Path, Hashable] = {}
    by_size: dict[int, dict[Hashable, list[Path]]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: no file can have such a name
            continue
        if status.st_size:
            identity = found[path] = (status.st_dev, status.st_ino)
            by_size.setdefault(status.st_size, {}).setdefault(identity, []).append(path)
    for size, files in by_size.items() if copies else ():
        for same in _equal([own[0] for own in files.values()], size // 2, PROBE):
            for equal in _equal(same, 0, None):
                first = found[equal[0]]
                found |= {path: first for one in equal for path in files[found[one]]}
    return found


def _equal(paths: list[Path], start: int, count: int | None) -> list[list[Path]]:
    """Those of which so many bytes from a place on are the same, in groups of two or more."""
    groups: dict[bytes, list[Path]] = {}
    for path in sorted(paths) if len(paths) > 1 else ():
        try:
            with open(path, "rb") as file:
                file.seek(start)
                content = hashlib.file_digest(file, "sha256").digest() if count is None else file.read(count)
        except OSError:
            continue
        groups.setdefault(content, []).append(path)
    return [own for own in groups.values() if len(own) > 1]


def contradict(names: Iterable[str], label_of: dict[str, str]) -> bool:
    """Whether clips that are one recording have different labels."""
    return len({label_of[name] for name in names if name in label_of}) > 1


def remarks(groups: list[list[str]], label_of: dict[str, str]) -> dict[str, list[str]]:
    """Kind of remark -> the clips."""
    kinds: dict[str, list[str]] = {}
    for names in groups:
        kinds.setdefault(DIFFERENT if contradict(names, label_of) else SAME, []).extend(names)
    return kinds


def summary(groups: list[list[str]], label_of: dict[str, str]) -> str:
    """The same in words, with examples; empty where there is no such clip."""
    if not groups:
        return ""
    # Those that contradict each other are what is to be mended.
    first = sorted(groups, key=lambda names: not contradict(names, label_of))
    examples = [
        " and ".join(f"{name} ({label_of.get(name, 'no label')})" for name in names[:SHOWN])
        for names in first[:SHOWN]
    ]
    wrong = sum(contradict(names, label_of) for names in groups)
    count = sum(map(len, groups))
    labels = f", {wrong} of them with different labels" if wrong else ""
    return (
        f"{count} clips are {len(groups)} recording{'s' * (len(groups) > 1)} under several names{labels}, "
        f"as {'; '.join(examples)}"
    )
