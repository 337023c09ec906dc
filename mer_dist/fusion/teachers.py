"""Answers of outside labellers: another system, a multimodal language model, people. Each may know some of the clips.

A teacher joins the vote after its members: a log-linear pool (Genest & Zidek 1986) of their calibrated prediction and
the teacher's, ``softmax(a log p + b log q + bias)``, fitted on the labelled clips that it covers. A penalty holds the
pool at ``a = 1, b = 0``, so a teacher that tells nothing, or is seen on few clips, changes nothing. By
``self_train.rule: consensus`` a teacher also has a say in which pseudo-labels are taken. What a teacher may have seen
cannot be known: if labelled clips were among it, it is trusted too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.config.config import Config
from mer_dist.core.errors import UserError, reading
from mer_dist.features.join import Clips
from mer_dist.fusion import label_shift
from mer_dist.storage import files, parquet
from mer_dist.storage.run_folder import Run

#: With fewer labelled clips a teacher has no say.
LEAST = 20
#: Probability of the label where a teacher names nothing else.
SURE = 0.9
#: Of what a teacher rules out: it may err.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Teacher:
    name: str
    #: (N, C) probabilities, NaN where it says nothing of a clip.
    probability: np.ndarray

    @property
    def covers(self) -> np.ndarray:
        """(N,) bool"""
        return np.isfinite(self.probability).all(1)

    @property
    def answer(self) -> np.ndarray:
        """(N,) int, -1 where it says nothing."""
        return np.where(self.covers, np.nan_to_num(self.probability, nan=-1.0).argmax(1), -1)


@dataclass(frozen=True)
class Pool:
    """``softmax(own · log p + teacher · log q + bias)``"""

    own: float
    teacher: float
    #: (C,)
    bias: np.ndarray

    def __call__(self, probability: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """(n, C) of both to (n, C)."""
        logits = self.own * _log(probability) + self.teacher * _log(teacher) + self.bias
        return label_shift.softmax(logits)


def _log(probability: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probability, _FLOOR))


def fit(probability: np.ndarray, teacher: np.ndarray, truth: np.ndarray, bias: bool = True) -> Pool:
    """The most likely pool under unit-normal penalties on its distance from ``probability`` alone.

    Args:
        probability, teacher: (n, C), of clips that the models did not train on.
        truth: (n,) int.
        bias: whether a label may be preferred whatever both say.
    """
    from scipy.optimize import minimize

    classes = probability.shape[1]
    own, other, target = _log(probability), _log(teacher), np.eye(classes)[truth]
    start = np.concatenate([[1.0, 0.0], np.zeros(classes)])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logits = theta[0] * own + theta[1] * other + theta[2:]
        p = label_shift.softmax(logits)
        wrong, apart = p - target, theta - start
        slope = np.concatenate([[(wrong * own).sum(), (wrong * other).sum()], wrong.sum(0)]) + apart
        likelihood = (np.log(np.maximum(p, 1e-12)) * target).sum()
        return -likelihood + (apart**2).sum() / 2, slope

    # A negative weight would turn what the models or the teacher say into its opposite.
    bounds = [(0.05, None), (0.0, None), *[(None, None) if bias else (0.0, 0.0)] * classes]
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Pool(own=float(theta[0]), teacher=float(theta[1]), bias=theta[2:])


def join(
    teacher: Teacher,
    judged: np.ndarray,
    truth: np.ndarray,
    judged_rows: np.ndarray,
    unjudged: np.ndarray,
    rows: np.ndarray,
    bias: bool = True,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both predictions with the teacher's say where it covers a clip, and its weight; fitted on ``judged``.

    Args:
        judged, unjudged: (n, C), of the clips ``judged_rows`` and ``rows``.
    """
    known, asked = teacher.covers[judged_rows], teacher.covers[rows]
    if known.sum() < LEAST:
        return judged, unjudged, 0.0
    said = teacher.probability
    both = fit(judged[known], said[judged_rows[known]], truth[known], bias)
    judged, unjudged = judged.copy(), unjudged.copy()
    judged[known] = both(judged[known], said[judged_rows[known]])
    unjudged[asked] = both(unjudged[asked], said[rows[asked]])
    return judged, unjudged, both.teacher


@dataclass(frozen=True)
class Together:
    """What all teachers say together of some clips, calibrated."""

    #: (n, C); for a clip that none covers, every label is as likely.
    probability: np.ndarray
    #: (n,) bool: a teacher that has a say covers it.
    covers: np.ndarray


def together(
    taught_by: Sequence[Teacher], truth: np.ndarray, judged_rows: np.ndarray, rows: np.ndarray
) -> tuple[Together, Together]:
    """What the teachers say of the clips ``judged_rows``, whose labels ``truth`` calibrate it, and of ``rows``.

    Without a bias: it would make one label the answer of a teacher that knows nothing to every clip.
    """
    classes = taught_by[0].probability.shape[1]
    judged, unjudged = (np.full((len(own), classes), 1 / classes) for own in (judged_rows, rows))
    heard = [np.zeros(len(own), bool) for own in (judged_rows, rows)]
    for teacher in taught_by:
        judged, unjudged, weight = join(teacher, judged, truth, judged_rows, unjudged, rows, bias=False)
        if weight > 0:
            heard = [
                before | teacher.covers[own] for before, own in zip(heard, (judged_rows, rows), strict=True)
            ]
    return Together(judged, heard[0]), Together(unjudged, heard[1])


def read(config: Config, run: Run, clips: Clips, section: str) -> list[Teacher]:
    """Those of ``vote.teachers`` or ``self_train.teachers``, in that order.

    Args:
        section: ``vote`` or ``self_train``.

    Raises:
        UserError: one was not imported, is not readable, has other labels, or covers no clip.
    """
    return [_read(run, name, clips, section) for name in getattr(config, section).teachers]


def _read(run: Run, name: str, clips: Clips, section: str) -> Teacher:
    path = run.teacher(name)
    if not path.exists():
        raise UserError(
            f"{section}.teachers: there are no answers of {name}; mer-dist import-answers {run.folder} {name} FILE"
        )
    teacher = answers(run, name, clips.labels, clips.names)
    if not teacher.covers.any():
        raise UserError(
            f"{path}: it covers none of the {len(clips.names)} clips of this run; are the names the same?"
        )
    return teacher


def answers(run: Run, name: str, labels: list[str], clips: list[str]) -> Teacher:
    """What an imported teacher says of these clips.

    Raises:
        UserError: its file is not readable, or has other labels.
    """
    path = run.teacher(name)
    with reading(path, "import it again"):
        content = parquet.read(path)
        found = {column.removeprefix("p_"): content[column].to_numpy() for column in content.column_names[1:]}
        names = content["name"].to_pylist()
        if [*found] != labels:
            raise UserError(
                f"{path}: its labels are {', '.join(found)}, and corpus.labels {', '.join(labels)}; import it again"
            )
    row_of = {clip: row for row, clip in enumerate(names)}
    there = np.array([row_of.get(clip, -1) for clip in clips], int)
    probability = np.stack([*found.values()], 1)[there]
    probability[there < 0] = np.nan
    return Teacher(name, probability)


def answer_of(run: Run, name: str, clip: str) -> tuple[str, float] | None:
    """A teacher's label of one clip, and how sure it is; None if it says nothing of it.

    Raises:
        UserError: its answers are not readable.
    """
    path = run.teacher(name)
    if not path.exists():
        return None
    with reading(path, "import it again"):
        content = parquet.read(path)
        names = content["name"].to_pylist()
        if clip not in names:
            return None
        row = content.slice(names.index(clip), 1).to_pylist()[0]
        label, sure = max(
            ((key[2:], value) for key, value in row.items() if key != "name"), key=lambda pair: pair[1]
        )
        return label, float(sure)


def write(run: Run, name: str, labels: list[str], names: list[str], probability: np.ndarray) -> None:
    """Keep a teacher's answers: (n, C) of these clips."""
    columns = {"name": names, **{f"p_{label}": probability[:, row] for row, label in enumerate(labels)}}
    run.teacher(name).parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(run.teacher(name)) as temporary:
        pq.write_table(pa.table(columns), temporary, write_page_checksum=True)


def fingerprints(config: Config, run: Run, section: str) -> list[str]:
    """Of the files of ``vote.teachers`` or ``self_train.teachers``; empty for one that is not there."""
    paths = [run.teacher(name) for name in getattr(config, section).teachers]
    return [files.digest(path) if path.exists() else "" for path in paths]
