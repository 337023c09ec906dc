"""When the frames of a video are shown: by their timestamps if plausible, or by their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import numpy as np

#: In formats that allow concatenation a longer pause, in seconds, is a seam, as in the program ffmpeg.
LONGEST_PAUSE = 10.0
#: In every format a pause longer than that, and than so many median steps, may be a clock reset.
LEAP = 20
#: With so many packets per timestamp the times are useless. Fast cameras that round to ms have fewer.
SHARED = 4
UNLIKELY = "times of its frames that cannot be so (a leap, or all the same); they were taken by their order"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the timestamps of a video's packets are reliable."""

    #: False if they are all the same: frames go by their order and the nominal rate.
    stamped: bool = True
    #: Whether a long pause is a clock leap: the next frame follows at once.
    leaps: bool = False

    @property
    def whole(self) -> bool:
        return self.stamped and not self.leaps


def trust(base: float, times: Sequence[int | None], heard: Callable[[], float]) -> Trust:
    """How reliable the timestamps are; ``times`` are in ticks of ``base`` seconds.

    A long pause may be real: a still picture, a camera that waits for motion. It counts as a leap if pauses
    fill most of the video, its other frames follow closely, and no sound lasts as long.

    Args:
        heard: gives the seconds of sound in the file; called only if there is such a pause.
    """
    known = np.sort([time for time in times if time is not None]) * base
    if len(known) < 2:
        return Trust()
    if len(np.unique(known)) < max(2, len(known) / SHARED):
        return Trust(stamped=False)
    steps = np.diff(known)
    pauses = steps[steps > max(LONGEST_PAUSE, LEAP * np.median(steps))].sum()
    length = known[-1] - known[0]
    return Trust(leaps=bool(2 * pauses > length and 2 * heard() < length))


class Clock:
    """Display times of decoded frames, which a decoder gives in display order.

    So a presentation time (PTS) that goes back is wrong. Then the decoding time (DTS) is better, as in
    libavcodec's ``guess_correct_pts``. If it also goes back or leaps ahead, another recording begins and
    follows the previous one. A frame without a time comes one step after the last, the first at ``start``.
    """

    def __init__(self, container, stream, start: float = 0.0, worth: Trust = Trust()):
        self.base = stream.time_base
        #: Seconds per frame; like FFmpeg, assume 25 frames per second if the stream has no rate.
        self.step = float(1 / (stream.guessed_rate or 25))
        # AVI stores the DTS of a frame and not its PTS; they differ if there are B-frames.
        self.trusted = not ("avi" in container.format.name and stream.codec_context.has_b_frames)
        self.pieced = worth.leaps or bool(container.format.flags & av.format.Flags.ts_discont.value)
        self.stamped = worth.stamped
        self.start, self.shift, self.last = start, 0.0, -np.inf

    def tells(self, shown: Sequence[int | None], sent: Sequence[int | None]) -> bool:
        """Whether the times of the packets, in the order of the file, are the times of the frames."""
        steps = np.diff([time for time in sent if time is not None]) * float(self.base)
        seams = (steps < 0) | (self.pieced & (steps > LONGEST_PAUSE))
        return self.stamped and self.trusted and None not in shown and not seams.any()

    def time(self, frame: av.VideoFrame) -> float:
        """When the next frame is shown, in seconds."""
        own, sent = (None if ticks is None else float(ticks * self.base) for ticks in (frame.pts, frame.dts))
        self.trusted = self.trusted and (own is None or own + self.shift >= self.last)
        stated = (own if self.trusted and own is not None else sent) if self.stamped else None
        after = max(self.start, self.last + self.step)
        if stated is None:
            self.last = after
            return after
        if self.last > -np.inf and self._seam(stated + self.shift):
            self.shift = after - stated
        self.last = stated + self.shift
        return self.last

    def _seam(self, time: float) -> bool:
        return time < self.last or self.pieced and time > self.last + LONGEST_PAUSE
