"""Clips decoded and encoded as they are stored, in worker processes: a clip that kills its decoder loses only itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus.paths import openface_array, openface_folder, openface_table
from mer_dist.shards import workers
from mer_dist.shards.encode import Encoded
from mer_dist.storage import files


def source(clip: Clip, config: ShardConfig, root: Path | None = None) -> str:
    """Fingerprint of what a clip is made from; moving all files with the folder ``root`` does not change it."""
    paths = [
        path and (os.path.relpath(path, root) if root else str(path)) for path in (clip.video, clip.audio)
    ]
    crops: list | None = None
    if config.faces == "openface":
        array, folder = (of(Path(config.openface), clip.name) for of in (openface_array, openface_folder))
        crops = files.size_and_mtime(array) or files.size_and_mtime(folder)
        if table := openface_table(Path(config.openface), clip.name):
            crops = [crops, files.size_and_mtime(table)]
    return files.fingerprint_of(
        [paths, files.size_and_mtime(clip.video), files.size_and_mtime(clip.audio), crops, clip.transcript]
    )


def in_workers(config: ShardConfig, clips: Iterable[Clip]) -> Iterator[Encoded]:
    """Each clip as the members of a tar, in order; ``shard.workers`` processes decode ahead."""
    return workers.in_order(partial(convert, config), clips, config.workers, crashed=_give_up)


def convert(config: ShardConfig, clip: Clip) -> Encoded:
    """A clip as the members of a tar, decoded in this process."""
    from mer_dist.corpus.decode import decode

    return _encode(decode(clip, config))


def _give_up(clip: Clip) -> Encoded:
    """Placeholder for a clip that killed its worker."""
    from mer_dist.corpus.decode import text_only

    return _encode(text_only(clip, f"the decoder crashed on it or took over {workers.SECONDS} s"))


def _encode(decoded) -> Encoded:
    from mer_dist.corpus.sound import SILENT
    from mer_dist.shards.encode import encode

    if not decoded.usable:
        return Encoded(clip=decoded.clip, problems=decoded.problems)
    return encode(
        decoded.clip,
        frames=decoded.frames,
        whole=decoded.whole,
        samples=decoded.samples,
        seconds=decoded.seconds,
        face=decoded.face,
        missing=decoded.missing,
        problems=decoded.problems,
        remarks=[*decoded.remarks, *decoded.clip.remarks],
        silent=SILENT in decoded.remarks,
    )
