"""The sound and frames that a file's header states: shows what an interrupted download or copy lacks.

Only an explicit length counts, not one that FFmpeg estimates from file size and bit rate. A file that was
written into a pipe states none: the program could not go back to its header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

#: From this size on a RIFF size means "not known yet"; the exact value depends on the writer.
UNKNOWN_SIZE, UNKNOWN_LONG = 2**31 - 2**16, 2**63 - 2**16
#: FFmpeg's placeholder for the number of frames in an AVI header.
UNKNOWN_FRAMES = 2**30
#: Bytes per read, and the minimum number of zeros at the end of a file that are not just padding.
BLOCK, FEW_ZEROS = 2**16, 2**11
#: Formats of several streams whose header states the duration, other than Matroska and mp4.
RECORDINGS = ("asf", "flv", "gxf", "ivf", "mxf", "rm")
#: Formats whose header states the number of sound samples, which FFmpeg passes on.
SOUNDS = ("aiff", "au", "caf", "nistsphere", "rso", "tta", "wv")
#: GUID of ASF's file properties, and the first bit of their flags: a broadcast, length not known yet.
ASF_FILE, ASF_BROADCAST = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 1
#: Tolerated loss, in seconds and as a fraction: encoders pad and trim, headers are rounded.
SLACK_SECONDS, SLACK = 0.2, 0.05


def missing(heard: float, stated: float) -> str:
    """The message on a sound with ``heard`` decoded seconds; empty if it is complete."""
    return f"{heard:.1f} of {stated:.1f} s are there" if _short(heard, stated) else ""


def frames_missing(container, stream, path: Path, sent: Sequence[int | None]) -> str:
    """The message on missing frames of an AVI; ``sent`` are the packets' ticks, one tick per frame."""
    there = max((time for time in sent if time is not None), default=-1) + 1
    # A repeated frame has a tick but no packet; at the end of a complete file it leaves no trace.
    if container.format.name != "avi" or stream.frames >= UNKNOWN_FRAMES or _riff(path) == 1:
        return ""
    short = _short(*(float(count * stream.time_base) for count in (there, stream.frames)))
    return f"{there} of {stream.frames} frames are there" if short else ""


def promises_more(container, path: Path, end: float) -> bool:
    """Whether a recording, or fragmented mp4 with an index, states content after ``end`` seconds.

    Its length is that of its longest stream, so the other streams must be checked before it counts as a loss.
    """
    form = container.format.name
    fragments = "mp4" in form and not any(stream.frames for stream in container.streams)
    stated = fragments or "matroska" in form or form in RECORDINGS
    return stated and _short(end, _length(container, path))


def cut_off(container, path: Path) -> float:
    """Seconds at the end that the header states and no stream has; reads the file to its end."""
    length = _length(container, path)
    spans: dict[int, list[float]] = {}
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.size:
                scale = float(packet.time_base)
                spans.setdefault(packet.stream.index, []).append(
                    (packet.pts + (packet.duration or 0)) * scale
                )
    except (av.FFmpegError, IndexError):
        pass  # The file ends here, or streams begin that PyAV does not know.
    # The length is the end of the last packet. Allow one median step: the packet may lack a duration, and be
    # shown for long.
    steps = [float(np.median(np.diff(np.sort(own)))) if len(own) > 1 else np.inf for own in spans.values()]
    ends = [max(own) for own in spans.values()]
    latest = max((end + step for end, step in zip(ends, steps, strict=True)), default=0.0)
    return length - max(ends, default=0.0) if _short(latest, length) else 0.0


def _length(container, path: Path) -> float:
    """Seconds of a recording by its header."""
    # FFmpeg does not pass on the duration of an ASF if the file is shorter.
    return _asf(path) if container.format.name == "asf" else (container.duration or 0) / av.time_base


def _short(there: float, stated: float) -> bool:
    return stated - there > max(SLACK_SECONDS, SLACK * stated)


def seconds(container, stream, path: Path, heard: float) -> float:
    """The stated length of a sound with ``heard`` decoded seconds; ``heard`` if the file states none.

    Call it after all of it was read: a fragmented file states its length only piece by piece.
    """
    form = container.format.name
    if "mp4" in form:
        # Not the duration: a packet's stated duration may include a pause in a recording.
        return heard / max(_listed(container, stream), 1e-9)
    if form in PARTS:
        return heard / max(PARTS[form](path), 1e-9)
    if form == "flac":
        return _flac(bytes(stream.codec_context.extradata or b""))
    if form == "mp3":
        return _mp3(path, stream.codec_context.sample_rate)
    if form == "sox":
        return _sox(path)
    if form in SOUNDS:
        length = stream.frames if form == "caf" else stream.duration
        return float((length or 0) * stream.time_base)
    return heard


def _listed(container, stream) -> float:
    """The fraction of the packets in an mp4 header that are in the file."""
    entries = [entry for entry in stream.index_entries if entry.size]
    there = sum(entry.pos + entry.size <= container.size for entry in entries)
    return there / len(entries) if entries else 1.0


def _riff(path: Path) -> float:
    """The fraction that is in the file, of the sound of a WAV or its variants (64-bit, big-endian, Amiga's),
    or of the recording of an AVI."""
    total, long = path.stat().st_size, 0
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic not in (b"RIFF", b"RF64", b"BW64", b"RIFX", b"FORM"):
            return 1.0
        form = ">4sI4s" if magic in (b"RIFX", b"FORM") else "<4sI4s"
        file.seek(8)
        # A download may allocate the full size and fill it from the front; in a sound zeros are silence.
        total = _filled(path) if file.read(4) == b"AVI " else total
        while len(head := file.read(12)) == 12:
            kind, size, first = struct.unpack(form, head)
            offset = file.tell() - 4
            if kind == b"ds64":
                # The sizes of the file and of the sound, which do not fit 32 bits.
                long = int.from_bytes(file.read(12)[4:], "little")
            if kind in (b"data", b"BODY") or (kind, first) == (b"LIST", b"movi"):
                return _there(long or size, total - offset, UNKNOWN_LONG if long else UNKNOWN_SIZE)
            file.seek(offset + size + size % 2)
    return 1.0


def _there(size: int, found: int, unknown: int) -> float:
    """The fraction of ``size`` bytes that was found; 1 if ``size`` is not known."""
    return min(1.0, found / size) if 0 < size < unknown else 1.0


def _wave64(path: Path) -> float:
    """The fraction of the sound of Sony's Wave64 that is in the file; chunk sizes include their 24 bytes."""
    total, offset = path.stat().st_size, 40
    with open(path, "rb") as file:
        while file.seek(offset) < total and len(head := file.read(24)) == 24:
            size = int.from_bytes(head[16:], "little") - 24
            if head[:4] == b"data":
                return _there(size, total - offset - 24, UNKNOWN_LONG)
            if size < 0:
                break
            offset += 24 + size + -size % 8
    return 1.0


def _voc(path: Path) -> float:
    """The fraction of the sound blocks of a Creative Voice file that is in it; the last may be truncated."""
    total, stated, there = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        file.seek(20)
        offset = int.from_bytes(file.read(2), "little")
        while file.seek(offset) < total and len(head := file.read(4)) == 4 and head[0]:
            size = int.from_bytes(head[1:], "little")
            stated += size
            there += min(size, total - offset - 4)
            offset += 4 + size
    return there / stated if stated else 1.0


def _sox(path: Path) -> float:
    """Seconds of a file in SoX's own format, from its samples over all channels, rate and channels."""
    with open(path, "rb") as file:
        head = file.read(28)
    if len(head) < 28:
        return 0.0
    samples, rate, channels = struct.unpack("<8xQdI" if head[:4] == b".SoX" else ">8xQdI", head)
    return samples / channels / rate if channels and rate > 0 else 0.0


def _asf(path: Path) -> float:
    """Seconds by the file properties of an ASF, without the preroll; 0 if not known."""
    with open(path, "rb") as file:
        head = file.read(BLOCK)
    header = head[max(head.find(ASF_FILE), 0) :][24:92]
    if ASF_FILE not in head or len(header) < 68:
        return 0.0
    played, _, lead, flags = struct.unpack("<QQQI", header[40:68])
    return 0.0 if flags & ASF_BROADCAST else max(0.0, played / 1e7 - lead / 1e3)


def _filled(path: Path) -> int:
    """Bytes of a file up to the last that is not zero; all of them if the zeros at its end are few."""
    total = offset = path.stat().st_size
    with open(path, "rb") as file:
        while offset:
            start = max(0, offset - BLOCK)
            file.seek(start)
            if rest := file.read(offset - start).rstrip(b"\0"):
                offset = start + len(rest)
                break
            offset = start
    return offset if total - offset >= FEW_ZEROS else total


def _flac(header: bytes) -> float:
    """Seconds from STREAMINFO: 20 bits of rate, 8 of channels and depth, 36 of samples, 0 if not known."""
    if len(header) < 18:
        return 0.0
    packed = int.from_bytes(header[10:18], "big")
    return (packed & (2**36 - 1)) / max(packed >> 44, 1)


def _mp3(path: Path, rate: int) -> float:
    """Seconds from the first frame by the encoder, Xing's or Fraunhofer's, if it states the frame count."""
    with open(path, "rb") as file:
        head = file.read(10)
        while head[:3] == b"ID3" and len(head) == 10:
            # Tag sizes use 7 bits of each byte.
            file.seek(
                sum((byte & 127) << 7 * (9 - offset) for offset, byte in enumerate(head) if offset > 5), 1
            )
            head = file.read(10)
        head += file.read(2000)
    head = head[max(head.find(b"\xff"), 0) :][:200]
    samples = 1152 if rate >= 32_000 else 576
    for magic, offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        start = head.find(magic)
        header = head[start : start + offset + 4]
        if start < 0 or len(header) < offset + 4 or (offset == 8 and not header[7] & 1):
            continue
        return int.from_bytes(header[offset:], "big") * samples / max(rate, 1)
    return 0.0


#: Format -> the fraction of its stated sound or recording that is in the file, by bytes.
PARTS: dict[str, Callable[[Path], float]] = {
    **dict.fromkeys(("avi", "wav", "iff"), _riff),
    "w64": _wave64,
    "voc": _voc,
}
