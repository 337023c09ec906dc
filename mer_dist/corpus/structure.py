"""The outer structure of a media file, where FFmpeg passes over what people must know: what follows a
recording in its file and is not read, and why nothing of a file can be read."""

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
#: Bytes of it that are told: half a second of 16 kHz in 16 bit.
LEAST_BEHIND = 16_000
#: Boxes, chunks or tags that are looked at; an hour of FLV has some hundred thousand.
MOST_PARTS = 1_000_000
#: Bytes that are searched at once, and places that may turn out to be a video's beginning.
BLOCK, MOST_PLACES = 2**20, 16
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def followed(path: Path) -> bool:
    """Whether a whole second recording stands behind the first, as ``cat a.mp4 b.mp4`` leaves it.

    Looked for in the formats of which FFmpeg reads the first alone: mp4 and its kin, WAV, FLV and ASF.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if head[4:8] in (b"ftyp", b"moov"):
        kinds = [kind for kind, _ in _boxes(path)]
        # Fragments are read wherever they stand.
        return kinds.count(b"moov") > 1 and b"moof" not in kinds
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        size = struct.unpack("<I", head[4:8])[0] + 8
        return _at(path, size + size % 2, 4) == b"RIFF"
    if head[:3] == b"FLV":
        return _flv_again(path)
    return head == ASF and _asf_again(path)


def goes_on(path: Path) -> bool:
    """Whether bytes that are no chunk stand behind the sound of a WAV, as when a recorder writes its header first
    and is interrupted before it brings it up to date."""
    whole = path.stat().st_size
    head = _at(path, 0, 12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    offset, heard = 12, False
    for _ in range(MOST_PARTS):
        head = _at(path, offset, 8)
        if whole - offset < LEAST_BEHIND:
            return False
        kind, size = struct.unpack("<4sI", head)
        if not _is_chunk(head, whole - offset):
            padding = _is_chunk(_at(path, offset - 1, 8), whole - offset + 1)
            return heard and not padding and head[:3] != b"ID3" and any(_at(path, offset, BLOCK))
        if kind == b"data" and not size:
            return False  # It was written as a stream, and is read to its end.
        heard |= kind == b"data"
        offset += 8 + size + size % 2
    return False


def _is_chunk(head: bytes, room: int) -> bool:
    kind, size = struct.unpack("<4sI", head)
    return all(32 <= letter < 127 for letter in kind) and 8 + size <= room + 1


def motion_photo(path: Path) -> bool:
    """Whether a video is hidden in a still picture: an mp4 behind a JPEG, or in the box of HEIC for it."""
    head = _at(path, 0, 8)
    if head[4:] == b"ftyp":
        return b"mpvd" in [kind for kind, _ in _boxes(path)]
    if head[:3] != b"\xff\xd8\xff":
        return False
    starts = islice(_places(path, b"ftyp"), MOST_PLACES)
    return any({b"moov", b"moof"} & {kind for kind, _ in _boxes(path, offset - 4)} for offset in starts)


def _places(path: Path, mark: bytes) -> Iterator[int]:
    """Where some bytes stand in a file."""
    with open(path, "rb") as file:
        base, held = 0, b""
        while block := file.read(BLOCK):
            held += block
            found = held.find(mark)
            while found >= 0:
                yield base + found
                found = held.find(mark, found + 1)
            kept = len(mark) - 1
            base, held = base + len(held) - kept, held[-kept:]


def remedy(path: Path) -> str:
    """What to say of a file of which nothing can be read, after the reason that FFmpeg gives."""
    try:
        return _remedy(path, _at(path, 0, 32))
    except OSError:
        return ""  # FFmpeg has given that reason.


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
    """Kind and place of every box on the outermost level of an mp4 that begins at ``offset``."""
    whole = path.stat().st_size
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
            if size < 8 or offset + size > whole:
                return
            offset += size


def _flv_again(path: Path) -> bool:
    """Whether a header stands where a tag should."""
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
    """Whether a second header object stands on the outermost level."""
    whole, offset = path.stat().st_size, 0
    with open(path, "rb") as file:
        for number in range(MOST_PARTS):
            file.seek(offset)
            head = file.read(24)
            if len(head) < 24:
                return False
            if number and head[:16] == ASF:
                return True
            size = struct.unpack("<Q", head[16:])[0]
            if size < 24 or offset + size >= whole:
                return False
            offset += size
    return False
