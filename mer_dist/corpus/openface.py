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
from mer_dist.corpus.paths import openface_array, openface_folder, openface_table

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png")
SEVERAL = "OpenFace followed several faces; the one with the most pictures was used"
BLACK = "black pictures among the faces stand for frames without one, and are left out"
LOST = "pictures that OpenFace cut out where it had lost the face (success 0 in its table) are left out"
NOT_SQUARE = "the faces are not square, and what lies outside their central square is not stored"
#: Part of its longer side that a face may lose to the square without a remark.
MOST_CUT_AWAY = 0.1
#: OpenFace's name for the picture of a tracked face: number of the face, number of the frame.
_OF_A_FACE = re.compile(r"(.*det_(\d+))_(\d+)")
#: Number of frames, height, width, colours.
_DIMENSIONS = 4


def crops(root: Path, name: str, count: int, size: int) -> tuple[list[np.ndarray], list[str]]:
    """Up to ``count`` faces of a clip as ``(size, size, 3)``, evenly spaced in frame order; may be empty.

    The array is used where there is one. Of a folder with several tracked faces the one with the most pictures
    is used; on a tie, the first. Pictures of frames where OpenFace's own table says that the face was lost are
    left out.

    Returns:
        The faces, and remarks on them.

    Raises:
        MediaError: the array cannot be read.
    """
    array, tracked = openface_array(root, name), _tracked(openface_table(root, name))
    if array.exists():
        return _of_array(_read(array), tracked, count, size)
    folder = openface_folder(root, name)
    paths = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES]
    faces: dict[str, list[Path]] = {}
    lost = False
    for path in sorted(paths, key=lambda path: natural(path.stem)):
        found = _OF_A_FACE.fullmatch(path.stem)
        if found and not tracked.get((int(found[2]), int(found[3])), True):
            lost = True
            continue
        faces.setdefault(found[1] if found else "", []).append(path)
    files = _evenly(max(faces.values(), key=len, default=[]), count)
    images = (_picture(path) for path in files if path.stat().st_size)
    squares = [whole(image[..., ::-1], size) for image in images if image is not None]
    return squares, [SEVERAL] * (len(faces) > 1) + [LOST] * lost


def _of_array(
    faces: np.ndarray, tracked: dict[tuple[int, int], bool], count: int, size: int
) -> tuple[list[np.ndarray], list[str]]:
    """As :func:`crops`, of an array ``(N, H, W, 3)``. A table of as many rows is of these pictures."""
    rows, remarks = [*range(len(faces))], []
    if len(tracked) == len(faces) and not all(tracked.values()):
        rows = [row for row, (_, known) in zip(rows, sorted(tracked.items()), strict=True) if known]
        remarks.append(LOST)
    chosen = [faces[row] for row in _evenly(rows, count)]
    if any(not face.any() for face in chosen):
        chosen = _evenly([faces[row] for row in rows if faces[row].any()], count)
        remarks.append(BLACK)
    if chosen and 1 - min(chosen[0].shape[:2]) / max(chosen[0].shape[:2]) > MOST_CUT_AWAY:
        remarks.append(NOT_SQUARE)
    return [whole(face[..., ::-1], size) for face in chosen], remarks


def _tracked(table: Path | None) -> dict[tuple[int, int], bool]:
    """(face, frame) -> whether OpenFace had the face there, by its columns ``face_id``, ``frame``, ``success``.

    Empty without a table, or with one of another program.
    """
    if table is None:
        return {}
    with table.open(encoding="utf-8", errors="replace") as lines:
        header = [column.strip().casefold() for column in next(lines, "").split(",")]
        if not {"frame", "success"} <= {*header}:
            return {}
        found = {}
        for line in lines:
            row = {"face_id": "0"} | dict(zip(header, line.split(","), strict=False))
            try:
                face, frame, success = (int(float(row[column])) for column in ("face_id", "frame", "success"))
            except (KeyError, ValueError, OverflowError):
                continue  # A row that breaks off says nothing of its frame.
            found[face, frame] = success != 0
    return found


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
        why = str(error)
        if "allow_pickle" in why:
            why = "it holds Python objects, which are not read"
        elif "mmap length" in why:
            why = "it is cut off"
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
