"""Can the media of a corpus be read at all? Asked before hours are spent on it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mer_dist.errors import UserError
from mer_dist.records import Clip, Modality
from mer_dist.settings import ShardConfig

Item = TypeVar("Item")
#: Clips of a larger corpus whose files are looked for, and of which some are decoded.
LOOKED_AT, DECODED = 2000, 32
#: Part of the clips that name media below which next to none can be read.
LEAST = 0.1


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly over their order."""
    if len(items) <= most:
        return list(items)
    return [items[int((row + 0.5) * len(items) / most)] for row in range(most)]


def with_media(clips: Sequence[Clip]) -> list[Clip]:
    """Those that name a file."""
    return [clip for clip in clips if clip.names(Modality.AUDIO)]


def files_of(clip: Clip) -> list[Path]:
    return [path for path in (clip.video, clip.audio) if path is not None]


def look(clips: Sequence[Clip], config: ShardConfig) -> dict[str, list[str]]:
    """name -> what is wrong with its files, of at most :data:`LOOKED_AT` clips that name some.

    Pictures of a clip's face stand for its video.
    """
    from mer_dist.corpus.faces import openface_folder

    found = {}
    for clip in evenly(with_media(clips), LOOKED_AT):
        named = files_of(clip)
        if config.faces == "openface" and openface_folder(Path(config.openface), clip.name).is_dir():
            named = [path for path in named if path != clip.video]
        found[clip.name] = [f"{path}: {why}" for path in named if (why := _fault(path))]
    return found


def _fault(path: Path) -> str:
    """Why a file cannot be read, as far as that is known without reading it."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not stat.S_ISREG(status.st_mode):
        return "no such file"
    if not status.st_size:
        return "the file is empty"
    return "" if os.access(path, os.R_OK) else "you have no right to read it"


def refuse(read: float, of: int, example: str, corpus: str) -> None:
    """End where next to no media can be read.

    Args:
        read: clips that name media of which some can be read, out of ``of``; also an estimate.
        example: a file and why it cannot be read.

    Raises:
        UserError: what was probably meant.
    """
    if of and read < LEAST * of:
        raise UserError(
            f"{corpus}: next to none of the video and audio that it names can be read, {round(read)} of {of} "
            f"clips; for example {example}. Nothing was changed. Is the disk mounted, are the paths right "
            "(those of a table are relative to its folder)? To go on with what is left, as transcripts: "
            "shard.without_media=true"
        )
