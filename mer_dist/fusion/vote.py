"""The answer: a weighted vote of rounds and modalities, then a correction for the class prior.

Weights and calibration for unlabelled clips are fitted on out-of-fold predictions of all labelled clips.
Those for labelled clips of fold k are fitted on other folds, with models that left out fold k and the fold
they predict, so a clip's label does not influence its prediction. Unlabelled clips are decided for expected
WAF under their own prior only where :mod:`mer_dist.fusion.correction` expects a gain; every other clip, and
so every labelled one, gets its most probable label.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.log import logger
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.crossfit import folds
from mer_dist.features.join import Clips
from mer_dist.fusion import answer as answering
from mer_dist.fusion import correction, decisions, label_shift, predictions, teachers
from mer_dist.fusion.cross_fitted import CrossFitted, CrossFittedRound
from mer_dist.fusion.pooling import Pooled, pool
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.recipes import Recipe
from mer_dist.fusion.teachers import Teacher
from mer_dist.storage import files, timings
from mer_dist.storage.run_folder import Run, VoteFolder

TITLE = "prior-aware vote"
SHOWN = 3
#: How the unlabelled clips are answered, in ``prior.json``.
EXPECTED_WAF = "expected WAF, as a correction is applied"
MOST_PROBABLE = "most probable label, as no correction is applied"


def vote(
    config: Config,
    clips: Clips,
    first: CrossFittedRound,
    others: Sequence[CrossFitted | CrossFittedRound],
    recipe: Recipe,
    should_stop: ShouldStop = never,
) -> None:
    """Combine the members, decide, and write ``vote/`` with ``answer.csv`` in it.

    Args:
        first: round 0, before self-training: the prior is estimated from its ``fold_predictions`` of
            the clips that are ``present``.
        others: the other voters.

    Raises:
        UserError: ``vote.names`` names clips that this run cannot predict.
    """
    started = time.monotonic()
    run = Run(config.run.folder)
    names, lost = answering.asked(config, clips, run)
    asked = ~clips.labeled & np.isin(clips.names, names)
    voters, present = [first, *others], first.present
    probability = np.stack([voter.oof.probability for voter in voters])
    nested_oof = np.stack([voter.nested_oof for voter in voters])
    taught_by = teachers.read(config, run, clips, "vote")
    found = pool(probability, nested_oof, clips, present, config.vote.kind, taught_by)
    _tell_taught(found.taught)
    pooled = found.probability
    prior = _prior(config, clips, first, pooled, asked, should_stop)
    prior |= _how_pooled(found, voters, config.vote.kind)
    prior["answered_by"] = EXPECTED_WAF if prior["applied"] else MOST_PROBABLE
    if prior["applied"]:
        old, new = np.array(prior["labeled"]), np.array(prior["used"])
        pooled[~clips.labeled] = label_shift.adapt(pooled[~clips.labeled], old, new)
    answer = _answers(pooled, clips, asked, present, prior["applied"])
    made = Predictions.of(clips, TITLE, pooled, answer)
    answered = _answering_row(config, clips, made, prior)
    common = clips.labels[int(np.argmax(prior["used"]))]
    timings.note(run, "fuse", run.vote.folder, seconds=time.monotonic() - started, clips=len(clips.names))
    with files.atomic_folder(run.vote.folder) as folder:
        made_here = VoteFolder(folder)
        answering.write(made_here.answer, answered, names, lost, common)
        predictions.write(made_here.predictions, made)
        files.write_json(made_here.prior, prior)
        if taught_by:
            models = pool(probability, nested_oof, clips, present, config.vote.kind)
            _write_disputed(made_here.disputed, clips, models.probability, taught_by)
        files.write_marker(folder, recipe.fingerprint, of=recipe.of, clips=len(clips.names))
    logger.info(
        "vote: prior correction %s: %s; %s",
        "applied" if prior["applied"] else "not applied",
        prior["reason"],
        _how(prior["applied"], int((answer != pooled.argmax(1))[asked].sum()), int(asked.sum())),
    )


def _how_pooled(found: Pooled, voters: Sequence[CrossFitted | CrossFittedRound], kind: str) -> dict[str, Any]:
    """What ``prior.json`` says of the vote before any correction."""
    titles = [voter.oof.title for voter in voters]
    *of_folds, of_unlabeled = (dict(zip(titles, own, strict=True)) for own in found.weights.tolist())
    told = {
        "kind": kind,
        "weights": of_unlabeled,
        "weights_of_folds": of_folds,
        "pooling": found.pooling.as_values(),
        "members": [voter.part for voter in voters],
    }
    return told | ({"teachers": found.taught} if found.taught else {})


def _tell_taught(taught: dict[str, dict[str, float]]) -> None:
    """Log what say each teacher has."""
    for name, told in taught.items():
        logger.info(
            "vote: teacher %s covers %d labelled and %d unlabelled clips: %s",
            name,
            told["labeled"],
            told["unlabeled"],
            f"its probabilities enter with the exponent {told['weight']:.2f}"
            if told["labeled"] >= teachers.LEAST
            else f"with fewer than {teachers.LEAST} labelled ones it has no say",
        )


def _write_disputed(path: Path, clips: Clips, models: np.ndarray, taught_by: Sequence[Teacher]) -> None:
    """List the labelled clips for which a teacher and the models, out of fold, agree on another label.

    Args:
        models: (N, C), the vote without teachers.
    """
    rows, answer = [], models.argmax(1)
    for teacher in taught_by:
        against = clips.labeled & (teacher.answer == answer) & (answer != clips.truth)
        for row in np.flatnonzero(against).tolist():
            label, other = (clips.labels[found[row]] for found in (clips.truth, answer))
            rows.append((clips.names[row], label, other, f"{models[row].max():.3f}", teacher.name))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "label", "instead", "probability", "teacher"))
        writer.writerows(sorted(rows))
    if rows:
        logger.info(
            "vote: for %d of %d labelled clips a teacher and the models agree on another label; they are in "
            "vote/%s",
            len({name for name, *_ in rows}),
            clips.labeled.sum(),
            path.name,
        )


def _answering_row(config: Config, clips: Clips, made: Predictions, prior: dict) -> Predictions:
    """The vote, or by ``vote.answer: best`` another row, which is noted in the prior."""
    if config.vote.answer == "vote":
        return made
    run = Run(config.run.folder)
    paths = [path for path in predictions.all_of(run) if path != run.vote.predictions]
    rows = [*map(predictions.read, paths), made]
    chosen, reason = answering.choose(rows, clips.truth, _groups(config, clips.names), config.run.seed)
    parts = [
        path.parent if path.parent.parent == run.rounds_folder else path.with_suffix("") for path in paths
    ]
    part = run.relative([*parts, run.vote.folder][chosen])
    prior["answered_by_row"] = {"title": rows[chosen].title, "part": part, "reason": str(reason)}
    logger.info("vote: %s", reason)
    if config.vote.teachers and chosen < len(rows) - 1:
        logger.warning(
            "vote: that row knows nothing of vote.teachers (%s), which join the vote alone; vote.answer: vote uses them",
            ", ".join(config.vote.teachers),
        )
    return rows[chosen]


def _answers(
    pooled: np.ndarray, clips: Clips, asked: np.ndarray, present: np.ndarray, corrected: bool
) -> np.ndarray:
    """(N,): the most probable label of each clip; for corrected clips, the labels for expected WAF."""
    answer = pooled.argmax(1)
    if corrected:
        # Expected WAF is that of the clips which are scored together. It relies on calibrated
        # probabilities: it was found to pay only with a correction; see docs/results.md.
        for part in (asked, ~clips.labeled & ~asked):
            answer[part] = decisions.decide(pooled[part])
        # Only the prior is known for these, and any other choice would be a guess.
        answer[~present] = pooled[~present].argmax(1)
    return answer


def _how(corrected: bool, moved: int, asked: int) -> str:
    """How the requested clips were decided, and for how many that made a difference."""
    if not corrected:
        return "so each clip is answered with its most probable label"
    return (
        f"answers maximise expected WAF, and for {moved} of {asked} unlabelled clips that is not the most "
        "probable label"
    )


def _prior(
    config: Config,
    clips: Clips,
    first: CrossFittedRound,
    pooled: np.ndarray,
    asked: np.ndarray,
    should_stop: ShouldStop,
) -> dict:
    """The prior, its origin, and whether a correction for it is applied."""
    present = first.present
    rows, asked = np.flatnonzero(clips.labeled & present), asked & present
    truth, seed = clips.truth[clips.labeled], config.run.seed
    own = label_shift.shares(truth, len(clips.labels))
    prior = {
        "labels": clips.labels,
        "labeled": own.tolist(),
        "estimated": {},
        "used": own.tolist(),
        "applied": False,
        "origin": config.vote.prior,
        "decided_by": config.vote.prior,
    }
    if config.vote.prior == "none":
        return prior | {"reason": "vote.prior is none"}
    if not asked.any():
        return prior | {
            "reason": "there are no unlabelled clips that have features",
            "decided_by": correction.BY_FLOOR,
        }
    truth, groups = clips.truth[rows], _groups(config, clips.names)
    others = first.fold_predictions[:, asked[~clips.labeled]]
    evidence = correction.gather(
        first.oof.probability[rows], truth, others, seed, (groups[rows], groups[asked]), should_stop
    )
    new = None if config.vote.prior == "estimate" else _given(config, clips.labels)
    verdict = correction.assess(evidence, new, pooled[rows], truth, seed, groups[rows])
    if new is not None and verdict.by == correction.BY_ESTIMATES:
        logger.warning(
            "vote: vote.%s does not fit the unlabelled clips and is not applied: %s",
            "scorer_feedback" if config.vote.prior == "probed" else "given",
            verdict.reason,
        )
    found, gate = evidence.found, verdict.gate
    return prior | {
        "estimated": {"em": found.em.tolist(), "bbse": found.bbse.tolist()},
        "intervals": {name: edges.tolist() for name, edges in found.intervals.items()},
        "shrinkage": found.shrinkage,
        "clips": evidence.clips[1],
        "p_value": evidence.p_value if evidence.enough else None,
        "applied": verdict.applied,
        "decided_by": verdict.by,
        "tried": verdict.tried.tolist(),
        "reason": verdict.reason,
        "gain": gate.gain,
        "used": (verdict.tried if verdict.applied else own).tolist(),
        "gain_deviation": gate.noise,
        "oof_waf_before": gate.before,
        "oof_waf_after": gate.after,
    }


def _groups(config: Config, names: list[str]) -> np.ndarray:
    """The group of each clip by ``folds.group``; a clip without a match is its own group."""
    if not config.folds.group:
        return np.array(names)
    found = {name: folds.group_of(name, config.folds.group) for name in names}
    if alone := [name for name, group in found.items() if group is None]:
        logger.warning(
            "vote: folds.group finds no group in the names of %d clips, and each counts as its own group: %s",
            len(alone),
            ", ".join(alone[:SHOWN]) + ", …" * (len(alone) > SHOWN),
        )
    return np.array([found[name] or name for name in names])


def _given(config: Config, labels: list[str]) -> np.ndarray:
    """A prior that the user gave or probed."""
    if config.vote.prior == "given":
        logger.warning("vote: the label prior is given by hand, vote.given: %s", config.vote.given)
        new = np.array([config.vote.given[label] for label in labels])
        return new / new.sum()
    new = metrics.shares_of_constants(config.vote.scorer_feedback, labels)
    shown = ", ".join(f"{label} {100 * share:.1f} %" for label, share in zip(labels, new, strict=True))
    logger.warning(
        "vote: the label prior comes from black-box probes of a scorer, vote.scorer_feedback: %s; "
        "the rules of a challenge may forbid it",
        shown,
    )
    rest = [label for label in labels if label not in config.vote.scorer_feedback]
    if rest:
        logger.warning(
            "vote: no probe of %s: its share is the remainder, so nothing checks the others", rest[0]
        )
    return new
