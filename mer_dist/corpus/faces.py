"""Square pictures of the speaker's face: OpenFace crops, OpenCV's cascade, or the full frame."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import cv2
import cv2.data
import numpy as np

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.natural_order import natural
from mer_dist.corpus.paths import openface_folder

#: The detector runs on every n-th frame and the last one; between them the box is interpolated.
DETECT_EVERY = 4
#: The detector sees a frame of at most this many pixels on its longer side.
DETECT_SIDE = 320
#: Fraction of the face box added on each side: brows and chin lie at its border.
PADDING = 0.15
SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png")
SEVERAL = "OpenFace followed several faces; the one with the most pictures was used"
#: OpenFace's name for the picture of a tracked face: number of the face, number of the frame.
_OF_A_FACE = re.compile(r"(.*det_\d+)_\d+")


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
    """The largest face of each frame as ``(size, size, 3)``, or the full frames and False.

    The detector is the boosted cascade of Viola & Jones 2001, as shipped with OpenCV.
    """
    looked_at = {*range(0, len(frames), DETECT_EVERY), len(frames) - 1}
    found = {row: box for row in looked_at if (box := _detect(frames[row])) is not None}
    if not found:
        return [whole(frame, size) for frame in frames], False
    rows = sorted(found)
    # Before the first and after the last face the nearest box holds, as np.interp does.
    boxes = np.stack(
        [np.interp(range(len(frames)), rows, [found[row][part] for row in rows]) for part in range(3)], axis=1
    )
    return [_square(frame, box, size) for frame, box in zip(frames, boxes, strict=True)], True


def openface(root: Path, name: str, count: int, size: int) -> tuple[list[np.ndarray], bool]:
    """Up to ``count`` of OpenFace's aligned crops of a clip, evenly spaced in frame order; may be empty. If
    it tracked several faces, those of the face with the most crops; on a tie, of the first.

    Returns:
        The crops, and whether there are several faces.
    """
    folder = openface_folder(root, name)
    paths = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES]
    faces: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda path: natural(path.stem)):
        found = _OF_A_FACE.fullmatch(path.stem)
        faces.setdefault(found[1] if found else "", []).append(path)
    files = max(faces.values(), key=len, default=[])
    if len(files) > count:
        files = [files[int((row + 0.5) * len(files) / count)] for row in range(count)]
    images = (_picture(path) for path in files if path.stat().st_size)
    return [whole(image[..., ::-1], size) for image in images if image is not None], len(faces) > 1


def _picture(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8 BGR; None if it cannot be decoded or exceeds OpenCV's size limit."""
    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None


@functools.cache
def _detector() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


def _detect(frame: np.ndarray) -> tuple[float, float, float] | None:
    """Centre x, centre y and padded side of the largest face."""
    scale = min(1.0, DETECT_SIDE / max(frame.shape[:2]))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    smallest = max(20, min(grey.shape) // 8)
    boxes = _detector().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
    if not len(boxes):
        return None
    x, y, width, height = max(np.asarray(boxes).tolist(), key=lambda box: (box[2] * box[3], box))
    side = max(width, height) * (1 + 2 * PADDING)
    return (x + width / 2) / scale, (y + height / 2) / scale, side / scale


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
