"""Formats of MERTools, the challenge baseline: feature folders and label files.

Features lie in ``<set>-UTT/<name>.npy``, one vector ``(D,)`` a clip, or ``<set>-FRA/<name>.npy``,
one row a frame or token ``(T, D)``, or ``<set>-FRA/<name>/<frame>.npy``, one vector a frame. The
baseline wrote zeros where it could not compute a feature.
Label files are ``.npz`` archives of pickled dictionaries; loading pickles can run code, so only
:func:`read_labels` reads them, which builds only plain values.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.natural_order import natural
from mer_dist.core.records import LABELED, UNLABELED
from mer_dist.corpus.table import Table

LEVELS = ("UTT", "FRA")
#: First bytes of other files that are named .npy by mistake.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive, as .npz and .pt files are"),
    (b"\x80", "a pickle, which can run code and is not loaded; save it with numpy.save"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"MATLAB", "a MATLAB file"),
)
#: Bytes of a file that is read at once; a larger one is mapped.
_AT_ONCE = 1 << 20
#: The name of a frame with one number, with or without a decimal point.
_NUMBER = re.compile(r"(\D*)(\d+)(\.\d+)?\D*")
#: Limit in bytes of an unpacked label file: about a thousand for each clip of MER2024.
MOST_BYTES = 1 << 27


def feature_folder(folder: Path, set_name: str, level: str) -> Path:
    return Path(folder) / f"{set_name}-{level}"


def is_array(name: str) -> bool:
    """Whether a feature file has such a name, in capitals or not; ``._a.npy`` is what macOS leaves beside one."""
    return name.lower().endswith(".npy") and not name.startswith("._")


def read_feature(path: Path) -> np.ndarray:
    """One feature file as float vectors: ``(D,)`` or ``(T, D)``. Pickled content is refused.

    In an array of more dimensions those of length 1 are dropped, the first ones first: a model gives
    ``(1, T, D)`` for a batch of one.

    Raises:
        ValueError: why the file cannot be used.
    """
    array = _array(path)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"holds {array.dtype}, not numbers")
    if array.dtype.itemsize > 8:
        # Such as longdouble, whose layout differs between machines.
        raise ValueError(f"holds {array.dtype}, wider than any stored feature; save it as float32 or float64")
    shape = list(array.shape)
    while len(shape) > 2 and 1 in shape:
        shape.remove(1)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"has shape {array.shape}, not (D,) or (T, D)")
    array = array.reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} values are NaN or infinite")
    if not array.any():
        raise ValueError("all zeros: the baseline's marker of a clip without this modality")
    if why := _misread(array):
        raise ValueError(why)
    return array.astype(np.float32) if array.dtype.kind in "iu" else np.array(array)


def _misread(array: np.ndarray) -> str:
    """Why these numbers are not the values that were meant, or not as float32, in which fusion computes."""
    if array.dtype.kind in "iu" and array.dtype.itemsize in (2, 4):
        size = array.dtype.itemsize
        bits = array.astype(f"={array.dtype.kind}{size}", order="C").view(f"=u{size}")
        for kind, meant in _floats(bits):
            if _like_features(meant):
                return f"{array.dtype} values that look like the bits of {kind}; save it as float32"
    if array.dtype == np.float64:
        with np.errstate(over="ignore", under="ignore"):
            single = array.astype(np.float32)
        if not np.isfinite(single).all():
            return "values too large for float32, in which fusion computes; rescale them"
        if np.abs(single - array).max() > 1e-3 * array.std() > 0 or (array.any() and not single.any()):
            return "values that float32, in which fusion computes, cannot tell apart; take their offset off or rescale"
    return ""


def _floats(bits: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The floats of these bits (uint16 or uint32), by the name of their type."""
    if bits.dtype.itemsize == 4:
        return [("float32", bits.view(np.float32))]
    # bfloat16 has the upper half of a float32's bits; numpy has no such type.
    return [("bfloat16", (bits.astype(np.uint32) << 16).view(np.float32)), ("float16", bits.view(np.float16))]


def _like_features(values: np.ndarray) -> bool:
    """Whether values are as those of an encoder are: of both signs, alike in size, most within two decades.

    Bits of integers are not: small ones have the sizes of rounding errors, negative ones of infinity, and if they
    spread evenly, so do the exponents.
    """
    values = values[values != 0]
    if not np.isfinite(values).all() or np.unique(np.signbit(values)).size < 2:
        return False
    values = values.astype(np.float64)
    size = np.abs(values)
    usual = np.median(size)
    sides = np.median(values[values > 0]) / -np.median(values[values < 0])
    near = (size > usual / 128) & (size < usual * 128)
    return 1e-6 < usual < 1e6 and 1 / 8 < sides < 8 and near.mean() > 0.9


def _array(path: Path) -> np.ndarray:
    """The array in a file, which is not changed.

    Raises:
        ValueError: it has none.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, _AT_ONCE))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if not content.startswith(b"\x93NUMPY"):
        raise ValueError(_other_kind(content))
    if (array := _of_bytes(content)) is not None:
        return array
    try:
        # Memory-mapped, so that a false header allocates no memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # On a damaged header numpy may raise anything.
        why = " ".join(str(error).split())
        if "Python objects" in why:
            raise ValueError("holds Python objects (object), not numbers; save it again as float32") from None
        if "mmap length" in why:
            raise ValueError("cut off: it has fewer values than its header states") from None
        raise ValueError(f"not readable as a .npy array: {why}") from None
    if isinstance(array, np.memmap) and (more := os.path.getsize(path) - array.offset - array.nbytes) > 0:
        raise ValueError(
            f"{more} bytes follow its array; if several were written into one file, save each into its own, or all "
            "as one (T, D)"
        )
    return array


def _of_bytes(content: bytes) -> np.ndarray | None:
    """The array in a whole file; None if numpy must read it, or say why it cannot.

    In a tenth of the time of ``numpy.load``, which opens a file three times and parses its header as Python: the
    files of a set have one header, or a few.
    """
    try:
        start, (shape, fortran, dtype) = _header(content)
    except Exception:  # On a damaged header numpy may raise anything.
        return None
    count = math.prod(shape)
    # More bytes than that may be a second array, on which numpy is silent.
    if dtype.hasobject or min(shape, default=0) < 0 or not 0 < count * dtype.itemsize == len(content) - start:
        return None
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if fortran else "C")


def _header(content: bytes) -> tuple[int, tuple[tuple[int, ...], bool, np.dtype]]:
    """Where the values start, and shape, whether in Fortran's order, and type of the array.

    Raises:
        Exception: whatever numpy raises on a damaged header.
    """
    digits = 2 if content[6:7] == b"\x01" else 4
    start = 8 + digits + int.from_bytes(content[8 : 8 + digits], "little")
    return start, _layout(content[:start])


@lru_cache(maxsize=256)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    form = np.lib.format
    return {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[form.read_magic(stream)](
        stream
    )


def _other_kind(head: bytes) -> str:
    """What a file is that lacks the magic bytes of .npy.

    numpy takes such a file for a pickle, and advises to load it.
    """
    head = head[:24]
    for magic, kind in _OTHERS:
        if head.startswith(magic):
            return f"this is no .npy file, but {kind}"
    if not head:
        return "this is no .npy file: it is empty"
    line = head.strip().partition(b"\n")[0].strip()
    text = line.decode("ascii", "backslashreplace") if line.isascii() else ""
    shown = repr(text if text and text.isprintable() else head[:12])
    return f"this is no .npy file: it begins with {shown}"


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
    except Exception as error:  # On damaged content zip, numpy and pickle may raise anything.
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a label file of plain values: {why[:300]}") from None


def read_frames(folder: Path) -> tuple[np.ndarray, list[str]]:
    """A folder of one file a frame, in the order of their numbers, as ``(T, D)``, and the faults of frames.

    Raises:
        ValueError: why the folder cannot be used.
    """
    frames, faults = [], []
    for path in _in_order(path for path in Path(folder).glob("[!.]*") if is_array(path.name)):
        try:
            array = read_feature(path)
        except ValueError as error:
            faults.append(f"{path.name}: {error}")
            continue
        frames.append(array.reshape(1, -1) if 1 in array.shape else np.atleast_2d(array))
    if not frames:
        raise ValueError(
            f"no frame of its folder can be used; {faults[0]}" if faults else "its folder holds no .npy file"
        )
    widths = Counter(array.shape[1] for array in frames)
    (width, _), *others = widths.most_common()
    if others:
        faults.append(f"{sum(count for _, count in others)} frames are not of width {width} as most are")
    return np.concatenate([array for array in frames if array.shape[1] == width]), faults


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Frames by their numbers: 2 before 10, with or without leading zeros, and 0.033 before 0.1 if names are
    times."""
    found = {path: _NUMBER.fullmatch(path.stem) for path in paths}
    times = {path: (name[1], float(name[2] + (name[3] or ""))) for path, name in found.items() if name}
    if len(times) == len(found) and not _counted([name for name in found.values() if name]):
        return sorted(found, key=times.__getitem__)
    return sorted(found, key=lambda path: natural(path.stem))


def _counted(found: list[re.Match[str]]) -> bool:
    """Whether the part after the point, if any, numbers frames without a gap, as in ``clip7.10``."""
    behind: dict[str, set[str]] = {}
    for name in found:
        behind.setdefault(name[1] + name[2], set()).add((name[3] or ".")[1:])
    if all(own == {""} for own in behind.values()):
        return True
    # A number without a point among those with one is a time.
    numbers = [sorted(int(text or "-9") for text in own) for own in behind.values()]
    return all(own == list(range(own[0], own[0] + len(own))) for own in numbers)


def is_label_file(path: Path) -> bool:
    return zipfile.is_zipfile(path) and Path(path).suffix.lower() == ".npz"


def label_table(path: Path) -> Table:
    """A label file as a table ``name,label,split``: ``train_corpus`` is labelled, every other corpus is
    unlabelled, because its labels are placeholders or kept for scoring.

    Raises:
        UserError: as :func:`read_labels`; it has no ``train_corpus``, or a name is unsafe or occurs twice.
    """
    corpora = read_labels(path)
    if "train_corpus" not in corpora:
        has = ", ".join(corpora) or "no array whose name ends so"
        raise UserError(f"{path}: it has no train_corpus, the labelled clips of a label file; it has: {has}")
    table = Table(file=Path(path).name, columns=["name", "label", "split"])
    locations = []
    for corpus, entries in corpora.items():
        if not isinstance(entries, dict):
            raise UserError(f"{path}: its {corpus} is no dictionary of clips")
        for name, entry in entries.items():
            emotion = entry.get("emo", "") if isinstance(entry, dict) else ""
            name = clip_names.clean(str(name).strip())
            locations.append((name, f"{table.file}, {corpus}"))
            table.rows[name] = {
                "name": name,
                "label": _word(emotion),
                "split": LABELED if corpus == "train_corpus" else UNLABELED,
            }
    clip_names.check(locations)
    logger.info(
        "%s: %s",
        path,
        "; ".join(
            f"{len(entries)} clips of {corpus} {'are labelled' if corpus == 'train_corpus' else 'to be answered'}"
            for corpus, entries in corpora.items()
        ),
    )
    return table


def _word(emotion: Any) -> str:
    """A label as text; the baseline's numbers are written without a point."""
    return str(int(emotion)) if isinstance(emotion, float) and emotion.is_integer() else str(emotion)


def _plain(content: bytes) -> Any:
    """The one object in a 0-dimensional object array."""
    start, (shape, _, dtype) = _header(content)
    if shape != () or not dtype.hasobject:
        raise ValueError(f"an array of {dtype} with shape {shape}, not one dictionary")
    stream = io.BytesIO(content)
    stream.seek(start)
    for opcode, argument, _ in pickletools.genops(stream):
        # The unpickler allocates memory for as many objects as the highest memo index.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"object number {argument} of {len(content)} bytes")
    stream.seek(start)
    array = _PlainUnpickler(stream).load()
    return array.state[4][0]


class _Inert:
    """Stands in for a numpy object: keeps the pickled arguments and state, and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _scalar(dtype: _Inert, content: bytes) -> Any:
    (code, *_), (_, order, *_) = dtype.arguments, dtype.state
    if not re.fullmatch(r"[iufbU]\d+", code) or order not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError(f"a number of type {code!r}")
    return np.frombuffer(content, np.dtype(f"{order}{code}"))[0].item()


class _PlainUnpickler(pickle.Unpickler):
    """Maps the names in pickles of numpy arrays and scalars to inert objects, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _scalar
        if (module, name) in (
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            return _Inert
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a plain value")
