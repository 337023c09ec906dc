"""Clips of different names that are one recording: the same file, or duplicates of it.

Folds keep them together, because a model that has learned the label of one knows the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from mer_dist.core.records import Clip, Content

#: Bytes from the middle of files of one size that are compared before the full content.
PROBE = 4096
SAME = "one recording under several clip names; those that are labelled are in one fold"
DIFFERENT = (
    "one recording under several clip names with different labels, which no model can tell apart; they are "
    "in one fold"
)
SHOWN = 3
#: Clips with one sound beyond which it is no recording of theirs, as a silence that stands for none.
MOST = 8
#: Samples by which the sounds of one recording may differ in length: a tenth of a second.
NEAR = 1600


def find(clips: Sequence[Clip], copies: bool = True) -> list[list[str]]:
    """The names of clips with the same sound, sorted, in groups of two or more: the same files, or two cameras on
    one speaker.

    Clips that share a picture but have their own sounds, as with a portrait, do not count. A sound that more than
    :data:`MOST` clips share is a placeholder; of these, clips with the same video count.

    Args:
        copies: files of equal content count as the same, too; without it only one file on disk does.
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


def of_content(stored: Mapping[str, Content], samples: Mapping[str, int]) -> list[list[str]]:
    """The names of clips whose stored media are one recording, sorted, in groups of two or more: files that differ
    in their container alone, or in their picture.

    The sound is one, or the pictures are, with sounds of one length: containers cut it at other samples. A picture that
    does not move says nothing beside a sound. What more than :data:`MOST` clips share is a placeholder.

    Args:
        samples: of the sound of each.
    """
    sounds: dict[str, list[str]] = {}
    pictures: dict[str, list[list[str]]] = {}
    for name, own in sorted(stored.items(), key=lambda item: samples[item[0]]):
        if own.sound:
            sounds.setdefault(own.sound, []).append(name)
        if own.pictures and (own.moving or not own.sound):
            groups = pictures.setdefault(own.pictures, [[]])
            if groups[-1] and samples[name] - samples[groups[-1][-1]] > NEAR:
                groups.append([])
            groups[-1].append(name)
    found = [*sounds.values(), *(group for groups in pictures.values() for group in groups)]
    return together(names for names in found if 1 < len(names) <= MOST)


def together(groups: Iterable[Iterable[str]]) -> list[list[str]]:
    """Groups that have a clip in common as one; sorted."""
    of: dict[str, set[str]] = {}
    for names in groups:
        one = set().union(names, *(of.get(name, ()) for name in names))
        of |= dict.fromkeys(one, one)
    return sorted(sorted(one) for one in {id(own): own for own in of.values()}.values())


def _identities(paths: set[Path], copies: bool) -> dict[Path, Hashable]:
    """The identity of each file; missing and empty files have none."""
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
    """Groups of two or more files with equal bytes from ``start`` on; ``count`` None: to the end."""
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
    """A message on these clips, with examples; empty if there are none."""
    if not groups:
        return ""
    # Contradictory groups come first: they need to be fixed.
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
