"""When the frames of a video come on screen: by their own times where these can be so, or by their order."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np

#: In formats that may be pieced together a pause of more seconds is a seam, as for the program ffmpeg.
LONGEST_PAUSE = 10.0


class Clock:
    """The times of frames that leave a decoder, which they do in the order in which they are shown.

    So a time that goes back is wrong. Then the times at which packets are sent are better, as in
    libavcodec's ``guess_correct_pts``. Where these, too, go back or leap ahead, another recording begins:
    it follows the one before. A frame without any time comes one step after the last, the first at ``start``.
    """

    def __init__(self, container, stream, start: float = 0.0):
        self.base = stream.time_base
        #: Seconds from frame to frame; FFmpeg, too, takes a stream that does not say it to have 25 a second.
        self.step = float(1 / (stream.guessed_rate or 25))
        # AVI knows when a frame is sent, and not, which differs where there are B-frames, when it is shown.
        self.trusted = not ("avi" in container.format.name and stream.codec_context.has_b_frames)
        self.pieced = bool(container.format.flags & av.format.Flags.ts_discont.value)
        self.start, self.shift, self.last = start, 0.0, -np.inf

    def tells(self, shown: Sequence[int | None], sent: Sequence[int | None]) -> bool:
        """Whether the times of the packets, in the order of the file, are the times of the frames."""
        steps = np.diff([time for time in sent if time is not None]) * float(self.base)
        seams = (steps < 0) | (self.pieced & (steps > LONGEST_PAUSE))
        return self.trusted and None not in shown and not seams.any()

    def time(self, frame: av.VideoFrame) -> float:
        """Seconds at which the next frame is shown."""
        own, sent = (None if stamp is None else float(stamp * self.base) for stamp in (frame.pts, frame.dts))
        self.trusted = self.trusted and (own is None or own + self.shift >= self.last)
        told = own if self.trusted and own is not None else sent
        after = max(self.start, self.last + self.step)
        if told is None:
            self.last = after
            return after
        if self.last > -np.inf and self._seam(told + self.shift):
            self.shift = after - told
        self.last = told + self.shift
        return self.last

    def _seam(self, time: float) -> bool:
        return time < self.last or self.pieced and time > self.last + LONGEST_PAUSE
