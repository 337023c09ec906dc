"""Formats of MERTools, the challenge baseline: feature folders and label files.

Features lie in ``<set>-UTT/<name>.npy``, one vector ``(D,)`` a clip, or ``<set>-FRA/<name>.npy``,
one row a frame or token ``(T, D)``. Where the baseline could not make a feature it wrote zeros.
Label files are ``.npz`` archives of pickled dictionaries; pickles can run code when they are
loaded, so they are read by :func:`read_labels` alone, which builds nothing but plain values.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mer_dist.errors import UserError

LEVELS = ("UTT", "FRA")
#: Bytes that a label file may unpack to: about a thousand for each clip of MER2024.
MOST_BYTES = 1 << 27


def feature_folder(folder: Path, set_name: str, level: str) -> Path:
    return Path(folder) / f"{set_name}-{level}"


def read_feature(path: Path) -> np.ndarray:
    """One feature file as float vectors: ``(D,)`` or ``(T, D)``. Pickled content is refused.

    Raises:
        ValueError: why the file cannot be used.
    """
    try:
        # Mapped, so that no memory is taken for what the header claims and the file does not hold.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # On a damaged header numpy may raise anything at all.
        raise ValueError(f"not readable as a .npy array: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"holds {getattr(array, 'dtype', 'an archive')}, not numbers")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"has shape {array.shape}, not (D,) or (T, D)")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} values are NaN or infinite")
    if not array.any():
        raise ValueError("all zeros: the baseline's mark of a clip without this modality")
    return array.astype(np.float32) if array.dtype.kind in "iu" else np.array(array)


def read_labels(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """A label file: corpus (``train_corpus``, ...) -> clip name -> ``{"emo": ..., "val": ...}``.

    Raises:
        UserError: the file is not such an archive, or its pickles hold anything but dictionaries,
            lists, texts and numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [entry for entry in archive.infolist() if entry.filename.endswith("_corpus.npy")]
            if sum(entry.file_size for entry in wanted) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
            return {entry.filename.removesuffix(".npy"): _plain(archive.read(entry)) for entry in wanted}
    except Exception as error:  # On damaged content zip, numpy and pickle may raise anything at all.
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a label file of plain values: {why[:300]}") from None


def _plain(content: bytes) -> Any:
    """The one object in a 0-dimensional object array."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    form = np.lib.format
    read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    shape, _, dtype = read[version](stream)
    if shape != () or not dtype.hasobject:
        raise ValueError(f"an array of {dtype} with shape {shape}, not one dictionary")
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        # The unpickler makes room for as many objects as the highest number that one is kept under.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument) > len(content):
            raise pickle.UnpicklingError(f"object number {argument} of {len(content)} bytes")
    stream.seek(start)
    array = _PlainUnpickler(stream).load()
    return array.state[4][0]


class _Inert:
    """Stands in for a numpy object: keeps what the pickle says of it and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _scalar(dtype: _Inert, content: bytes) -> Any:
    (code, *_), (_, order, *_) = dtype.arguments, dtype.state
    if not re.fullmatch(r"[iufbU]\d+", code) or order not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError(f"a number of type {code!r}")
    return np.frombuffer(content, np.dtype(f"{order}{code}"))[0].item()


class _PlainUnpickler(pickle.Unpickler):
    """Knows the names by which numpy pickles arrays and scalars, and binds them to inert ones."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _scalar
        if (module, name) in (
            ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            return _Inert
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a plain value")
