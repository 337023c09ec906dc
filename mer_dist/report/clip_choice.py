"""Which clips the page shows: those that say most about why a model errs.

Every clip gets a strength for each kind by arrays, since a run has hundred thousands of them; only the few that are
shown become objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.teachers import Teacher
from mer_dist.report.run_data import ShownClip

#: The kinds, in the order of the page.
ERRORS, UNCERTAIN, MODALITIES, TEACHERS = "errors", "uncertain", "modalities", "teachers"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known of all N clips of a run."""

    #: The row of the result table that answers.
    row: Predictions
    #: (N,) int: the true label; -1 where it is not known.
    truth: np.ndarray
    #: (N,) bool: whether there may be something to look at or listen to.
    stored: np.ndarray
    #: Modality -> (N, C) probabilities by it alone.
    by_modality: dict[str, np.ndarray]
    teachers: list[Teacher]


def choose(judged: Judged, most: int) -> dict[str, tuple[int, list[ShownClip]]]:
    """Kind -> the number of its clips, and the strongest of them: ``most`` clips in all, each once.

    Every kind that has clips gets an equal share.
    """
    strengths = {kind: np.where(judged.stored, own, -np.inf) for kind, own in _strengths(judged).items()}
    there = {kind: own for kind, own in strengths.items() if (own > -np.inf).any()}
    groups: dict[str, tuple[int, list[ShownClip]]] = {}
    taken = np.zeros(len(judged.truth), bool)
    for place, (kind, strength) in enumerate(there.items()):
        share = (most + len(there) - 1 - place) // len(there)
        count = int((strength > -np.inf).sum())
        free = np.where(taken, -np.inf, strength)
        first = np.argsort(-free, kind="stable")[:share]
        rows = first[free[first] > -np.inf].tolist()
        taken[rows] = True
        groups[kind] = count, [_shown(judged, row, kind == TEACHERS) for row in rows]
    return groups


def _strengths(judged: Judged) -> dict[str, np.ndarray]:
    """Kind -> (N,): how much a clip is of that kind; minus infinity where it is not."""
    row = judged.row
    sure = row.probability[np.arange(len(row.answer)), row.answer]
    wrong = row.labeled & (judged.truth >= 0) & (row.answer != judged.truth)
    found = {
        ERRORS: np.where(wrong, sure, -np.inf),
        UNCERTAIN: np.where(row.labeled, -np.inf, _entropy(row.probability)),
    }
    if len(judged.by_modality) > 1:
        alone = np.stack([*judged.by_modality.values()])
        labels = alone.argmax(2)
        # The generalised Jensen-Shannon divergence (Lin 1991).
        divergence = _entropy(alone.mean(0)) - _entropy(alone).mean(0)
        found[MODALITIES] = np.where((labels != labels[0]).any(0), divergence, -np.inf)
    if judged.teachers:
        against = [_against(teacher, row.answer, sure) for teacher in judged.teachers]
        found[TEACHERS] = np.max(against, axis=0)
    return found


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Over the last axis, in nats."""
    return -(probability * np.log(np.maximum(probability, 1e-12))).sum(-1)


def _against(teacher: Teacher, answer: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """(N,): how sure both are, where the teacher's label is not the answer."""
    apart = teacher.covers & (teacher.answer != answer)
    return np.where(apart, np.nan_to_num(teacher.probability).max(1) * sure, -np.inf)


def _shown(judged: Judged, row: int, taught: bool) -> ShownClip:
    own = judged.row
    truth, answer = judged.truth[row], own.answer[row]
    teacher = None
    if taught:
        against = [one for one in judged.teachers if one.answer[row] not in (-1, answer)]
        surest = max(against, key=lambda one: one.probability[row].max())
        teacher = surest.name, surest.probability[row].tolist()
    return ShownClip(
        name=own.names[row],
        label=own.labels[truth] if truth >= 0 else None,
        answer=own.labels[answer],
        probability=own.probability[row].tolist(),
        by_modality={name: found[row].tolist() for name, found in judged.by_modality.items()},
        teacher=teacher,
    )
