"""A decoded frame as a player shows it: its pixels square, upright, and no larger than is needed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata import sidedata

#: Larger frames are scaled down when they are decoded; a face in them still exceeds 224 pixels.
LONGEST_SIDE = 1280
#: No camera, disc or broadcast has pixels so many times as wide as high; the oddest of H.264's table are 2.9.
ODDEST_PIXEL = 4
#: How far the sides of a frame may be from level and upright, in degrees, to count as that.
TOLERANCE = 5
ODD_PIXELS = f"pixels said to be over {ODDEST_PIXEL} times as long one way as the other, taken as square"
ASKEW = "a display matrix that is no quarter turn or mirror image, so pictures are kept as they are stored"
#: Most of a whole clip lies within so many of 256 levels.
FEW_LEVELS = 16
NEARLY_EMPTY = (
    "pictures nearly of one shade throughout, as black ones or those of a sensor that uses few levels"
)
TRANSPARENT = "transparent pictures, laid on black"
OTHER_MATRIX = "colours coded in a rare way (constant luminance), shown by the nearest one that is supported"
#: Numbers of ITU-T H.273: matrices that swscale knows, and those without constant luminance next to the others.
BT709, UNSPECIFIED, YCGCO, BT2020, BT2020_CONSTANT, DERIVED, DERIVED_CONSTANT = 1, 2, 8, 9, 10, 12, 13
UNSUPPORTED = {11: "SMPTE ST 2085", 14: "ICtCp"}
#: Primaries -> the matrix that is derived from them; others are close to those of BT.709.
DERIVED_FROM = {4: 4, 5: 5, 6: 6, 7: 7, 9: BT2020}
#: From here on players take a picture to be HD, whose colours are coded as in BT.709, where nothing says it.
HD_WIDTH, HD_LINES = 1280, 720
#: Kinds of data beside a frame that FFmpeg may know and PyAV not yet: the next numbers after its list.
_LISTED: list[Any] = [
    kind.value for kind in sidedata.Type
]  # PyAV's own types do not say that they are numbers
UNLISTED = range(max(_LISTED) + 1, max(_LISTED) + 17)


class ColourError(Exception):
    """A picture whose colours cannot be shown; the message says why and what to do."""


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
    size = {"width": max(1, round(wide * scale)), "height": max(1, round(frame.height * scale))}
    if frame.colorspace == UNSPECIFIED and _is_hd(frame) and not frame.format.is_rgb:
        frame.colorspace = BT709
    image = _coloured(_field(frame) if frame.interlaced_frame else frame, size, remarks)
    if shot.matrix is None:
        return image
    return np.ascontiguousarray(turned(image, orientation(shot.matrix, remarks)))


def _is_hd(frame: av.VideoFrame) -> bool:
    return frame.width >= HD_WIDTH or frame.height >= HD_LINES


def _field(frame: av.VideoFrame) -> av.VideoFrame:
    """Every other line of a frame in which two pictures are woven, a fiftieth or sixtieth of a second apart.

    Players show the two one after the other; together, what moves has an edge like a comb.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    first = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    graph.link_nodes(first, graph.add("field", "type=top"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.vpull()


def _coloured(frame: av.VideoFrame, size: dict[str, Any], remarks: set[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB of ``size``.

    Raises:
        ColourError: its colours are coded in a way that cannot be shown.
    """
    if frame.colorspace in UNSUPPORTED:
        raise ColourError(
            f"its colours are coded as {UNSUPPORTED[frame.colorspace]}, which cannot be shown here; "
            "re-encode it with the colour matrix bt709 or bt2020nc in a program that knows this one"
        )
    if frame.colorspace == YCGCO and not frame.format.is_rgb:
        return _from_ycgco(frame, size)
    if frame.colorspace in (BT2020_CONSTANT, DERIVED, DERIVED_CONSTANT):
        if frame.colorspace != DERIVED:
            remarks.add(OTHER_MATRIX)
        derived = DERIVED_FROM.get(frame.color_primaries, BT709)
        frame.colorspace = BT2020 if frame.colorspace == BT2020_CONSTANT else derived
    if not _transparent(frame.format.name):
        return _converted(frame, "rgb24", size)
    image = _converted(frame, "rgba", size)
    opacity = image[..., 3:]
    if opacity.min() == 255:
        return _converted(frame, "rgb24", size)
    remarks.add(TRANSPARENT)
    return np.rint(image[..., :3] * (opacity / 255)).astype(np.uint8)


def _converted(frame: av.VideoFrame, form: str, size: dict[str, Any]) -> np.ndarray:
    """A frame of another pixel format and size, computed by one thread: the workers are the parallelism.

    Left to itself PyAV takes as many threads as there are processors for each frame, and keeps them as long
    as the frame; on a machine of many a worker has no room for so many stacks.
    """
    return frame.to_ndarray(format=form, interpolation="AREA", threads=1, **size)


def _transparent(form: str) -> bool:
    """Whether pictures of a pixel format may be transparent."""
    return form.startswith(
        ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya8", "ya16", "pal8", "ayuv", "vuya")
    )


def _from_ycgco(frame: av.VideoFrame, size: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 RGB by the equations 18 to 20 of ITU-T H.273, chapter 8.3."""
    whole = frame.color_range == 2 or frame.format.name.startswith("yuvj")
    frame.colorspace = BT709  # It stays as it is: from YUV to YUV no matrix is used.
    luma, green, orange = (plane.astype(float) for plane in _converted(frame, "yuv444p", size))
    if not whole:
        luma, green, orange = (luma - 16) * 255 / 219, (green - 128) * 255 / 224, (orange - 128) * 255 / 224
    else:
        green, orange = green - 128, orange - 128
    rest = luma - green
    image = np.stack([rest + orange, luma + green, rest - orange], axis=-1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def nearly_empty(frames: list[np.ndarray]) -> bool:
    """Whether all but a hundredth at either end of the pixels (H, W, 3) of a clip differ by a few levels."""
    thin = np.concatenate([frame[::4, ::4].reshape(-1) for frame in frames])
    low, high = np.percentile(thin, (1, 99))
    return bool(high - low < FEW_LEVELS)


def _believable(ratio: Fraction, remarks: set[str]) -> Fraction:
    if 1 <= ratio * ODDEST_PIXEL <= ODDEST_PIXEL**2:
        return ratio
    remarks.add(ODD_PIXELS)
    return Fraction(1)


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """(3, 3) int32 of a frame, from its container or its codec, as libavutil/display.h describes it."""
    # frame.side_data would stay with the frame and hold it, so that each lived on until Python looks for cycles.
    listed: Any = sidedata.SideDataContainer  # PyAV's own types leave its argument out
    try:
        side_data = listed(frame)
    except ValueError:
        side_data = listed(_listed(frame))
    data = side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _listed(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame without the kinds of side data that make PyAV refuse all of it, like EXIF in a photo."""
    graph = av.filter.Graph()
    graph.threads = 1
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
