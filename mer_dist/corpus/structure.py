"""The outer structure of a media file, for facts that FFmpeg does not report: unread content after a
recording, and why a file cannot be read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

FOLLOWED = "more recordings follow in the same file, which are not read"
MOTION_PHOTO = "a video stands behind the still in the same file, as in a motion photo; the still was used"
GOES_ON = (
    "sound goes on in the file after what its header states, which is all that is read; not closed properly?"
)
#: Bytes of it from which on it is reported: half a second of 16 kHz in 16 bit.
LEAST_BEHIND = 16_000
#: Maximum number of boxes, chunks or tags read; an hour of FLV has some hundred thousand.
MOST_PARTS = 1_000_000
#: Bytes searched at once, and candidate offsets for the start of a video.
BLOCK, MOST_PLACES = 2**20, 16
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def followed(path: Path) -> bool:
    """Whether a complete second recording follows the first, as after ``cat a.mp4 b.mp4``.

    Checked for the formats of which FFmpeg reads only the first: mp4 and its variants, WAV, FLV and ASF.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if head[4:8] in (b"ftyp", b"moov"):
        kinds = [kind for kind, _ in _boxes(path)]
        # Fragments are read at any position.
        return kinds.count(b"moov") > 1 and b"moof" not in kinds
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        size = struct.unpack("<I", head[4:8])[0] + 8
        return _at(path, size + size % 2, 4) == b"RIFF"
    if head[:3] == b"FLV":
        return _flv_again(path)
    return head == ASF and _asf_again(path)


def goes_on(path: Path) -> bool:
    """Whether bytes that are not a chunk follow the sound of a WAV, as if a recorder is interrupted before it
    updates its header."""
    total = path.stat().st_size
    head = _at(path, 0, 12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    offset, heard = 12, False
    for _ in range(MOST_PARTS):
        head = _at(path, offset, 8)
        if total - offset < LEAST_BEHIND:
            return False
        kind, size = struct.unpack("<4sI", head)
        if not _is_chunk(head, total - offset):
            padding = _is_chunk(_at(path, offset - 1, 8), total - offset + 1)
            return heard and not padding and head[:3] != b"ID3" and any(_at(path, offset, BLOCK))
        if kind == b"data" and not size:
            return False  # Written as a stream, so FFmpeg reads it to its end.
        heard |= kind == b"data"
        offset += 8 + size + size % 2
    return False


def _is_chunk(head: bytes, room: int) -> bool:
    kind, size = struct.unpack("<4sI", head)
    return all(32 <= letter < 127 for letter in kind) and 8 + size <= room + 1


def motion_photo(path: Path) -> bool:
    """Whether a still picture contains a video: an mp4 after a JPEG, or in the HEIC box for it."""
    head = _at(path, 0, 8)
    if head[4:] == b"ftyp":
        return b"mpvd" in [kind for kind, _ in _boxes(path)]
    if head[:3] != b"\xff\xd8\xff":
        return False
    starts = islice(_offsets(path, b"ftyp"), MOST_PLACES)
    return any({b"moov", b"moof"} & {kind for kind, _ in _boxes(path, offset - 4)} for offset in starts)


def _offsets(path: Path, magic: bytes) -> Iterator[int]:
    """The offsets of some bytes in a file."""
    with open(path, "rb") as file:
        base, held = 0, b""
        while block := file.read(BLOCK):
            held += block
            found = held.find(magic)
            while found >= 0:
                yield base + found
                found = held.find(magic, found + 1)
            kept = len(magic) - 1
            base, held = base + len(held) - kept, held[-kept:]


def remedy(path: Path) -> str:
    """What to add to FFmpeg's reason for an unreadable file."""
    try:
        return _remedy(path, _at(path, 0, 32))
    except OSError:
        return ""  # FFmpeg has reported this error.


def _remedy(path: Path, head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and head[20] & 2:
        return ": it is an animated WebP, which FFmpeg does not decode; convert it to GIF or mp4"
    if head[4:8] not in (b"ftyp", b"styp", b"moof", b"sidx", b"free", b"mdat", b"wide"):
        return ""
    kinds = [kind for kind, _ in _boxes(path)]
    if b"moov" in kinds:
        return ""
    if b"moof" in kinds:
        return (
            ": it is a segment of a stream without its beginning (no moov); put the initialisation segment "
            "before it: cat init.mp4 segment.m4s > clip.mp4"
        )
    return ": the recording was not finished or broke off (no moov, the table of its frames)"


def _at(path: Path, offset: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(count)


def _boxes(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Kind and offset of every top-level box of an mp4 that begins at ``offset``."""
    total = path.stat().st_size
    with open(path, "rb") as file:
        for _ in range(MOST_PARTS):
            file.seek(offset)
            head = file.read(16)
            if len(head) < 8:
                return
            size, kind = struct.unpack(">I4s", head[:8])
            yield kind, offset
            if size == 1 and len(head) == 16:
                size = struct.unpack(">Q", head[8:])[0]
            if size < 8 or offset + size > total:
                return
            offset += size


def _flv_again(path: Path) -> bool:
    """Whether there is a header in place of a tag."""
    offset = 13
    with open(path, "rb") as file:
        for _ in range(MOST_PARTS):
            file.seek(offset)
            head = file.read(11)
            if len(head) < 11 or head[:3] == b"FLV":
                return len(head) == 11
            offset += 15 + int.from_bytes(head[1:4], "big")
    return False


def _asf_again(path: Path) -> bool:
    """Whether there is a second top-level header object."""
    total, offset = path.stat().st_size, 0
    with open(path, "rb") as file:
        for number in range(MOST_PARTS):
            file.seek(offset)
            head = file.read(24)
            if len(head) < 24:
                return False
            if number and head[:16] == ASF:
                return True
            size = struct.unpack("<Q", head[16:])[0]
            if size < 24 or offset + size >= total:
                return False
            offset += size
    return False
