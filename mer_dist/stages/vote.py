"""The answer: rounds and modalities weighed together, then what is known of the label prior.

Everything fitted here is fitted on out-of-fold predictions, and for a labelled clip only on those
of other folds. An unlabelled clip is answered under the prior of the unlabelled clips, but only if
that correction helps where it can be tried: on labelled clips resampled to that prior.
"""

from __future__ import annotations

import csv
import time

import numpy as np

from mer_dist import files, predictions, prior
from mer_dist.config import Config, as_dict
from mer_dist.joined import Clips
from mer_dist.layout import Run
from mer_dist.log import logger
from mer_dist.predictions import Predictions

TITLE = "prior-aware vote"


def vote(
    config: Config, clips: Clips, members: list[Predictions], by_fold: np.ndarray, made_from: str
) -> None:
    """Combine the members, decide, and write ``vote/`` and ``answer.csv``.

    Args:
        members: predictions with the rows of ``clips``; the first one is AGT before self-training.
        by_fold: (K, U, C), what that AGT's models of each fold say of the U unlabelled clips.
    """
    started = time.monotonic()
    run = Run(config.run.folder)
    probability = np.stack([member.probability for member in members])
    pooled, weights = _pool(probability, clips)
    told = _prior(config, clips, members[0], by_fold, pooled)
    titles = [member.title for member in members]
    told["weights"] = dict(zip(titles, weights.tolist(), strict=True))
    labeled, answer = clips.labeled, pooled.argmax(1)
    if told["applied"]:
        old, new = np.array(told["labeled"]), np.array(told["used"])
        pooled[~labeled] = prior.adapt(pooled[~labeled], old, new)
        # Only probabilities that are right on average can say which answers raise the WAF; where
        # the prior is in doubt, a clip that says nothing would otherwise get the rarer label.
        answer[labeled] = prior.decide(pooled[labeled])
        answer[~labeled] = prior.decide(pooled[~labeled])
    made = Predictions(
        title=TITLE, labels=clips.labels, names=clips.names, labeled=labeled, fold=clips.fold,
        probability=pooled, answer=answer,
    )
    _write_answer(run, made)
    with files.atomic_folder(run.vote) as folder:
        predictions.write(folder / "predictions.parquet", made)
        files.write_json(folder / "prior.json", told)
        files.mark(folder, made_from, seconds=time.monotonic() - started, clips=len(clips.names))
    logger.info("vote: prior correction %s: %s", "applied" if told["applied"] else "not applied",
                told["reason"])


def _pool(probability: np.ndarray, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
    """Weighted and calibrated ``(N, C)`` of the members' ``(M, N, C)``, and the weights.

    A labelled clip's weights and calibration come from the other folds, an unlabelled one's from
    all labelled clips.
    """
    pooled = np.empty(probability.shape[1:])
    for fold in (*range(clips.folds), -1):
        rows, fit_on = np.flatnonzero(clips.fold == fold), clips.outside(fold)
        truth = clips.truth[fit_on]
        weights = prior.mixture(probability[:, fit_on], truth)
        together = np.tensordot(weights, probability, 1)
        pooled[rows] = prior.calibrate(together[fit_on], truth)(together[rows])
    return pooled, weights


def _prior(
    config: Config, clips: Clips, agt: Predictions, by_fold: np.ndarray, pooled: np.ndarray
) -> dict:
    """Which prior, where it comes from, and whether correcting for it is worth while.

    It is estimated from AGT before self-training: later rounds were trained on the unlabelled
    clips and are surer of them than their out-of-fold predictions tell. Each unlabelled clip is
    taken as the models of one fold see it, just as a labelled clip is.
    """
    rows = np.flatnonzero(clips.labeled)
    own = prior.shares(clips.truth[rows], len(clips.labels))
    told = {"labels": clips.labels, "labeled": own.tolist(), "estimated": {}, "used": own.tolist(),
            "applied": False, "origin": config.vote.prior}
    if config.vote.prior == "none":
        return told | {"reason": "vote.prior is none"}
    if len(rows) == len(clips.names):
        return told | {"reason": "there are no unlabelled clips"}
    if config.vote.prior == "given":
        new = np.array([config.vote.given.get(label, 0.0) for label in clips.labels])
        new /= new.sum()
        logger.warning("vote: the label prior is given by hand, vote.given: %s", config.vote.given)
    else:
        count = by_fold.shape[1]
        as_labeled = by_fold[np.arange(count) % clips.folds, np.arange(count)].astype(np.float64)
        held_out = agt.probability[rows]
        found = prior.estimate(as_labeled, held_out, clips.truth[rows], config.run.seed)
        told["estimated"] = {"em": found.em.tolist(), "bbse": found.bbse.tolist()}
        told["trust"] = found.trust
        new = found.used
    before, after = prior.gain(pooled[rows], clips.truth[rows], new, config.run.seed)
    applied = after > before
    reason = (f"on labelled clips resampled to it, out-of-fold WAF is {100 * after:.2f} % with and "
              f"{100 * before:.2f} % without it")
    return told | {
        "applied": applied, "tried": new.tolist(), "used": (new if applied else own).tolist(),
        "reason": reason, "gain": after - before, "oof_waf_before": before, "oof_waf_after": after,
    }


def made_from(config: Config, parts: list[str]) -> str:
    """Fingerprint of the vote over members of these fingerprints."""
    return files.fingerprint([parts, as_dict(config.vote), config.run.seed])


def _write_answer(run: Run, made: Predictions) -> None:
    answers = made.answers()
    names = [name for name, known in zip(made.names, made.labeled, strict=True) if not known]
    with files.atomic(run.answer) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("name", "discrete"))
            writer.writerows((name, answers[name]) for name in names)
