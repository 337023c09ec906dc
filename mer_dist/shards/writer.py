"""Writes tars that plain webdataset can read, and the offset of every member."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from re import sub
from tarfile import BLOCKSIZE

from webdataset import TarWriter

from mer_dist.shards import shard_index
from mer_dist.shards.encode import Encoded
from mer_dist.shards.shard_index import FACELESS, Row
from mer_dist.storage.files import atomic, digest
from mer_dist.storage.run_folder import ShardFolder


def batches(encoded: Iterable[Encoded], clips: int, mebibytes: int) -> Iterator[list[Encoded]]:
    """Cut a stream of clips into shards of at most ``clips`` clips or about ``mebibytes``.

    A full shard is yielded when the next storable clip arrives, so that unusable clips never make a
    shard of their own, unless there are no others.
    """
    batch: list[Encoded] = []
    stored = size = 0
    for clip in encoded:
        if clip.members and (stored >= clips or size >= mebibytes << 20):
            yield batch
            batch, stored, size = [], 0, 0
        batch.append(clip)
        stored += bool(clip.members)
        size += sum(BLOCKSIZE + _padded(len(content)) for content in clip.members.values())
    if batch:
        yield batch


def write(
    folder: Path, number: int, batch: list[Encoded], *, fingerprint: str, sources: dict[str, str]
) -> list[Row]:
    """Write shard ``number``: the tar, then its rows and record. Equal batches give equal bytes.

    Args:
        fingerprint: fingerprint of the settings.
        sources: clip name -> fingerprint of its sources.
    """
    stored = [clip for clip in batch if clip.members]
    path = ShardFolder(folder).tar(number)
    rows, sha256, size = [], "", 0
    if stored:
        with atomic(path) as temporary:
            rows = _write_tar(temporary, number, stored)
            sha256, size = digest(temporary), temporary.stat().st_size
    record = shard_index.ShardRecord(
        sha256=sha256,
        bytes=size,
        fingerprint=fingerprint,
        clips={clip.clip.name: sources[clip.clip.name] for clip in batch},
        problems=[problem for clip in batch for problem in clip.problems],
        faceless=sum((clip.frames > 0 and not clip.face) or FACELESS in clip.remarks for clip in stored),
        remarks=_by_kind(stored),
        content={clip.clip.name: clip.content for clip in stored if clip.content},
    )
    shard_index.write_rows(ShardFolder(folder).record(number), rows, record)
    return rows


def _by_kind(stored: list[Encoded]) -> dict[str, list[str]]:
    """Each kind of remark -> the names of its clips."""
    names: dict[str, list[str]] = {}
    for clip in stored:
        for remark in clip.remarks:
            names.setdefault(remark, []).append(clip.clip.name)
    return names


def key(name: str) -> str:
    """The key of a clip's members: its name, with ``%2E`` for a dot.

    WebDataset readers end a key at its first dot. A ``%`` that would start an escape becomes ``%25``, so
    that no two names share a key and :func:`name_of` restores each; any other ``%`` stays. The clip's JSON
    has the original name.
    """
    return sub(r"%(?=2E|25)", "%25", name).replace(".", "%2E")


def name_of(key: str) -> str:
    """The name of the clip whose members have this key."""
    return sub(r"%(2E|25)", lambda found: {"2E": ".", "25": "%"}[found[1]], key)


def _write_tar(path: Path, number: int, stored: list[Encoded]) -> list[Row]:
    rows = []
    # Without a fixed time the same clips would give different bytes every second.
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for clip in stored:
            members = {}
            for suffix, content in clip.members.items():
                tar.write({"__key__": key(clip.clip.name), suffix: content})
                # Counted from the end, because a long or non-ASCII name has a header of its own.
                members[suffix] = (tar.tarstream.offset - _padded(len(content)), len(content))
            rows.append(Row.of(clip, number, members))
    return rows


def _padded(size: int) -> int:
    return -(-size // BLOCKSIZE) * BLOCKSIZE
