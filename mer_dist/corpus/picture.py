"""Shows a decoded frame as a player does: square pixels, upright, and no larger than needed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata import sidedata

#: Larger frames are scaled down on decoding; a face in them still exceeds 224 pixels.
LONGEST_SIDE = 1280
#: No camera, disc or broadcast has such an extreme pixel aspect ratio; the maximum in H.264's table is 2.9.
ODDEST_PIXEL = 4
#: Tolerated rotation of a frame from a quarter turn, in degrees.
TOLERANCE = 5
ODD_PIXELS = f"pixels said to be over {ODDEST_PIXEL} times as long one way as the other, taken as square"
ASKEW = "a display matrix that is no quarter turn or mirror image, so pictures are kept as they are stored"
#: A nearly empty clip has most pixels within so many of 256 levels.
FEW_LEVELS = 16
NEARLY_EMPTY = (
    "pictures nearly of one shade throughout, as black ones or those of a sensor that uses few levels"
)
TRANSPARENT = "transparent pictures, laid on black"
OTHER_MATRIX = "colours coded in a rare way (constant luminance), shown by the nearest one that is supported"
#: Numbers of ITU-T H.273: colour matrices that swscale supports, and those with constant luminance.
BT709, UNSPECIFIED, YCGCO, BT2020, BT2020_CONSTANT, DERIVED, DERIVED_CONSTANT = 1, 2, 8, 9, 10, 12, 13
UNSUPPORTED = {11: "SMPTE ST 2085", 14: "ICtCp"}
#: Primaries -> the matrix that is derived from them; others are close to those of BT.709.
DERIVED_FROM = {4: 4, 5: 5, 6: 6, 7: 7, 9: BT2020}
#: From this size on players assume HD, with colours coded as in BT.709, if a file does not state it.
HD_WIDTH, HD_LINES = 1280, 720
#: Kinds of side data that FFmpeg may know and PyAV not yet: the next numbers after its list.
_LISTED: list[Any] = [kind.value for kind in sidedata.Type]  # PyAV's own types do not declare them as numbers
UNLISTED = range(max(_LISTED) + 1, max(_LISTED) + 17)


class ColourError(Exception):
    """The colours of a picture are not supported; the message gives the reason and what to do."""


@dataclass(kw_only=True)
class Shot:
    """A decoded frame and its metadata."""

    frame: av.VideoFrame
    #: Display time in seconds.
    time: float
    #: The width of a pixel divided by its height; None or 0 if unknown.
    ratio: Fraction | None
    #: (3, 3) int32, the rotation and mirroring; None without.
    matrix: np.ndarray | None


def shown(shot: Shot, remarks: set[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a frame with square pixels, then rotated and mirrored by its matrix.

    Metadata that cannot be applied goes to ``remarks``.
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
    """One field of an interlaced frame: every other line. The two fields are 1/50 or 1/60 s apart.

    Players show the two in turn; together, moving edges look like a comb.
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
    """A frame in another pixel format and size, by one thread: the workers are the parallelism.

    By default PyAV starts as many threads as there are CPU cores for each frame, and keeps them as long as
    the frame; on a machine with many cores a worker lacks memory for so many stacks.
    """
    return frame.to_ndarray(format=form, interpolation="AREA", threads=1, **size)


def _transparent(form: str) -> bool:
    """Whether pictures of a pixel format may be transparent."""
    return form.startswith(
        ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya8", "ya16", "pal8", "ayuv", "vuya")
    )


def _from_ycgco(frame: av.VideoFrame, size: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 RGB by the equations 18 to 20 of ITU-T H.273, chapter 8.3."""
    full_range = frame.color_range == 2 or frame.format.name.startswith("yuvj")
    frame.colorspace = BT709  # Has no effect on values: from YUV to YUV no matrix is used.
    luma, green, orange = (plane.astype(float) for plane in _converted(frame, "yuv444p", size))
    if not full_range:
        luma, green, orange = (luma - 16) * 255 / 219, (green - 128) * 255 / 224, (orange - 128) * 255 / 224
    else:
        green, orange = green - 128, orange - 128
    rest = luma - green
    image = np.stack([rest + orange, luma + green, rest - orange], axis=-1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def nearly_empty(frames: list[np.ndarray]) -> bool:
    """Whether the 1st and 99th percentiles of a clip's pixels (H, W, 3) differ by few levels."""
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
    # frame.side_data would form a reference cycle with the frame, which would live until garbage collection.
    listed: Any = sidedata.SideDataContainer  # PyAV's own types omit its argument
    try:
        side_data = listed(frame)
    except ValueError:
        side_data = listed(_listed(frame))
    data = side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _listed(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame without the kinds of side data that PyAV does not know, like EXIF: they make it refuse all."""
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
    """(2, 2) int: the direction on screen of a step right, and of a step down, in the stored frame.

    It is one of the eight orientations of a frame. A matrix of zeros or with any other rotation is not
    applied: the frame stays as stored.

    Args:
        matrix: (3, 3); x' = m00 x + m10 y and y' = m01 x + m11 y. Translation and scale are ignored:
            players show the full frame, and libavformat gives its shape as the pixel aspect ratio.
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
    """``image`` (H, W, …) turned by the result of :func:`orientation`."""
    if not steps[0, 0]:
        image = image.swapaxes(0, 1)
    across, down = steps.sum(axis=0)
    return image[::down, ::across]
