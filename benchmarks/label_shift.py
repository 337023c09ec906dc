"""The default vote against plain argmax, where labels were counted elsewhere than they are wanted.

Real parts of corpora that may differ in look and not only in label shares; CREMA-D's actors of even
numbers with shares resampled (nothing else differs) and with faint clips labelled and strong ones
answered; and finished runs, voted on again. But for the runs, logistic regression gives the
probabilities; from there on every step is the vote's own. ::

    python benchmarks/label_shift.py --mer data/mer2023-text/mer2023-text.npz --mosi data/cmu-mosi \
        --crema data/crema-d/crema-d.npz --run runs/demo:demo-data/truth.csv

Runs that differ in their seeds alone and answer the same clips share a row; of each of them, only the
clips of TRUTH.csv are answered, whatever ``vote.names`` the run had. ::

    python benchmarks/label_shift.py --seeds 1 --run runs/1:test1.csv runs/2:test1.csv
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import prior_shift
from prior_shift import Part, Trial

from mer_dist.config import config as configuration
from mer_dist.config.section import with_values
from mer_dist.core import metrics
from mer_dist.features import join
from mer_dist.fusion import decisions, label_shift, predictions
from mer_dist.fusion.cross_fitted import CrossFitted, CrossFittedRound
from mer_dist.fusion.recipes import Recipe
from mer_dist.fusion.vote import vote
from mer_dist.storage.files import atomic_folder, read_json, write_text
from mer_dist.storage.run_folder import Run

DRAWS = 2000
#: One ridge strength for all folds: a search would cost more than everything else here.
STRENGTH = {"mer": 0.01, "mosi": 0.01, "crema": 0.1}
HEAD = (
    f"{'part':26}{'clips':>6}{'argmax':>9}{'default':>9}{'change':>9}   {'95 % paired':17}"
    f"{'applied':>9}  decided by"
)
#: Videos of MOSI are labelled until there are so many clips.
LABELED = 300


@dataclass(kw_only=True)
class Answered:
    """One part under one seed: who was answered how, and what decided."""

    clip: np.ndarray
    truth: np.ndarray
    plain: np.ndarray
    default: np.ndarray
    by: str
    applied: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mer", type=Path, help="mer2023-text.npz")
    parser.add_argument("--mosi", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--crema", type=Path, help="crema-d.npz")
    parser.add_argument("--run", nargs="+", metavar="FOLDER:TRUTH.csv", help="finished runs")
    parser.add_argument("--out", type=Path, default=Path("runs/label-shift"), help="for --run")
    parser.add_argument("--seeds", type=int, default=10)
    parsed = parser.parse_args()
    seeds = range(parsed.seeds)
    print(HEAD)
    if parsed.mosi:
        table(of_mosi(parsed.mosi, seeds))
    if parsed.crema:
        table(of_crema(parsed.crema, seeds))
    if parsed.run:
        table(row for run in parsed.run for row in of_run(run, parsed.out, seeds))
    if parsed.mer:
        table(of_mer(parsed.mer, seeds))


def answer(trial: Trial, others: Part, clip: np.ndarray) -> Answered:
    """By plain argmax of the calibrated probabilities, and as the default vote answers."""
    own, told, evidence = trial.pooled(others)
    verdict = trial.verdict(own, evidence)
    corrected = label_shift.adapt(told, evidence.found.labeled, verdict.tried)
    return Answered(
        clip=clip,
        truth=others.truth,
        plain=told.argmax(1),
        default=decisions.decide(corrected) if verdict.applied else told.argmax(1),
        by=verdict.by,
        applied=verdict.applied,
    )


def of_mer(path: Path, seeds: range) -> Iterator[tuple[str, Answered]]:
    """train is labelled, test1 and test2 are answered; clips without a transcript are left out."""
    data = np.load(path, allow_pickle=False)
    there = data["minilm"].any(1)
    truth, part = np.unique(data["label"], return_inverse=True)[1], data["part"].astype(str)
    prior_shift.RIDGES = (STRENGTH["mer"],)
    rows = {name: np.flatnonzero((part == name) & there) for name in ("train", "test1", "test2")}
    whole = Part(values=data["minilm"].astype(float), truth=truth, group=np.arange(len(truth)))
    for seed in seeds:
        trial = Trial(whole.rows(rows["train"]), truth.max() + 1, seed)
        for name in ("test1", "test2"):
            yield f"MER2023 text, {name}", answer(trial, whole.rows(rows[name]), rows[name])


def of_mosi(folder: Path, seeds: range) -> Iterator[tuple[str, Answered]]:
    """Whole videos are labelled, the others answered."""
    data = prior_shift.read_mosi(folder)
    prior_shift.RIDGES = (STRENGTH["mosi"],)
    for seed in seeds:
        videos = np.random.default_rng(seed).permutation(np.unique(data.group))
        counts = np.cumsum([(data.group == video).sum() for video in videos])
        chosen = np.isin(data.group, videos[: int(np.searchsorted(counts, LABELED)) + 1])
        rest = np.flatnonzero(~chosen)
        trial = Trial(data.rows(np.flatnonzero(chosen)), 2, seed)
        yield "CMU-MOSI test rows", answer(trial, data.rows(rest), rest)


def of_crema(path: Path, seeds: range) -> Iterator[tuple[str, Answered]]:
    for title, trial, others, rows in crema_parts(path, seeds):
        yield title, answer(trial, others, rows)


def crema_parts(path: Path, seeds: range) -> Iterator[tuple[str, Trial, Part, np.ndarray]]:
    """Half of the even actors labelled, the others answered: as they are, resampled, and LO to HI."""
    data = np.load(path, allow_pickle=False)
    votes = data["voice_votes"].astype(float)
    level = np.maximum(data["voice_level"], 0) / 100
    share = (votes + 0.5) / (votes.sum(1, keepdims=True) + 3)
    actor = data["actor"].astype(int)
    whole = Part(
        values=np.concatenate([share, np.log(share), level], 1),
        truth=data["intended"].astype(int),
        group=actor,
    )
    prior_shift.RIDGES, intensity = (STRENGTH["crema"],), data["intensity"].astype(str)
    for seed in seeds:
        random = np.random.default_rng(seed)
        actors = random.permutation(np.unique(actor[actor % 2 == 0]))
        first, second = (np.isin(actor, some) for some in np.array_split(actors, 2))
        trial = Trial(whole.rows(np.flatnonzero(first & (random.random(len(actor)) < 0.5))), 6, seed)
        rest = np.flatnonzero(second)
        yield "CREMA-D voice, as it is", trial, whole.rows(rest), rest
        shares = random.dirichlet(np.full(6, 3))
        kept = rest[random.random(len(rest)) < (shares / shares.max())[whole.truth[rest]]]
        yield "CREMA-D voice, resampled", trial, whole.rows(kept), kept
        # No actor says a neutral line faintly: some of the other lines stand for it.
        neutral = (data["labels"].astype(str)[whole.truth] == "neutral") & (random.random(len(actor)) < 0.1)
        faint, strong = (
            np.flatnonzero(half & ((intensity == kind) | neutral))
            for half, kind in ((first, "LO"), (second, "HI"))
        )
        trial = Trial(whole.rows(faint), 6, seed)
        yield "CREMA-D voice, LO to HI", trial, whole.rows(strong), strong


def of_run(given: str, out: Path, seeds: range) -> Iterator[tuple[str, Answered]]:
    """The same rounds and probes voted on again; only the seed of the vote's draws differs.

    Clips are answered together with those alone that are scored with them.
    """
    source, truth_of = map(Path, given.split(":"))
    config = configuration.load(Run(source).config, [f"run.folder={out}"])
    with atomic_folder(out) as folder:
        shutil.copytree(Run(source).rounds_folder, Run(folder).rounds_folder)
    run, clips = Run(out), join.read_clips(config, Run(source))[0]
    first, *others = voters(source)
    with open(truth_of, encoding="utf-8", newline="") as file:
        label_of = {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    rows = np.array([row for row in np.flatnonzero(~clips.labeled) if clips.names[row] in label_of])
    truth = np.array([clips.labels.index(label_of[clips.names[row]]) for row in rows])
    config = with_values(config, **{"vote.names": str(out / "names.csv")})
    write_text(out / "names.csv", "\n".join(["name", *(clips.names[row] for row in rows), ""]))
    for seed in seeds:
        answers = {}
        for kind in ("none", "estimate"):
            config = with_values(config, **{"run.seed": seed, "vote.prior": kind})
            vote(config, clips, first, others, Recipe(f"{seed} {kind}"))
            answers[kind] = predictions.read(run.vote.predictions).answer[rows]
        said = read_json(run.vote.prior)
        yield (
            "/".join(truth_of.parts[-2:]),
            Answered(
                clip=rows,
                truth=truth,
                plain=answers["none"],
                by=said["decided_by"],
                default=answers["estimate"],
                applied=said["applied"],
            ),
        )


def voters(source: Path) -> list[CrossFitted | CrossFittedRound]:
    """What voted in a run, its rounds first."""
    run = Run(source)
    weights = read_json(run.vote.prior)["weights"]
    rounds = [CrossFittedRound.load(run, one.number) for one in run.rounds()]
    paths = [path for path in predictions.all_of(run) if path.parent == run.linear_probes.folder]
    # A probe that does not vote may have no nested predictions, as the stacked one.
    linear_probes = [
        CrossFitted.load(run, path.stem) for path in paths if predictions.read(path).title in weights
    ]
    return [found for found in (*rounds, *linear_probes) if found.oof.title in weights]


def table(found: Iterator[tuple[str, Answered]]) -> None:
    """A row per part: means over the seeds, in percent and points, and how sure the mean change is.

    The bootstrap draws clips; a clip that several seeds answer is drawn for all of them.
    """
    parts: dict[str, list[Answered]] = {}
    for title, answered in found:
        parts.setdefault(title, []).append(answered)
    for title, seeds in parts.items():
        count = max(int(one.clip.max()) for one in seeds) + 1
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
        changes = [
            metrics.weighted_waf(one.truth, one.default, drawn[:, one.clip])
            - metrics.weighted_waf(one.truth, one.plain, drawn[:, one.clip])
            for one in seeds
        ]
        low, high = 100 * np.quantile(np.mean(changes, 0), [0.025, 0.975])
        plain, default = (
            100 * np.mean([metrics.waf(one.truth, getattr(one, way)) for one in seeds])
            for way in ("plain", "default")
        )
        count_of = Counter(one.by for one in seeds)
        by = ", ".join(f"{kind} {count_of[kind]}" for kind in sorted(count_of))
        clips, applied = (
            np.mean(some) for some in zip(*((len(one.clip), one.applied) for one in seeds), strict=True)
        )
        print(
            f"{title:26}{clips:6.0f}{plain:9.2f}{default:9.2f}{default - plain:+9.2f}"
            f"   {low:+6.2f} to {high:+6.2f} {100 * applied:9.0f} %  {by}",
            flush=True,
        )


if __name__ == "__main__":
    main()
