"""The feature store: extract writes it shard by shard, fuse reads it by clip name.

A *feature set* is a folder ``features/<set>/`` of one safetensors file per shard. A file holds
rows for the clips that have the modality; the others are named under ``missing`` with a reason,
so no row of zeros can ever pass for data.

Tensors of a file, for N clips with vectors of size D and F frames (or tokens) in all::

    utterance  (N, D)    one vector a clip
    frame      (F, D)    ragged, present at frame level only
    offsets    (N + 1,)  clip i owns frame[offsets[i]:offsets[i + 1]]
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mer_dist.errors import UserError
from mer_dist.files import atomic, read_json, write_json

DESCRIPTION = "set.json"
_FACTS = "mer_dist"


@dataclass(kw_only=True)
class FeatureSet:
    """Features of some clips by one extractor; see the module for the shapes."""

    modality: str
    names: list[str]
    utterance: np.ndarray
    frame: np.ndarray | None = None
    offsets: np.ndarray | None = None
    #: name -> why the clip has no row.
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.utterance.shape[1]

    def utterances(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors ``(N, D)`` float32 in the order of ``names`` and a mask ``(N,)``, True if present."""
        rows, valid = self._rows(names)
        values = np.zeros((len(names), self.width), np.float32)
        values[valid] = self.utterance[rows[valid]]
        return values, valid

    def tokens(self, names: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames pooled to at most ``count`` tokens by the mean over equal stretches.

        Returns ``(N, count, D)`` float32 and the mask ``(N, count)``.

        Raises:
            UserError: the set was stored at utterance level only.
        """
        if self.frame is None:
            raise UserError("this feature set has no frame level; extract with frame_level: true")
        rows, valid = self._rows(names)
        values = np.zeros((len(names), count, self.width), np.float32)
        mask = np.zeros((len(names), count), bool)
        for position in np.flatnonzero(valid):
            start, stop = self.offsets[rows[position] : rows[position] + 2]
            parts = min(count, stop - start)
            edges = np.linspace(start, stop, parts + 1).astype(int)
            for token in range(parts):
                stretch = self.frame[edges[token] : edges[token + 1]]
                values[position, token] = stretch.astype(np.float32).mean(0)
            mask[position, :parts] = True
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
            spans = [self.frame[self.offsets[row] : self.offsets[row + 1]] for row in keep]
            frame = np.concatenate(spans) if spans else self.frame[:0]
            offsets = np.cumsum([0, *map(len, spans)])
        return FeatureSet(
            modality=self.modality,
            names=[self.names[row] for row in keep],
            utterance=self.utterance[keep],
            frame=frame,
            offsets=offsets,
            missing={name: why for name, why in self.missing.items() if name in names},
        )

    def mapped(self, shift: np.ndarray, scale: np.ndarray) -> FeatureSet:
        """Every vector as ``(x - shift) / scale``."""
        frame = None if self.frame is None else (self.frame - shift) / scale
        return FeatureSet(
            modality=self.modality, names=self.names, utterance=(self.utterance - shift) / scale,
            frame=frame, offsets=self.offsets, missing=self.missing,
        )


def join(parts: list[FeatureSet]) -> FeatureSet:
    """One set from the disjoint parts of several shards or extractor copies."""
    if not parts:
        raise UserError("there are no features to read; run extract first")
    names = [name for part in parts for name in part.names]
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)[:3]
        raise UserError(f"features hold the same clip twice, for example {', '.join(twice)}")
    if len({(part.modality, part.width) for part in parts}) > 1:
        kinds = sorted({f"{part.modality} of width {part.width}" for part in parts})
        raise UserError(f"parts of one feature set differ: {'; '.join(kinds)}; extract again")
    frame = offsets = None
    if all(part.frame is not None for part in parts):
        frame = np.concatenate([part.frame for part in parts])
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
    return FeatureSet(
        modality=parts[0].modality,
        names=names,
        utterance=np.concatenate([part.utterance for part in parts]),
        frame=frame,
        offsets=offsets,
        missing={name: why for part in parts for name, why in part.missing.items()},
    )


def write_shard(path: Path, features: FeatureSet, made_from: str = "") -> None:
    """Write one shard's features atomically, stamped with the fingerprint they were made from."""
    tensors = {"utterance": np.ascontiguousarray(features.utterance)}
    if features.frame is not None:
        tensors["frame"] = np.ascontiguousarray(features.frame)
        tensors["offsets"] = np.asarray(features.offsets, np.int64)
    facts = {
        "modality": str(features.modality),
        "names": features.names,
        "missing": features.missing,
        "made_from": made_from,
    }
    # One entry only: safetensors writes several in an order that changes from call to call.
    metadata = {_FACTS: json.dumps(facts, ensure_ascii=False, sort_keys=True)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def shard_facts(file: safe_open) -> dict:
    """What an open feature file says of itself: modality, names, missing, made_from."""
    return json.loads((file.metadata() or {})[_FACTS])


def shard_made_from(path: Path) -> str | None:
    """The fingerprint a shard's features were made from; None if absent or unreadable."""
    try:
        with safe_open(path, "numpy") as file:
            return shard_facts(file)["made_from"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def shard_missing(path: Path) -> tuple[str, dict[str, str]]:
    """Modality of a shard's features, and which clips have none and why, without reading vectors."""
    with safe_open(path, "numpy") as file:
        facts = shard_facts(file)
    return facts["modality"], facts["missing"]


def read_shard(path: Path, frames: bool = True) -> FeatureSet:
    """One shard; without ``frames`` only its utterance vectors, a small part of the file."""
    try:
        with safe_open(path, "numpy") as file:
            facts = shard_facts(file)
            wanted = file.keys() if frames else ["utterance"]
            tensors = {name: file.get_tensor(name) for name in wanted}
        return FeatureSet(
            modality=facts["modality"],
            names=facts["names"],
            utterance=tensors["utterance"],
            frame=tensors.get("frame"),
            offsets=tensors.get("offsets"),
            missing=facts["missing"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole feature file ({error}); delete it and run extract") from None


def describe(folder: Path, **facts) -> None:
    """Write ``set.json``: modality, width, where the set comes from."""
    write_json(Path(folder) / DESCRIPTION, facts)


def description(folder: Path) -> dict:
    try:
        return read_json(Path(folder) / DESCRIPTION)
    except (OSError, ValueError):
        raise UserError(f"{folder}: no feature set there; run extract or import first") from None


def load(folder: Path, frames: bool = True) -> FeatureSet:
    """All shards of the set in ``folder``."""
    description(folder)
    return join([read_shard(path, frames) for path in sorted(Path(folder).glob("[0-9]*.safetensors"))])
