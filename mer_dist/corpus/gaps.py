"""What lacks within a sound: holes, stretches that stand still, samples that are no numbers."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np

HOLE = "sound has a hole that was closed up"
HOLES = "sound has short holes, half a second or more together, that were closed up"
#: Seconds without sound that are told; a packet that is late leaves less.
HOLE_SECONDS = 0.5
#: Seconds by which a packet may stand off: milliseconds of a container are rounded, and no packet of speech
#: is shorter than this. What is off by less adds to the next, so that many small losses count all the same.
ROUNDED = 5e-3

STILL_END = "sound ends in exact zeros (or one value held) for a quarter of its length or more; cut short?"
STILL = "sound stands at exact zeros (or one value held) for a quarter of its length or more, and goes on"
#: Seconds that are told, and the part of the whole: pauses of speech, and the end of a fade, are shorter.
STILL_SECONDS, STILL_PART = 0.5, 0.25


@dataclass(kw_only=True)
class Gaps:
    """Follows the frames of a sound in their order."""

    #: Whether samples lie in the file as they are. Codecs make zeros of what is merely quiet.
    plain: bool = False
    #: Samples that are no numbers, or beyond any scale, and those that were looked at, of all channels.
    bad: int = 0
    samples: int = 0
    #: Samples of every kind, at the rate of the file.
    length: int = 0
    rate: int = 1
    #: A hole that is long enough, and seconds of all that are not made up by packets that come too early.
    hole: bool = False
    lost: float = 0.0
    most_lost: float = 0.0
    #: Seconds at which the next frame is due; None if that is not known.
    due: float | None = None
    #: Second of the first frame; None if that is not known.
    start: float | None = None
    #: Since which sample nothing changes, the last sample (C,), and the longest stretch before.
    still_from: int = 0
    last: np.ndarray | None = None
    longest: int = 0

    def follow(self, frame: av.AudioFrame) -> None:
        if not self.length:
            self.start = frame.time
        if self.plain and not frame.format.is_planar:
            self._compare(frame.to_ndarray().reshape(frame.samples, -1))
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
        return f"{self.bad} of its {self.samples} samples are no numbers" if self.bad else ""

    @property
    def remarks(self) -> list[str]:
        """Kinds of what is worth telling of holes."""
        if self.hole:
            return [HOLE]
        # The clock of most containers that hold such packets is of milliseconds.
        return [HOLES] * (self.most_lost > HOLE_SECONDS - 1e-3)

    @property
    def still(self) -> list[str]:
        """Kinds of what is worth telling of stretches in which no sample differs from the one before."""
        most = max(STILL_SECONDS * self.rate, STILL_PART * self.length)
        ends = self.plain and self.length - self.still_from >= most
        return [STILL_END] * ends + [STILL] * (self.longest >= most)
