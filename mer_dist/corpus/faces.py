"""Square pictures of the speaker's face, found by OpenCV's cascade, or of the full frame."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import cv2.data
import numpy as np

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError

#: The detector runs on every n-th frame and the last one; between them the box is interpolated.
DETECT_EVERY = 4
#: The detector sees a frame of at most this many pixels on its longer side.
DETECT_SIDE = 320
#: Factor between the sizes that the detector tries, and how many of its findings must agree, to find a face
#: anywhere and to look where one is expected.
COARSE, FINE = (1.2, 2), (1.1, 5)
#: A face that is followed is looked for this part of its side around its box, up to so many times larger or smaller.
REACH, LIKE = 0.5, 1.5
#: Fraction of the face box added on each side: brows and chin lie at its border.
PADDING = 0.15


def check(config: ShardConfig) -> None:
    """
    Raises:
        UserError: the face source is missing, so every clip would fail.
    """
    if config.faces == "openface" and not Path(config.openface).is_dir():
        raise UserError(f"shard.openface: there is no folder {config.openface}")
    if config.faces == "cascade" and not hasattr(cv2, "CascadeClassifier"):
        raise UserError(
            f"OpenCV {cv2.__version__} has no cascade of classifiers, which finds the faces: "
            "pip install 'opencv-python-headless<5', or set shard.faces to none or openface"
        )


def whole(frame: np.ndarray, size: int) -> np.ndarray:
    """The central square of a frame ``(H, W, 3)`` as ``(size, size, 3)``."""
    height, width = frame.shape[:2]
    return _square(frame, (width / 2, height / 2, min(height, width)), size)


def cascade(frames: list[np.ndarray], size: int) -> tuple[list[np.ndarray], bool]:
    """The face of each frame as ``(size, size, 3)``, or the full frames and False.

    The largest face is followed from frame to frame; where it is lost, the largest one is taken again.
    The detector is the boosted cascade of Viola & Jones 2001, as shipped with OpenCV.
    """
    found: dict[int, tuple[float, float, float]] = {}
    last: _Box | None = None
    for row in sorted({*range(0, len(frames), DETECT_EVERY), len(frames) - 1}):
        grey, scale = _seen_by_detector(frames[row])
        last = (last and _near(grey, last)) or _anywhere(grey)
        if last:
            found[row] = last.padded(scale)
    if not found:
        return [whole(frame, size) for frame in frames], False
    rows = sorted(found)
    # Before the first and after the last face the nearest box holds, as np.interp does.
    boxes = np.stack(
        [np.interp(range(len(frames)), rows, [found[row][part] for row in rows]) for part in range(3)], axis=1
    )
    return [_square(frame, box, size) for frame, box in zip(frames, boxes, strict=True)], True


@functools.cache
def _detector() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


class _Box(NamedTuple):
    """A face in pixels of the picture that the detector sees."""

    x: float
    y: float
    side: float

    def padded(self, scale: float) -> tuple[float, float, float]:
        """Centre x, centre y and padded side in pixels of the frame."""
        half = self.side / 2
        return (self.x + half) / scale, (self.y + half) / scale, self.side * (1 + 2 * PADDING) / scale


def _seen_by_detector(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """Grey and small, and how much smaller."""
    scale = min(1.0, DETECT_SIDE / max(frame.shape[:2]))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def _anywhere(grey: np.ndarray) -> _Box | None:
    """The largest face: found in coarse steps, then looked at in fine ones."""
    smallest = max(20, min(grey.shape) // 8)
    coarse = _faces(grey, COARSE, smallest)
    return next((face for box in coarse if (face := _near(grey, box))), None)


def _near(grey: np.ndarray, box: _Box) -> _Box | None:
    """The largest face about where and as large as ``box``."""
    reach = REACH * box.side
    left, top = (max(round(edge - reach), 0) for edge in (box.x, box.y))
    right, bottom = (round(edge + box.side + reach) for edge in (box.x, box.y))
    sizes = round(box.side / LIKE), round(box.side * LIKE)
    found = _faces(grey[top:bottom, left:right], FINE, *sizes)
    return found[0]._replace(x=found[0].x + left, y=found[0].y + top) if found else None


def _faces(
    grey: np.ndarray, steps: tuple[float, int], smallest: int, largest: int | None = None
) -> list[_Box]:
    """The largest first."""
    factor, neighbours = steps
    largest = largest or min(grey.shape)
    boxes = _detector().detectMultiScale(
        grey,
        scaleFactor=factor,
        minNeighbors=neighbours,
        minSize=(smallest, smallest),
        maxSize=(largest, largest),
    )
    every = [_Box(x, y, max(width, height)) for x, y, width, height in np.asarray(boxes).tolist()]
    return sorted(every, key=lambda box: (box.side, box), reverse=True)


def _square(frame: np.ndarray, box, size: int) -> np.ndarray:
    """Cut out the square ``(centre x, centre y, side)``, moved so that it lies in the frame."""
    height, width = frame.shape[:2]
    x, y, side = box
    side = max(1, round(min(side, height, width)))
    left = round(min(max(x - side / 2, 0), width - side))
    top = round(min(max(y - side / 2, 0), height - side))
    cut = frame[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=interpolation)
