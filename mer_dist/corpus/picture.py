"""A decoded frame as a player shows it: its pixels square, upright, and no larger than is needed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

#: Larger frames are scaled down when they are decoded; a face in them still exceeds 224 pixels.
LONGEST_SIDE = 1280
#: No camera, disc or broadcast has pixels so many times as wide as high; the oddest of H.264's table are 2.9.
ODDEST_PIXEL = 4
#: How far the sides of a frame may be from level and upright, in degrees, to count as that.
TOLERANCE = 5
ODD_PIXELS = f"pixels said to be over {ODDEST_PIXEL} times as long one way as the other, taken as square"
ASKEW = "a display matrix that is no quarter turn or mirror image, so pictures are kept as they are stored"
#: Kinds of data beside a frame that FFmpeg may know and PyAV not yet: the next numbers after its list.
_LISTED: list[Any] = [kind.value for kind in Type]  # PyAV's own types do not say that they are numbers
UNLISTED = range(max(_LISTED) + 1, max(_LISTED) + 17)


@dataclass(kw_only=True)
class Shot:
    """A decoded frame, and what the file says of it."""

    frame: av.VideoFrame
    #: Seconds at which it comes on screen.
    time: float
    #: The width of a pixel divided by its height; None or 0 if unknown.
    ratio: Fraction | None
    #: (3, 3) int32, how it is to be turned and mirrored; None if it is not.
    matrix: np.ndarray | None


def shown(shot: Shot, remarks: set[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a frame with square pixels, then turned and mirrored as its matrix says.

    What the file says of its picture and cannot be followed goes to ``remarks``.
    """
    frame = shot.frame
    wide = frame.width * float(_believable(shot.ratio or Fraction(1), remarks))
    scale = min(1.0, LONGEST_SIDE / max(wide, frame.height))
    image = frame.to_ndarray(
        format="rgb24",
        interpolation="AREA",
        width=max(1, round(wide * scale)),
        height=max(1, round(frame.height * scale)),
    )
    if shot.matrix is None:
        return image
    return np.ascontiguousarray(turned(image, orientation(shot.matrix, remarks)))


def _believable(ratio: Fraction, remarks: set[str]) -> Fraction:
    if 1 <= ratio * ODDEST_PIXEL <= ODDEST_PIXEL**2:
        return ratio
    remarks.add(ODD_PIXELS)
    return Fraction(1)


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """(3, 3) int32 of a frame, from its container or its codec, as libavutil/display.h describes it."""
    data: Any
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        data = _listed(frame).side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _listed(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame without the kinds of side data that make PyAV refuse all of it, like EXIF in a photo."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    for kind in UNLISTED:
        remover = graph.add("sidedata", f"mode=delete:type={kind}")
        last.link_to(remover)
        last = remover
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.vpull()


def orientation(matrix: np.ndarray, remarks: set[str]) -> np.ndarray:
    """(2, 2) int: where a step to the right, and one down, in the stored frame lead on the screen.

    It is one of the eight ways to lay a frame down. A matrix of zeros says nothing, and one that lays it
    in any other way is not followed: the frame is taken as it is stored.

    Args:
        matrix: (3, 3); x' = m00 x + m10 y and y' = m01 x + m11 y. How far it moves or scales is of no
            interest: players show the whole frame, and libavformat tells its shape as a pixel's ratio.
    """
    steps = matrix[:2, :2].astype(float)
    if not steps.any():
        return np.eye(2, dtype=int)
    steps /= np.maximum(np.hypot(*steps.T)[:, None], 1)
    nearest = np.rint(steps).astype(int)
    if abs(steps - nearest).max() > np.sin(np.radians(TOLERANCE)) or abs(round(np.linalg.det(nearest))) != 1:
        remarks.add(ASKEW)
        return np.eye(2, dtype=int)
    return nearest


def turned(image: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """``image`` (H, W, …) laid down as ``orientation`` says."""
    if not steps[0, 0]:
        image = image.swapaxes(0, 1)
    across, down = steps.sum(axis=0)
    return image[::down, ::across]
