"""pseudo_labels.parquet: the pseudo-label of every unlabelled clip in one round.

One row per fold and unlabelled clip, the folds one after the other: ``fold`` whose models train
on it, ``name``, ``p_<label>`` for every label (calibrated, from the models of the round before),
``pseudo_label``, ``selected``, ``reason`` if not, ``threshold`` of its label (empty: none is
precise enough), ``weight``, and ``models`` that voted, each as ``fold-K/seed-S``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer_dist.core.errors import reading
from mer_dist.fusion.pseudo_labels import REASONS, PseudoLabels
from mer_dist.storage import parquet

#: Largest dictionary of a column's distinct strings, in bytes: 100,000 clip names.
_DICTIONARY = 1 << 24


def write(
    path: Path, names: list[str], labels: list[str], chosen: list[PseudoLabels], models: list[str]
) -> None:
    """Write the pseudo-labels of a round.

    Args:
        names: of the N unlabelled clips.
        chosen: per fold, with N entries each.
        models: per fold, the names of the models that voted, joined by spaces.
    """
    folds, count = len(chosen), len(names)

    def of_all(field: str) -> np.ndarray:
        return np.concatenate([getattr(one, field) for one in chosen])

    def coded(codes: np.ndarray, words: list[str]) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(words, pa.string()))

    probability, label = of_all("probability").astype(np.float32), of_all("label")
    threshold = np.concatenate([one.threshold[one.label] for one in chosen]).astype(np.float32)
    fold = np.repeat(np.arange(folds), count)
    columns = {
        "fold": pa.array(fold.astype(np.int16)),
        "name": coded(np.tile(np.arange(count), folds), names),
        **{f"p_{name}": pa.array(probability[:, row]) for row, name in enumerate(labels)},
        "pseudo_label": coded(label, labels),
        "selected": pa.array(of_all("taken")),
        "reason": coded(of_all("reason"), list(REASONS)),
        "threshold": pa.array(threshold, mask=np.isinf(threshold)),
        "weight": pa.array(of_all("weight").astype(np.float32)),
        "models": coded(fold, models),
    }
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        dictionary_pagesize_limit=_DICTIONARY,
        use_dictionary=[name for name, column in columns.items() if pa.types.is_dictionary(column.type)],
    )


def of_clip(path: Path, name: str) -> list[dict]:
    """The rows of one clip, by fold; none for a labelled clip.

    Raises:
        UserError: the file is not readable.
    """
    with reading(path, "delete its folder and run fuse"):
        return parquet.read(path).filter(pc.field("name") == name).to_pylist()
