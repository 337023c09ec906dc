"""WAV files that store each sample in more bytes than its bits need, as 24 bits in 32; FFmpeg misreads them.

FFmpeg derives the bytes from the bits (libavformat/riffdec.c), and reads 24 bits in 4 bytes as floating
point, as an old editor wrote them. Here the samples are presented as filling their bytes: their valid bits
are the uppermost, and zeros follow (Microsoft, Multiple channel audio data and WAVE files). ALSA's S24_LE
differs, though its recorder writes the same header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

EXTENSIBLE, INTEGERS = 0xFFFE, 1
#: Maximum number of chunks before the samples, and bytes of samples that are inspected.
MOST_CHUNKS, LOOKED_AT = 100, 2**22
#: Magnitudes that show real floating-point samples, where full scale is 2^23.
LEAST, MOST = 2.0**-16, 2.0**25


@dataclass(kw_only=True)
class _Form:
    """The sample format in the header of a WAV, and offsets."""

    #: Offsets of the format, and of the samples and their end.
    offset: int
    start: int
    end: int
    tag: int
    #: Bytes of a sample, and bits used of it.
    width: int
    bits: int

    @property
    def wide(self) -> bool:
        return 2 <= self.width <= 4 and 0 < self.bits <= 8 * (self.width - 1)


class Filled:
    """A file object with the bytes of such a file as if each sample filled its bytes."""

    def __init__(self, file: BinaryIO, form: _Form, shift: int):
        self._file, self._form, self._shift = file, form, shift
        bits = 8 * form.width
        #: Offset -> the byte to read there: the low byte of each field that counts bits.
        self._replaced = {form.offset + 14: bits} | (
            {form.offset + 18: bits} if form.tag == EXTENSIBLE else {}
        )
        file.seek(0)

    def read(self, count: int) -> bytes:
        at, form = self.tell(), self._form
        if at < form.start:
            header = bytearray(self._file.read(min(count, form.start - at)))
            for offset in self._replaced.keys() & range(at, at + len(header)):
                header[offset - at] = self._replaced[offset]
            return bytes(header)
        if not self._shift or at >= form.end:
            return self._file.read(count)
        skip = (at - form.start) % 4
        self._file.seek(at - skip)
        raw = self._file.read(min(count, form.end - at) + skip + 3)
        whole = np.frombuffer(raw[: len(raw) // 4 * 4], "<i4") << self._shift
        got = whole.tobytes()[skip : skip + min(count, form.end - at)]
        self._file.seek(at + len(got))
        return got

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def filled(path: Path) -> Filled | None:
    """The file to read instead of ``path``, to be closed by the caller; None if FFmpeg reads it correctly."""
    file = open(path, "rb")  # noqa: SIM115
    form = _form(file)
    if form is not None and form.wide and (shift := _shift(file, form)) is not None:
        return Filled(file, form, shift)
    file.close()
    return None


def _form(file: BinaryIO) -> _Form | None:
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return None
    offset, chunk = 12, None
    for _ in range(MOST_CHUNKS):
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8:
            return None
        kind, size = struct.unpack("<4sI", head)
        if kind == b"fmt ":
            chunk = (offset + 8, file.read(min(size, 40)))
        if kind == b"data":
            return _understood(chunk, offset + 8, size) if chunk else None
        offset += 8 + size + size % 2
    return None


def _understood(chunk: tuple[int, bytes], start: int, size: int) -> _Form | None:
    offset, content = chunk
    if len(content) < 16:
        return None
    tag, channels, _, _, align, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == EXTENSIBLE and len(content) == 40:
        bits = struct.unpack("<H", content[18:20])[0] or bits
        kind = struct.unpack("<H", content[24:26])[0]
    else:
        kind = tag
    if kind != INTEGERS or not channels or align % channels:
        return None
    return _Form(offset=offset, start=start, end=start + size, tag=tag, width=align // channels, bits=bits)


def _shift(file: BinaryIO, form: _Form) -> int | None:
    """The bits by which samples must be shifted up, 0 in most files; None if they are floating point."""
    if form.width < 4:
        return 0
    file.seek(form.start)
    content = file.read(min(LOOKED_AT, form.end - form.start))
    samples = np.frombuffer(content[: len(content) // 4 * 4], "<i4")
    samples = samples[samples != 0]
    sizes = np.abs(samples.view("<f4").astype(float))
    if len(samples) and form.tag == INTEGERS and ((sizes >= LEAST) & (sizes <= MOST)).all():
        return None
    spare = 32 - form.bits
    upper = not (samples & (2**spare - 1)).any()
    return 0 if upper or (samples >> (form.bits - 1) != samples >> 31).any() else spare
