"""Clips of a shard as they were encoded, read back from its tar."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip
from mer_dist.shards import shard_index
from mer_dist.shards.encode import Encoded
from mer_dist.shards.reader import Reader
from mer_dist.storage.run_folder import ShardFolder


def batch(shards_folder: Path, number: int, clips: Iterable[Clip]) -> list[Encoded]:
    """These clips of a shard, in its order; those of which nothing was stored come last.

    Raises:
        UserError: the tar holds other bytes than were written.
    """
    path = ShardFolder(shards_folder).record(number)
    record, rows = shard_index.record_of(shards_folder, number), shard_index.read_rows(path)
    left = {clip.name: clip for clip in clips}
    reader, found = Reader(shards_folder), []
    for row in rows:
        if row.name not in left:
            continue
        clip, members = left.pop(row.name), reader.members(row)
        if shard_index.checksum(members.items()) != row.checksum:
            tar = ShardFolder(shards_folder).tar(number)
            raise UserError(f"{tar}, clip {row.name}: other bytes than were written; delete it and run shard")
        found.append(
            Encoded(
                clip=clip,
                duration=row.duration,
                missing=row.missing,
                frames=row.frames,
                samples=row.samples,
                face=json.loads(members["json"])["face"] or not row.frames,
                members=members,
                content=record.content.get(row.name),
                remarks=[kind for kind, names in record.remarks.items() if row.name in names],
            )
        )
    found += [Encoded(clip=clip) for clip in left.values()]
    for one in found:
        one.problems = [problem for problem in record.problems if problem.name == one.clip.name]
    return found
