"""Checks that the media of a corpus can be read at all, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import LABELED, UNLABELED, Clip, Modality
from mer_dist.corpus import paths

Item = TypeVar("Item")
#: In a larger corpus, the number of clips whose files are checked, and that are decoded; half per split.
LOOKED_AT, DECODED = 2000, 32
#: Minimum readable fraction of the clips with media, and minimum size of a split that is judged separately:
#: the few labelled clips may be on a separate disk.
LEAST, ENOUGH = 0.1, 10


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` of the items, evenly spaced in their order."""
    if len(items) <= most:
        return list(items)
    return [items[int((row + 0.5) * len(items) / most)] for row in range(most)]


def with_media(clips: Sequence[Clip]) -> list[Clip]:
    """The clips that have a file."""
    return [clip for clip in clips if clip.names(Modality.AUDIO)]


def sample(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most ``most`` of the clips with a file, evenly spaced over each split, in their order."""
    named = with_media(clips)
    if len(named) <= most:
        return named
    parts = [[clip for clip in named if clip.split == split] for split in (LABELED, UNLABELED)]
    # A split may use what the other does not need.
    least = min(len(part) for part in parts)
    each = max(most // 2, most - least)
    chosen = {clip.name for part in parts for clip in evenly(part, min(each, len(part)))}
    return [clip for clip in named if clip.name in chosen]


def files_of(clip: Clip) -> list[Path]:
    return [path for path in (clip.video, clip.audio) if path is not None]


def look(clips: Sequence[Clip], config: ShardConfig) -> dict[str, list[str]]:
    """name -> faults of its files, for at most :data:`LOOKED_AT` clips with files.

    Pictures of a clip's face replace its video.
    """
    found = {}
    for clip in sample(clips, LOOKED_AT):
        named = files_of(clip)
        if config.faces == "openface" and paths.has_openface(Path(config.openface), clip.name):
            named = [path for path in named if path != clip.video]
        found[clip.name] = [f"{path}: {why}" for path in named if (why := paths.fault(path))]
    return found


def refuse(clips: Sequence[Clip], lost: dict[str, str | None], known: set[str], corpus: str) -> None:
    """Refuse a corpus where almost no media can be read, of all clips or of a split.

    Args:
        lost: checked clip -> why its media cannot be read; None if they can.
        known: clips that were read before.

    Raises:
        UserError: with the probable causes.
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
