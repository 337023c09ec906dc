"""The answer file: which row of the result table answers, for which clips, and what is told about the rest."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.corpus import table
from mer_dist.features import join
from mer_dist.features.join import Clips
from mer_dist.fusion import label_shift
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.recipes import wanted_names
from mer_dist.shards import shard_index
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

SHOWN = 3
#: Bootstrap draws behind the standard error of a difference.
DRAWS = 200


@dataclass(frozen=True)
class Answering:
    """Which row of the result table answers."""

    #: Its title, and that of the row with the best out-of-fold score.
    row: str
    best: str
    #: Out-of-fold WAF of both, in [0, 1].
    waf: float
    best_waf: float
    #: Standard error of their difference.
    error: float

    def __str__(self) -> str:
        if self.row == self.best:
            return f"{self.row} answers: no row has a better out-of-fold WAF than its {100 * self.waf:.2f} %"
        return (
            f"{self.row} answers, with an out-of-fold WAF of {100 * self.waf:.2f} %: the best, {self.best}, has "
            f"{100 * self.best_waf:.2f} %, which is within a standard error ({100 * self.error:.2f}) of it"
        )


def choose(
    rows: Sequence[Predictions], truth: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[int, Answering]:
    """The row with the best out-of-fold WAF, or the first that is within one standard error of it.

    The standard error is that of the paired difference, by a bootstrap over groups (the one-standard-error rule,
    Breiman et al. 1984): with few clips the best of many rows is best by chance.

    Args:
        rows: the simplest first.
        truth: (N,) int, -1 for unlabelled clips.
        groups: (N,), clips drawn together.
    """
    labeled = np.flatnonzero(truth >= 0)
    truth, draw = truth[labeled], label_shift.resampler(groups[labeled])
    random = np.random.default_rng(seed)
    counts = np.stack([np.bincount(draw(random), minlength=len(truth)) for _ in range(DRAWS)])
    answers = [row.answer[labeled] for row in rows]
    wafs = np.array([metrics.waf(truth, answer) for answer in answers])
    drawn = np.stack([metrics.weighted_waf(truth, answer, counts) for answer in answers])
    best = int(wafs.argmax())
    errors = (drawn[best] - drawn).std(1)
    chosen = int(np.flatnonzero(wafs[best] - wafs <= errors)[0])
    return chosen, Answering(
        row=rows[chosen].title,
        best=rows[best].title,
        waf=float(wafs[chosen]),
        best_waf=float(wafs[best]),
        error=float(errors[chosen]),
    )


def check_names(config: Config, clips: Clips, run: Run) -> None:
    """Refuse clips of ``vote.names`` that could not be predicted, before any training.

    Raises:
        UserError: there is no such file, or some names are wrong; lists them and why.
    """
    asked(config, clips, run)


def asked(config: Config, clips: Clips, run: Run) -> tuple[list[str], set[str]]:
    """The clips of ``answer.csv`` in its order, and those of them that are completely in quarantine.

    Raises:
        UserError: ``vote.names`` names clips that this run cannot predict.
    """
    unlabeled = [name for name, known in zip(clips.names, clips.labeled, strict=True) if not known]
    if not config.vote.names:
        wanted = join.asked(config, run)
        candidates = set(unlabeled if wanted is None else wanted)
        return [name for name in unlabeled if name in candidates], set()
    names = wanted_names(config.vote.names)
    quarantined = {row.name for row in quarantine.read(run.quarantine) if row.lost == "clip"}
    known, fold_of = set(clips.names), clips.fold_of
    lost = (set(names) & quarantined) - known
    labeled = [name for name in names if name in fold_of]
    unknown = [name for name in names if name not in known and name not in lost]
    for wrong, why in (
        (
            unknown,
            (
                "are not among the clips of this run, and answers that leave clips out "
                "score 0 for them: check the names, or add the clips and run again"
            ),
        ),
        (labeled, "are labelled clips of this run: leave them out"),
    ):
        if wrong:
            raise UserError(
                f"vote.names {config.vote.names}: {len(wrong)} of {len(names)} names {why}; "
                f"for example {', '.join(wrong[:SHOWN])}"
            )
    return names, lost


def publish(run: Run) -> None:
    """Copy the answer of the vote to ``answer.csv``, unless it is there unchanged."""
    answer = run.vote.answer.read_bytes()
    if not run.answer.exists() or run.answer.read_bytes() != answer:
        files.write_bytes(run.answer, answer)


def tell(config: Config, clips: Clips, present: np.ndarray, run: Run) -> None:
    """Log which clips have an answer, which of them by the class prior alone, and which have none.

    Args:
        present: (N,) bool, False for clips without any modality.
    """
    answered = table.read(run.answer, ("name", "discrete")).rows.keys()
    unlabeled = {clips.names[row]: present[row] for row in np.flatnonzero(~clips.labeled)}
    logger.info(
        "answer: %d of %d unlabelled clips, in %s; the vote's probability of every label, in %s",
        len(answered & unlabeled.keys()),
        len(unlabeled),
        run.answer,
        run.vote.predictions,
    )
    if not config.vote.names and (others := len(unlabeled.keys() - answered)):
        logger.info(
            "answer: %d unlabelled clips are no candidates of the corpus, and are only learned from", others
        )
    labeled = set(clips.names) - unlabeled.keys() | (shard_index.unstored(run.shards) or {}).keys()
    lost = {row.name: row.reason for row in quarantine.read(run.quarantine) if row.lost == "clip"}
    unread = {name: lost[name] for name in lost.keys() - unlabeled.keys() - labeled - answered}
    for found, what in (
        (
            {name for name, there in unlabeled.items() if name in answered and not there},
            "of these clips have no usable modality and get the most frequent label",
        ),
        (
            unlabeled.keys() - answered if config.vote.names else set(),
            f"unlabelled clips are not in vote.names {config.vote.names} and have no answer",
        ),
        (
            {f"{name} ({why})" for name, why in unread.items()},
            "entries of the corpus are left out completely and have no answer",
        ),
    ):
        if found:
            logger.warning(
                "answer: %d %s; for example %s", len(found), what, ", ".join(sorted(found)[:SHOWN])
            )


def write(path: Path, made: Predictions, names: list[str], lost: set[str], common: str) -> None:
    """The CSV ``name,discrete`` of ``names``; those that are ``lost`` get the label ``common``."""
    answers = made.answers()
    if lost:
        some = ", ".join([name for name in names if name in lost][:SHOWN])
        logger.warning(
            "vote: %d clips of vote.names are in quarantine and get the most "
            "frequent label, %s; for example %s",
            len(lost),
            common,
            some,
        )
    answers |= dict.fromkeys(lost, common)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "discrete"))
        writer.writerows((name, answers[name]) for name in names)
