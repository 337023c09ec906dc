"""The feature store: extract writes it shard by shard, fuse reads it by clip name.

A *feature set* is a folder ``features/<set>/`` of one safetensors file per shard. A file has
rows for the clips that have the modality; ``missing`` lists the others with a reason, so a row
of zeros is never mistaken for data.

Tensors of a file, for N clips with embeddings of size D and F frames (or tokens) in all::

    utterance  (N, D)    one embedding a clip
    frame      (F, D)    ragged, present at frame level only
    offsets    (N + 1,)  clip i owns frame[offsets[i]:offsets[i + 1]]
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from mer_dist.config.sections import ExtractConfig
from mer_dist.core.errors import UserError, reading
from mer_dist.storage import tensor_file
from mer_dist.storage.files import read_json, write_bytes, write_json
from mer_dist.storage.run_folder import FeatureFolder

#: ``extract.storage`` -> the dtype of stored embeddings.
STORAGE = {"fp32": np.float32, "fp16": np.float16}
_FACTS = "mer_dist"
_AGAIN = "delete it and run extract, or import again"
#: safetensors names of the dtypes that a feature file can have.
_DTYPES: dict[str, np.dtype] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}


@dataclass(kw_only=True)
class FeatureSet:
    """Features of some clips from one extractor; see the module for the shapes."""

    modality: str
    names: list[str]
    utterance: np.ndarray
    frame: np.ndarray | None = None
    offsets: np.ndarray | None = None
    #: name -> why the clip has no row.
    missing: dict[str, str] = field(default_factory=dict)
    #: (D,) each: what the embeddings of unlabelled clips were mapped with, as (x - shift) / scale; None: with nothing.
    alignment: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def width(self) -> int:
        return self.utterance.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self.utterance.dtype

    @property
    def has_frames(self) -> bool:
        return self.frame is not None

    def utterances(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings ``(N, D)`` float32 in the order of ``names``, and a mask ``(N,)``, True if present.

        A view, not a copy, where the set was loaded in this order and has all of them.
        """
        rows, valid = self._rows(names)
        chosen = rows[valid]
        in_order = np.array_equal(chosen, np.arange(len(chosen)))
        found = self.utterance[: len(chosen)] if in_order else self.utterance[chosen]
        if len(chosen) == len(names):
            return found.astype(np.float32, copy=False), valid
        values = np.zeros((len(names), self.width), np.float32)
        values[valid] = found
        return values, valid

    def ragged(self) -> tuple[np.ndarray, np.ndarray]:
        """``frame`` and ``offsets``.

        Raises:
            UserError: the set was stored at utterance level only.
        """
        if self.frame is None or self.offsets is None:
            raise UserError("this feature set has no frame level; extract with frame_level: true")
        return self.frame, self.offsets

    def frames_of(self, row: int) -> np.ndarray:
        """The frames ``(T, D)`` of clip ``row``; see :meth:`ragged`."""
        frame, offsets = self.ragged()
        return frame[offsets[row] : offsets[row + 1]]

    def tokens(self, names: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames pooled to at most ``count`` tokens by the mean over equal segments.

        Returns ``(N, count, D)`` float32 and the mask ``(N, count)``.

        Raises:
            UserError: the set was stored at utterance level only.
        """
        frame, offsets = self.ragged()
        rows, valid = self._rows(names)
        values = np.zeros((len(names), count, self.width), np.float32)
        mask = np.zeros((len(names), count), bool)
        starts, stops = offsets[:-1][rows[valid]], offsets[1:][rows[valid]]
        parts = np.minimum(stops - starts, count)
        mask[valid] = np.arange(count) < parts[:, None]
        for own in np.unique(parts[parts > 0]):
            same = parts == own
            edges = np.linspace(starts[same], stops[same], own + 1, axis=1).astype(int)
            means = _means(frame, edges[:, :-1].ravel(), edges[:, 1:].ravel())
            values[np.flatnonzero(valid)[same], :own] = means.reshape(-1, own, self.width)
        return values, mask

    def _rows(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        row_of = {name: row for row, name in enumerate(self.names)}
        rows = np.array([row_of.get(name, -1) for name in names], dtype=int)
        return rows, rows >= 0

    def only(self, names: set[str]) -> FeatureSet:
        """The part of the set that belongs to ``names``."""
        keep = [row for row, name in enumerate(self.names) if name in names]
        frame = offsets = None
        if self.frame is not None:
            spans = [self.frames_of(row) for row in keep]
            frame = np.concatenate(spans) if spans else self.frame[:0]
            offsets = np.cumsum([0, *map(len, spans)])
        return FeatureSet(
            modality=self.modality,
            names=[self.names[row] for row in keep],
            utterance=self.utterance[keep],
            frame=frame,
            offsets=offsets,
            missing={name: why for name, why in self.missing.items() if name in names},
            alignment=self.alignment,
        )

    def mapped(self, shift: np.ndarray, scale: np.ndarray) -> FeatureSet:
        """Every embedding as ``(x - shift) / scale``."""
        frame = None if self.frame is None else (self.frame - shift) / scale
        return FeatureSet(
            modality=self.modality,
            names=self.names,
            utterance=(self.utterance - shift) / scale,
            frame=frame,
            offsets=self.offsets,
            missing=self.missing,
        )


@dataclass(frozen=True, kw_only=True)
class StoredShard:
    """A shard's features on disk: each tensor is read only when it is accessed."""

    path: Path
    modality: str
    names: list[str]
    missing: dict[str, str]
    #: tensor -> dtype, shape, and byte offset in the file.
    tensors: dict[str, tuple[np.dtype, list[int], int]]

    @classmethod
    def open(cls, path: Path, frames: bool = True) -> StoredShard:
        """
        Raises:
            UserError: it is not a complete feature file.
        """
        with reading(path, _AGAIN):
            with safe_open(path, "numpy") as complete:  # checks more of the header than where its tensors lie
                facts = stored_header(complete)
            tensors = {
                name: (_DTYPES[entry.dtype], entry.shape, entry.start)
                for name, entry in tensor_file.header(path).items()
                if frames or name == "utterance"
            }
            shard = cls(
                path=path,
                modality=facts["modality"],
                names=facts["names"],
                missing=facts["missing"],
                tensors=tensors,
            )
            shard._check()
            return shard

    def _check(self) -> None:
        """Refuse tensors that do not match the names; a damaged header can still be readable."""
        kind, shape, _ = self.tensors["utterance"]
        if len(shape) != 2 or kind.kind != "f" or shape[0] != len(self.names):
            raise ValueError(f"embeddings of shape {shape} for {len(self.names)} clips")
        if self.has_frames:
            offsets = self.offsets
            frames = self.tensors["frame"][1]
            if offsets.shape != (len(self.names) + 1,) or offsets.dtype.kind != "i" or len(frames) != 2:
                raise ValueError("its offsets do not match its clips")
            if offsets[0] != 0 or offsets[-1] != frames[0] or (np.diff(offsets) < 0).any():
                raise ValueError("its offsets do not match its frames")

    @property
    def width(self) -> int:
        return self.tensors["utterance"][1][1]

    @property
    def dtype(self) -> np.dtype:
        return self.tensors["utterance"][0]

    @property
    def has_frames(self) -> bool:
        return "frame" in self.tensors

    @property
    def utterance(self) -> np.ndarray:
        return self._read("utterance")

    @property
    def frame(self) -> np.ndarray:
        return self._read("frame")

    @property
    def offsets(self) -> np.ndarray:
        return self._read("offsets")

    def _read(self, name: str) -> np.ndarray:
        dtype, shape, start = self.tensors[name]
        # No memory map: a file truncated meanwhile would end the process with SIGBUS.
        with reading(self.path, _AGAIN):
            return np.fromfile(self.path, dtype, math.prod(shape), offset=start).reshape(shape)


def _means(frame: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Mean of the rows ``starts[i]:stops[i]``, none of them empty: ``(n, D)`` float32.

    A sparse product adds complete rows in order; ``np.add.reduceat`` would go column by column.
    """
    from scipy.sparse import csr_array

    lengths = stops - starts
    ends = np.cumsum(lengths)
    columns = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    ones = np.ones(len(columns), np.float32)
    sums = csr_array((ones, columns, np.concatenate([[0], ends])), shape=(len(lengths), len(frame)))
    return sums @ frame.astype(np.float32, copy=False) / lengths[:, None].astype(np.float32)


def join(parts: Sequence[FeatureSet | StoredShard], order: list[str] | None = None) -> FeatureSet:
    """One set from the disjoint parts of several shards or adapters.

    Args:
        order: clips that come first and in this order, the rest after them; None: the order of
            the parts.

    Raises:
        UserError: there is no part, two have a clip in common, or they differ in modality or width.
    """
    _check_parts(parts)
    names = [name for part in parts for name in part.names]
    position_of = {name: position for position, name in enumerate(order or ())}
    source = np.argsort([position_of.get(name, len(position_of)) for name in names], kind="stable")
    target = np.empty_like(source)
    target[source] = np.arange(len(source))
    targets = np.split(target, np.cumsum([len(part.names) for part in parts])[:-1])

    dtype = np.result_type(*(part.dtype for part in parts))
    utterance = np.empty((len(names), parts[0].width), dtype)
    for part, rows in zip(parts, targets, strict=True):
        utterance[rows] = part.utterance
    frame = offsets = None
    if all(part.has_frames for part in parts):
        frame, offsets = _join_frames(parts, source, targets)
    return FeatureSet(
        modality=parts[0].modality,
        names=[names[row] for row in source],
        utterance=utterance,
        frame=frame,
        offsets=offsets,
        missing={name: why for part in parts for name, why in part.missing.items()},
    )


def _check_parts(parts: Sequence[FeatureSet | StoredShard]) -> None:
    if not parts:
        raise UserError("there are no features to read; run extract first")
    count = Counter(name for part in parts for name in part.names)
    if len(count) < count.total():
        twice = sorted(name for name, times in count.items() if times > 1)[:3]
        raise UserError(f"features hold the same clip twice, for example {', '.join(twice)}")
    if len({(part.modality, part.width) for part in parts}) > 1:
        kinds = sorted({f"{part.modality} of width {part.width}" for part in parts})
        raise UserError(f"parts of one feature set differ: {'; '.join(kinds)}; extract again")


def _join_frames(
    parts: Sequence[FeatureSet | StoredShard], source: np.ndarray, targets: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and offsets of a joined set, whose row i was row ``source[i]`` of the parts."""
    spans = [np.asarray(part.offsets) for part in parts]
    lengths = np.concatenate([np.diff(span) for span in spans])
    offsets = np.concatenate([[0], np.cumsum(lengths[source])])
    frame: np.ndarray | None = None
    for part, span, rows in zip(parts, spans, targets, strict=True):
        own = np.asarray(part.frame)
        if frame is None:
            frame = np.empty((offsets[-1], own.shape[1]), own.dtype)
        target = np.arange(len(own)) + np.repeat(offsets[rows] - span[:-1], np.diff(span))
        frame[target] = own
    assert frame is not None, "there is a part"
    return frame, offsets


def pack(
    embeddings: dict[str, np.ndarray],
    modality: str,
    width: int,
    settings: ExtractConfig,
    missing: dict[str, str] | None = None,
) -> FeatureSet:
    """The embeddings ``(T, D)`` of each clip as a feature set, in the precision of ``extract.storage``."""
    kind, parts = STORAGE[settings.storage], [*embeddings.values()]
    utterance = np.stack([part.mean(0) for part in parts]) if parts else np.zeros((0, width))
    frame = offsets = None
    if settings.frame_level:
        frame = (np.concatenate(parts) if parts else np.zeros((0, width))).astype(kind)
        offsets = np.cumsum([0, *map(len, parts)])
    return FeatureSet(
        modality=modality,
        names=[*embeddings],
        utterance=utterance.astype(kind),
        frame=frame,
        offsets=offsets,
        missing=missing or {},
    )


def write_shard(path: Path, features: FeatureSet, fingerprint: str = "") -> None:
    """Write one shard's features atomically, with the fingerprint of their inputs."""
    tensors = {"utterance": np.ascontiguousarray(features.utterance)}
    if features.frame is not None:
        tensors["frame"] = np.ascontiguousarray(features.frame)
        tensors["offsets"] = np.asarray(features.offsets, np.int64)
    facts = {
        "modality": str(features.modality),
        "names": features.names,
        "missing": features.missing,
        "fingerprint": fingerprint,
    }
    # One entry only: safetensors writes several in an order that changes from call to call.
    metadata = {_FACTS: json.dumps(facts, ensure_ascii=False, sort_keys=True)}
    write_bytes(path, safetensors.numpy.save(tensors, metadata))


def stored_header(file: safe_open) -> dict:
    """The metadata of an open feature file: modality, names, missing, fingerprint."""
    facts = json.loads((file.metadata() or {})[_FACTS])
    texts = [facts["modality"], facts["fingerprint"], *facts["names"], *facts["missing"].values()]
    if not all(isinstance(text, str) for text in texts) or not isinstance(facts["names"], list):
        raise ValueError("its names or reasons are not strings")
    return facts


def stored_fingerprint(path: Path) -> str | None:
    """The fingerprint of a shard's features; None if absent or unreadable."""
    try:
        with safe_open(path, "numpy") as file:
            return stored_header(file)["fingerprint"]
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def shard_missing(path: Path) -> tuple[str, dict[str, str]]:
    """Modality of a shard's features, and which clips lack them and why, without reading tensors.

    Raises:
        UserError: it is not a complete feature file.
    """
    with reading(path, _AGAIN), safe_open(path, "numpy") as file:
        facts = stored_header(file)
        return facts["modality"], facts["missing"]


def describe(folder: Path, **facts) -> None:
    """Write ``set.json``: modality, width and origin of the set."""
    write_json(FeatureFolder(folder).description, facts)


def description(folder: Path) -> dict:
    """The content of ``set.json``.

    Raises:
        UserError: there is no set, or it is incomplete.
    """
    path = FeatureFolder(folder).description
    if not path.exists():
        raise UserError(f"{folder}: no feature set there; run extract or import first")
    with reading(path, "delete its folder and run extract, or import again"):
        facts = read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts["modality"], str):
            raise ValueError("not a description of a feature set")
        return facts


def load(folder: Path, frames: bool = True, order: list[str] | None = None) -> FeatureSet:
    """All shards of the set in ``folder``; each row is copied only once from its file.

    Args:
        order: as for :func:`join`.

    Raises:
        UserError: there is no set, a file is incomplete, or the files do not match each other.
    """
    description(folder)
    paths = FeatureFolder(folder).shards()
    return join([StoredShard.open(path, frames) for path in paths], order)
