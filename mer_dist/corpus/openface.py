"""Faces that OpenFace cut out: a folder of pictures as it writes them, or one array as the challenges distribute
them: ``<name>/<name>.npy``, uint8 BGR ``(N, H, W, 3)``."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from mer_dist.core.natural_order import natural
from mer_dist.corpus.faces import whole
from mer_dist.corpus.media import MediaError
from mer_dist.corpus.paths import openface_array, openface_folder

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png")
SEVERAL = "OpenFace followed several faces; the one with the most pictures was used"
#: OpenFace's name for the picture of a tracked face: number of the face, number of the frame.
_OF_A_FACE = re.compile(r"(.*det_\d+)_\d+")
#: Number of frames, height, width, colours.
_DIMENSIONS = 4


def crops(root: Path, name: str, count: int, size: int) -> tuple[list[np.ndarray], bool]:
    """Up to ``count`` faces of a clip as ``(size, size, 3)``, evenly spaced in frame order; may be empty.

    The array is used where there is one. Of a folder with several tracked faces the one with the most pictures
    is used; on a tie, the first.

    Returns:
        The faces, and whether there are several people.

    Raises:
        MediaError: the array cannot be read.
    """
    array = openface_array(root, name)
    if array.exists():
        return [whole(face[..., ::-1], size) for face in _evenly(_read(array), count)], False
    folder = openface_folder(root, name)
    paths = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES]
    faces: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda path: natural(path.stem)):
        found = _OF_A_FACE.fullmatch(path.stem)
        faces.setdefault(found[1] if found else "", []).append(path)
    files = _evenly(max(faces.values(), key=len, default=[]), count)
    images = (_picture(path) for path in files if path.stat().st_size)
    return [whole(image[..., ::-1], size) for image in images if image is not None], len(faces) > 1


def _evenly(items, count: int) -> list:
    if len(items) <= count:
        return list(items)
    return [items[int((row + 0.5) * len(items) / count)] for row in range(count)]


def _read(path: Path) -> np.ndarray:
    """The array, mapped: of a long clip only the faces that are taken are read.

    Raises:
        MediaError: it is no such array, or not all of it is there.
    """
    try:
        faces = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error)
        raise MediaError(f"faces {path.name}: not readable as an array: {' '.join(why.split())}") from None
    if not isinstance(faces, np.ndarray):
        raise MediaError(f"faces {path.name}: several arrays in one file, and not one of faces")
    if faces.dtype != np.uint8 or faces.ndim != _DIMENSIONS or faces.shape[-1] != 3 or 0 in faces.shape[1:]:
        raise MediaError(
            f"faces {path.name}: {faces.dtype} {faces.shape}, and not uint8 (faces, height, width, 3)"
        )
    return faces


def _picture(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8 BGR; None if it cannot be decoded or exceeds OpenCV's size limit."""
    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
