"""A model's prediction of every clip: one parquet per row of the result table.

Columns: ``name``, ``split`` (labeled or unlabeled), ``fold`` (of a labelled clip; -1 otherwise),
``p_<label>`` for every label, and ``answer``. Predictions of a labelled clip are out of fold:
their model never trained on that clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.core.errors import reading
from mer_dist.core.records import LABELED
from mer_dist.corpus import table
from mer_dist.features.join import Clips
from mer_dist.storage import parquet
from mer_dist.storage.files import atomic
from mer_dist.storage.run_folder import ALL_SETS, STACKED, Run

AGAIN = "delete its folder and run fuse"
SHOWN = 3


@dataclass(kw_only=True)
class Predictions:
    title: str
    labels: list[str]
    names: list[str]
    #: (N,) bool: True for a labelled clip.
    labeled: np.ndarray
    #: (N,) int: -1 for unlabelled clips.
    fold: np.ndarray
    #: (N, C), rows sum to 1.
    probability: np.ndarray
    #: (N,) int: index into ``labels``.
    answer: np.ndarray

    @classmethod
    def of(
        cls, clips: Clips, title: str, probability: np.ndarray, answer: np.ndarray | None = None
    ) -> Predictions:
        """Predictions of all ``clips``; ``answer`` None: the most probable label of each."""
        return cls(
            title=title,
            labels=clips.labels,
            names=clips.names,
            labeled=clips.labeled,
            fold=clips.fold,
            probability=probability,
            answer=probability.argmax(1) if answer is None else answer,
        )

    def answers(self) -> dict[str, str]:
        """name -> label."""
        return {name: self.labels[row] for name, row in zip(self.names, self.answer, strict=True)}


def write(path: Path, predictions: Predictions) -> None:
    splits = np.where(predictions.labeled, "labeled", "unlabeled")
    columns = {
        "name": predictions.names,
        "split": splits.tolist(),
        "fold": predictions.fold.astype(np.int32),
        **{
            f"p_{label}": predictions.probability[:, column].astype(np.float64)
            for column, label in enumerate(predictions.labels)
        },
        "answer": [predictions.labels[row] for row in predictions.answer],
    }
    facts = {"title": predictions.title, "labels": json.dumps(predictions.labels, ensure_ascii=False)}
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(facts), temporary)


def read(path: Path) -> Predictions:
    """The predictions in one file.

    Raises:
        UserError: it is not readable.
    """
    with reading(path, AGAIN):
        return _understood(parquet.read(path))


def _understood(content: pa.Table) -> Predictions:
    facts = {key.decode(): value.decode() for key, value in content.schema.metadata.items()}
    labels = json.loads(facts["labels"])
    index = {label: row for row, label in enumerate(labels)}
    if any(column.null_count for column in content.columns):
        raise ValueError("fields are empty")
    return Predictions(
        title=facts["title"],
        labels=labels,
        names=content["name"].to_pylist(),
        labeled=np.array([split == LABELED for split in content["split"].to_pylist()]),
        fold=content["fold"].to_numpy(),
        probability=np.stack([content[f"p_{label}"].to_numpy() for label in labels], 1),
        answer=np.array([index[label] for label in content["answer"].to_pylist()]),
    )


def voted(run: Run) -> dict[str, str]:
    """name -> label in the vote's own ``answer.csv``; empty if there was no vote."""
    return _answers(run.vote.answer)


def answered(run: Run, voted: dict[str, str]) -> dict[str, str]:
    """name -> label in ``answer.csv``, which is that of the vote, :func:`voted`, unless somebody changed it.

    Raises:
        UserError: it is not such a table.
    """
    return voted if voted and _untouched(run) else _answers(run.answer)


def _untouched(run: Run) -> bool:
    """Whether the run's answer is that of the vote: two files are compared much faster than read."""
    both = run.answer, run.vote.answer
    return all(path.exists() for path in both) and both[0].read_bytes() == both[1].read_bytes()


def _answers(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    return {name: row["discrete"] for name, row in table.read(path, ("name", "discrete")).rows.items()}


def edited(run: Run) -> str:
    """How ``answer.csv`` differs from the vote: numbers of clips, with examples; empty where it does not
    differ or there is none.

    Raises:
        UserError: it is not such a table.
    """
    if _untouched(run) or not (run.vote.answer.exists() and run.answer.exists()):
        return ""
    ours, theirs = _answers(run.vote.answer), _answers(run.answer)
    kinds = {
        "have another label": [
            f"{name} {theirs[name]} and not {label}"
            for name, label in ours.items()
            if theirs.get(name, label) != label
        ],
        "are missing": [name for name in ours if name not in theirs],
        "were added": [name for name in theirs if name not in ours],
    }
    return "; ".join(
        f"{len(found)} rows {what} ({', '.join(found[:SHOWN])}{', …' * (len(found) > SHOWN)})"
        for what, found in kinds.items()
        if found
    )


def all_of(run: Run) -> list[Path]:
    """The prediction files of a run in the order of the result table, the simplest first."""
    last = {ALL_SETS: 1, STACKED: 2}
    return [
        *sorted(run.linear_probes.all_predictions(), key=lambda path: (last.get(path.stem, 0), path)),
        *(one.predictions for one in run.rounds() if one.predictions.exists()),
        *([run.vote.predictions] if run.vote.predictions.exists() else []),
    ]
