"""Pictures, sound and transcript of a few clips, from the shards that hold them."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from mer_dist.report.run_data import Media
from mer_dist.report.run_files import RunFiles
from mer_dist.shards import shard_index
from mer_dist.shards.encode import RATE, flac, jpeg
from mer_dist.shards.reader import Reader, Sample
from mer_dist.shards.shard_index import Row
from mer_dist.storage.run_folder import ShardFolder

#: Frames of a strip, the side of each and the gap between them in pixels.
PICTURES, SIDE, GAP = 4, 112, 4
#: Of the JPEG: a strip takes about 10 KiB.
QUALITY = 80
#: Of longer sound the beginning is embedded: 20 s of FLAC take at most about 600 KiB.
EMBEDDED_SAMPLES = 20 * RATE


def read(files: RunFiles, shard_of: dict[str, int], names: Iterable[str], sound: str) -> dict[str, Media]:
    """Name -> what is stored of the clip; no other shard is opened than those that hold one of them.

    A clip whose shard is gone is left out; so is one that cannot be read, which is noted.

    Args:
        sound: ``report.sound``.
    """
    by_shard: dict[int, set[str]] = defaultdict(set)
    for name in names:
        if name in shard_of:
            by_shard[shard_of[name]].add(name)
    reader = Reader(files.run.shards)
    found: dict[str, Media] = {}
    try:
        for number, wanted in sorted(by_shard.items()):
            found |= _of_shard(files, reader, number, wanted, sound)
    except ModuleNotFoundError as error:
        files.notes.append(
            f"pictures and sound of clips are left out, as {error.name} is not installed: "
            "pip install 'mer-dist[train]'"
        )
    reader.close()
    return found


def _of_shard(files: RunFiles, reader: Reader, number: int, wanted: set[str], sound: str) -> dict[str, Media]:
    folder = ShardFolder(files.run.shards)
    index = files.read(folder.record(number), lambda _: shard_index.join(folder.folder, [number]))
    if index is None or not folder.tar(number).exists():
        return {}
    found, damaged = {}, {}
    for place, name in enumerate(index.names):
        if name in wanted:
            try:
                found[name] = _media(reader, index[place], sound)
            except ModuleNotFoundError:
                raise
            except Exception as error:  # On damaged content a decoder may raise anything at all.
                damaged[name] = error
    if damaged:
        where, why = files.run.relative(folder.tar(number)), next(iter(damaged.values()))
        files.notes.append(f"{where} is damaged; not shown of it: {', '.join(damaged)} ({why})")
    return found


def _media(reader: Reader, row: Row, sound: str) -> Media:
    """
    Raises:
        ValueError: its bytes are not those that were stored.
    """
    members = reader.members(row)
    if shard_index.checksum(members.items()) != row.checksum:
        raise ValueError("its bytes are not those that were stored; run verify")
    sample = Sample.of(row, members, "")
    media = Media(transcript=row.transcript, seconds=row.duration, missing=row.missing)
    if sample.jpegs:
        media.strip, media.pictures = _strip(sample), min(PICTURES, len(sample.jpegs))
    if sample.flac and sound != "none":
        media.sound = sample.flac
        if sound == "embed" and row.samples > EMBEDDED_SAMPLES:
            media.sound, media.beginning = _beginning(sample.flac), EMBEDDED_SAMPLES / RATE
    return media


def _strip(sample: Sample) -> bytes:
    """A few frames, evenly spaced, side by side."""
    import cv2

    images = [
        cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in sample.images(PICTURES)
    ]
    gap = np.full((SIDE, GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, gap)]
    return jpeg(np.hstack(parts[:-1]), QUALITY)


def _beginning(content: bytes) -> bytes:
    import soundfile

    samples, _ = soundfile.read(io.BytesIO(content), EMBEDDED_SAMPLES, dtype="int16")
    return flac(samples)
