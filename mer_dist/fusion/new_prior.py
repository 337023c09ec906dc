"""The class prior of new clips, estimated from all of them together, as the vote does it for those of the run.

What ``predict`` says of a clip then depends on the clips beside it, so it is done only if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.crossfit import folds
from mer_dist.features.join import Clips
from mer_dist.fusion import correction, decisions, label_shift, predictions
from mer_dist.fusion.correction import Verdict
from mer_dist.fusion.cross_fitted import CrossFittedRound
from mer_dist.storage.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class LabeledClips:
    """What estimating needs of the L labelled clips that have features."""

    #: (L, C), out of fold: of round 0, and of the vote.
    of_round_0: np.ndarray
    pooled: np.ndarray
    #: (L,) int
    truth: np.ndarray
    #: (L,) int: numbers of their groups.
    group: np.ndarray
    #: (C,): label shares of all labelled clips.
    shares: np.ndarray

    @classmethod
    def of_run(cls, clips: Clips, run: Run, pattern: str) -> LabeledClips:
        """
        Args:
            pattern: ``folds.group``.

        Raises:
            UserError: a file of the run is not readable, or of other clips.
        """
        first, voted = CrossFittedRound.load(run, 0), predictions.read(run.vote.predictions)
        if voted.names != clips.names or len(first.present) != len(clips.names):
            raise UserError(
                f"{run.folder}: its predictions are of other clips than its labels; run fuse again"
            )
        rows = np.flatnonzero(clips.labeled & first.present)
        # In no order that tells which clip is which: a bundle is given to others.
        rows = np.random.default_rng(0).permutation(rows)
        names = [clips.names[row] for row in rows]
        groups = [folds.group_of(name, pattern) or name for name in names] if pattern else names
        return cls(
            of_round_0=first.oof.probability[rows],
            pooled=voted.probability[rows],
            truth=clips.truth[rows],
            group=np.unique(groups, return_inverse=True)[1],
            shares=label_shift.shares(clips.truth[clips.labeled], len(clips.labels)),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(values) for name, values in vars(self).items()}


def correct(
    labeled: LabeledClips,
    probability: np.ndarray,
    fold_predictions: np.ndarray,
    present: np.ndarray,
    seed: int,
    should_stop: ShouldStop = never,
) -> tuple[np.ndarray, np.ndarray, Verdict]:
    """Estimate the prior of n clips, and correct for it where the vote would.

    Args:
        probability: (n, C), of the vote.
        fold_predictions: (K, n, C), by the models of each fold of round 0.
        present: (n,) bool, the clips that have features.

    Returns:
        (n, C) and the answers (n,), corrected or not, and what was decided.
    """
    answer = probability.argmax(1)
    count = int(present.sum())
    groups = labeled.group, labeled.group.max(initial=-1) + 1 + np.arange(count)
    evidence = correction.gather(
        labeled.of_round_0, labeled.truth, fold_predictions[:, present], seed, groups, should_stop
    )
    verdict = correction.assess(evidence, None, labeled.pooled, labeled.truth, seed, labeled.group)
    if not verdict.applied:
        return probability, answer, verdict
    corrected = label_shift.adapt(probability, labeled.shares, verdict.tried)
    answer = decisions.decide(corrected)
    answer[~present] = corrected[~present].argmax(1)
    return corrected, answer, verdict
