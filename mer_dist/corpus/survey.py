"""Can the media of a corpus be read at all? Asked before hours are spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import LABELED, UNLABELED, Clip, Modality
from mer_dist.corpus import paths

Item = TypeVar("Item")
#: Clips of a larger corpus whose files are looked for, and of which some are decoded; half of each split.
LOOKED_AT, DECODED = 2000, 32
#: Part of the clips that name media below which next to none can be read, and clips of a split from which on
#: it is judged by itself: the few labelled clips can lie on a disk of their own.
LEAST, ENOUGH = 0.1, 10


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly over their order."""
    if len(items) <= most:
        return list(items)
    return [items[int((row + 0.5) * len(items) / most)] for row in range(most)]


def with_media(clips: Sequence[Clip]) -> list[Clip]:
    """Those that name a file."""
    return [clip for clip in clips if clip.names(Modality.AUDIO)]


def sample(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most so many of those that name a file, evenly over each split, in their order."""
    named = with_media(clips)
    if len(named) <= most:
        return named
    parts = [[clip for clip in named if clip.split == split] for split in (LABELED, UNLABELED)]
    # What one split does not need is the other's.
    least = min(len(part) for part in parts)
    each = max(most // 2, most - least)
    chosen = {clip.name for part in parts for clip in evenly(part, min(each, len(part)))}
    return [clip for clip in named if clip.name in chosen]


def files_of(clip: Clip) -> list[Path]:
    return [path for path in (clip.video, clip.audio) if path is not None]


def look(clips: Sequence[Clip], config: ShardConfig) -> dict[str, list[str]]:
    """name -> what is wrong with its files, of at most :data:`LOOKED_AT` clips that name some.

    Pictures of a clip's face stand for its video.
    """
    from mer_dist.corpus.faces import openface_folder

    found = {}
    for clip in sample(clips, LOOKED_AT):
        named = files_of(clip)
        if config.faces == "openface" and openface_folder(Path(config.openface), clip.name).is_dir():
            named = [path for path in named if path != clip.video]
        found[clip.name] = [f"{path}: {why}" for path in named if (why := paths.fault(path))]
    return found


def refuse(clips: Sequence[Clip], lost: dict[str, str | None], known: set[str], corpus: str) -> None:
    """End where next to no media can be read, of all clips or of a split.

    Args:
        lost: of the clips that were looked at, why nothing of their media can be read; None where it can.
        known: clips that were read before.

    Raises:
        UserError: what was probably meant.
    """
    named = with_media(clips)
    splits = [
        (f"its {split} clips name", [clip for clip in named if clip.split == split])
        for split in (LABELED, UNLABELED)
    ]
    for what, part in [("it names", named), *(split for split in splits if len(split[1]) >= ENOUGH)]:
        looked = [clip.name for clip in part if clip.name in lost]
        why = [reason for name in looked if (reason := lost[name]) is not None]
        old = sum(clip.name in known for clip in part)
        new = (len(part) - old) * (len(looked) - len(why)) / max(1, len(looked))
        if why and old + new < LEAST * len(part):
            raise UserError(
                f"{corpus}: next to none of the video and audio that {what} can be read: {len(why)} of "
                f"{len(looked)} clips that were looked at are not, for example {why[0]}. Nothing was "
                "changed. Is the disk mounted, are the paths right (those of a table are relative to its "
                "folder)? To go on with what is left, as transcripts: shard.without_media=true"
            )
