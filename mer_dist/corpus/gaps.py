"""Gaps in a sound: holes, constant stretches, samples that are not finite."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np

HOLE = "sound has a hole that was closed up"
HOLES = "sound has short holes, half a second or more together, that were closed up"
OVERLAP = (
    "sound with more samples than its times have room for, half a second or more together, as of a clock that drifts; "
    "all of it was kept, so it may lag behind the picture"
)
#: Seconds without sound that are reported; a late packet leaves a shorter hole.
HOLE_SECONDS = 0.5
#: Tolerated offset of a packet in seconds: containers round to milliseconds, and no packet of speech is
#: shorter. Smaller offsets add up, so that many small losses count as well.
ROUNDED = 5e-3

STILL_END = "sound ends in exact zeros (or one value held) for a quarter of its length or more; cut short?"
STILL = "sound stands at exact zeros (or one value held) for a quarter of its length or more, and goes on"
#: Reported seconds, and fraction of the sound: pauses of speech, and the end of a fade, are shorter.
STILL_SECONDS, STILL_PART = 0.5, 0.25


@dataclass(kw_only=True)
class Gaps:
    """Follows the frames of a sound in their order."""

    #: Whether samples are stored uncompressed (PCM). Codecs turn merely quiet sound into zeros.
    plain: bool = False
    #: Samples that are not finite or absurdly large, and samples inspected, over all channels.
    bad: int = 0
    samples: int = 0
    #: All samples, at the rate of the file.
    length: int = 0
    rate: int = 1
    #: Whether there is a long hole; lost seconds, net of packets that come early; and their maximum.
    hole: bool = False
    lost: float = 0.0
    most_lost: float = 0.0
    #: Seconds by which packets come before they are due, net of holes, and their maximum. A packet that comes much
    #: earlier is of another recording, or a repetition.
    ahead: float = 0.0
    most_ahead: float = 0.0
    #: Marks of a coded bitstream in samples of PCM.
    marks: int = 0
    #: When the next frame is due, in seconds; None if unknown.
    due: float | None = None
    #: Time of the first frame in seconds; None if unknown.
    start: float | None = None
    #: Start of the current constant stretch, the last sample (C,), and the longest stretch before.
    still_from: int = 0
    last: np.ndarray | None = None
    longest: int = 0

    def follow(self, frame: av.AudioFrame) -> None:
        if not self.length:
            self.start = frame.time
        if self.plain and not frame.format.is_planar:
            rows = frame.to_ndarray().reshape(frame.samples, -1)
            self._compare(rows)
            self.marks += _marks(rows)
        self.length += frame.samples
        self.rate = frame.sample_rate
        if frame.time is None:
            self.due = None
            return
        late = 0.0 if self.due is None else frame.time - self.due
        begin = self.due if self.due is not None and abs(late) <= ROUNDED else frame.time
        if begin == frame.time:
            self.hole |= late > HOLE_SECONDS
            self.lost = max(0.0, self.lost + late)
            self.most_lost = max(self.most_lost, self.lost)
            self.ahead = max(0.0, self.ahead - late) if late > -HOLE_SECONDS else 0.0
            self.most_ahead = max(self.most_ahead, self.ahead)
        self.due = begin + frame.samples / frame.sample_rate

    def _compare(self, rows: np.ndarray) -> None:
        """``rows`` (s, C), the next samples."""
        if self.last is None or self.last.shape != rows[:1].shape:
            self.last = rows[:1]
        before = np.concatenate([self.last, rows[:-1]])
        changes = self.length + np.flatnonzero((rows != before).any(1))
        if len(changes):
            self.longest = max(self.longest, int(np.diff(changes, prepend=self.still_from).max()))
            self.still_from = int(changes[-1])
        self.last = rows[-1:].copy()

    @property
    def damage(self) -> str:
        return f"{self.bad} of its {self.samples} samples are not finite" if self.bad else ""

    @property
    def remarks(self) -> list[str]:
        """Kinds of remarks on holes."""
        if self.hole:
            return [HOLE]
        # Most containers with such packets have a clock of milliseconds.
        holes = [HOLES] * (self.most_lost > HOLE_SECONDS - 1e-3)
        return holes + [OVERLAP] * (self.most_ahead > HOLE_SECONDS)

    @property
    def still(self) -> list[str]:
        """Kinds of remarks on constant stretches."""
        most = max(STILL_SECONDS * self.rate, STILL_PART * self.length)
        ends = self.plain and self.length - self.still_from >= most
        return [STILL_END] * ends + [STILL] * (self.longest >= most)


def _marks(rows: np.ndarray) -> int:
    """How often samples (s, C) begin a burst of IEC 61937, by which S/PDIF carries AC-3, DTS or Dolby E."""
    if rows.dtype.kind != "i" or rows.dtype.itemsize not in (2, 4):
        return 0
    words = (rows.ravel() >> 8 * (rows.dtype.itemsize - 2)).astype(np.int16).view(np.uint16)
    return int(((words[:-1] == 0xF872) & (words[1:] == 0x4E1F)).sum())
