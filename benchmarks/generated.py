"""Generated clips whose best possible WAF is known: how much of it each fusion reaches.

generated_data.py says what the clips are. Every seed makes a world and clips of its own; every
figure is on the unlabelled clips, whose labels have other shares than those of the labelled ones. ::

    python benchmarks/generated.py --out runs/generated --seeds 5
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import generated_data as data
import numpy as np
from comparison import logistic
from generated_data import LABELED_SHARES, UNLABELED_SHARES, Sample, World

from mer_dist.config import config as configuration
from mer_dist.core import metrics
from mer_dist.core.log import setup
from mer_dist.core.records import EMOTIONS
from mer_dist.features import store as features
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.decisions import decide
from mer_dist.inspect.score import score
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import FeatureFolder, Run

UNLABELED = 3000
#: Labels of a logistic regression that shows what any weighted sum of the features can reach.
MANY = 50_000
#: Clips on which the optimum itself is measured.
ENOUGH = 200_000
MODELS = ("linear", "mlp", "attention", "agt")
NOISES = (1, 2)
WHOLE = "as drawn"
#: Parts of a seed's random numbers.
LABELED, SCORED, LARGE, TAUGHT = range(4)
YAML = """
run: {{folder: {out}, seed: {seed}}}
folds: {{seed: {seed}}}
fuse: {{labels: {out}/labels.csv, sets: [audio, video, text]}}
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One seed's clips under one condition of the unlabelled ones, and who could answer best."""

    condition: str
    #: The distribution of the unlabelled clips, noise at test time included.
    world: World
    labeled: Sample
    unlabeled: Sample


@dataclass(frozen=True, kw_only=True)
class Figure:
    condition: str
    title: str
    #: WAF on the unlabelled clips, in [0, 1].
    waf: float
    #: ``waf`` by the WAF of the best answers to the same clips as they are under the condition.
    of_optimum: float
    #: Wall clock of the whole run that the figure comes from; 0 for exact probabilities.
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/generated"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labeled", type=int, default=600)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        help="only these, on the clips as drawn; else all, and agt also on clips that lost a "
        "modality or got noise",
    )
    parser.add_argument(
        "--references", action="store_true", help="exact probabilities and logistic regression only"
    )
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of every fuse run")
    parsed = parser.parse_args()
    setup("generated")
    found = []
    for seed in range(parsed.seeds):
        folder = parsed.out / f"seed-{seed}"
        if parsed.references:
            found.append(list(references_of(seed, parsed.labeled)))
            continue
        found.append(list(one_seed(folder, seed, parsed.labeled, parsed.models, tuple(parsed.overrides))))
    rows = summary(found)
    facts = {
        "labeled": parsed.labeled,
        "unlabeled": UNLABELED,
        "seeds": parsed.seeds,
        "overrides": parsed.overrides,
        "rows": rows,
    }
    files.write_json(parsed.out / "generated.json", facts)
    print(
        f"{parsed.labeled} labelled and {UNLABELED} unlabelled clips, {parsed.seeds} seeds: WAF on the "
        "unlabelled ones and its part of the optimum on the same clips, in %, mean ± deviation"
    )
    print(table(rows))


def references_of(seed: int, labeled: int) -> Iterator[Figure]:
    """Those of the clips as drawn and of the degraded ones."""
    whole = draw(seed, labeled)
    for task in (whole, *degraded(whole, seed)):
        yield from references(task, seed)


def one_seed(
    out: Path, seed: int, labeled: int, models: list[str] | None, overrides: tuple[str, ...]
) -> Iterator[Figure]:
    whole = draw(seed, labeled)
    yield from references(whole, seed)
    for model in models or MODELS:
        yield from fused(whole, out / model, seed, (*overrides, f"fuse.model={model}"))
    if models:
        return
    # Self-training would learn from the degraded clips; this asks about a model that never met any.
    once = (*overrides, "fuse.model=agt", "self_train.rounds=0")
    for task in degraded(whole, seed):
        yield from references(task, seed)
        yield from fused(task, out / task.condition.replace(" ", "-"), seed, once)


def draw(seed: int, labeled: int) -> Task:
    world = World.make(seed)
    return Task(
        condition=WHOLE,
        world=world,
        labeled=world.draw(labeled, LABELED_SHARES, seed, LABELED),
        unlabeled=world.draw(UNLABELED, UNLABELED_SHARES, seed, SCORED),
    )


def degraded(task: Task, seed: int) -> Iterator[Task]:
    """The same clips, the unlabelled ones without one modality or with noise in it."""
    std = task.world.std(UNLABELED_SHARES)
    for modality in data.WIDTH:
        gone = task.unlabeled.without(modality)
        yield replace(task, condition=f"{modality} removed", unlabeled=gone)
        for times in NOISES:
            more = times * std
            yield replace(
                task,
                condition=f"{modality} noise x{times}",
                world=task.world.with_noise(modality, more),
                unlabeled=task.unlabeled.with_noise(modality, more, seed),
            )


def references(task: Task, seed: int) -> Iterator[Figure]:
    """What exact probabilities reach, and logistic regression."""
    sample, world = task.unlabeled, task.world
    exact = world.posterior(sample, UNLABELED_SHARES)
    yield figure(task, "optimum", decide(exact))
    if task.condition == WHOLE:
        large = world.draw(ENOUGH, UNLABELED_SHARES, seed, LARGE)
        yield figure(
            replace(task, unlabeled=large),
            f"optimum on {ENOUGH:,} clips",
            decide(world.posterior(large, UNLABELED_SHARES)),
        )
        yield figure(task, "argmax of exact probabilities", exact.argmax(1))
        unaware = world.posterior(sample, LABELED_SHARES)
        yield figure(task, "optimum for the labelled shares", decide(unaware))
        for modality in data.WIDTH:
            alone = world.posterior(sample.only(modality), UNLABELED_SHARES)
            yield figure(task, f"optimum of {modality} alone", decide(alone))
        many = world.draw(MANY, LABELED_SHARES, seed, TAUGHT)
        yield from probed(task, many, f"logistic regression, {MANY:,} labels", strength=1.0)
    if "noise" in task.condition:
        unaware = World.make(seed).posterior(sample, UNLABELED_SHARES)
        yield figure(task, "optimum, not knowing of the noise", decide(unaware))
    yield from probed(task, task.labeled, "logistic regression")


def probed(task: Task, learned: Sample, title: str, strength: float | None = None) -> Iterator[Figure]:
    """Logistic regression on all vectors side by side, tuned by cross-validation unless its strength is given.

    A missing modality gets the mean of the labelled clips, and a column that says it is missing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    started = time.monotonic()
    there = learned.mask()
    mean = (learned.values * there).sum(0) / there.sum(0)

    def imputed(sample: Sample) -> np.ndarray:
        absent = np.stack([~part for part in sample.present.values()], 1)
        return np.concatenate([np.where(sample.mask(), sample.values, mean), absent], 1)

    scaler = StandardScaler()
    x = scaler.fit_transform(imputed(learned))
    if strength is None:
        model = logistic(x, learned.truth)
    else:
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, learned.truth)
    yield figure(task, title, model.predict(scaler.transform(imputed(task.unlabeled))), started)


def fused(task: Task, folder: Path, seed: int, overrides: tuple[str, ...]) -> Iterator[Figure]:
    """A fuse run: the modalities alone, the model before and after self-training, the vote."""
    started = time.monotonic()
    config = write_run(task, folder, seed, overrides)
    fuse(config)
    rows = score(folder, folder / "truth.csv")
    seconds, model = time.monotonic() - started, config.fuse.model
    run = Run(folder)
    by_file = {run.folder / row["file"]: row["waf"] for row in rows}
    rounds = [by_file[one.predictions] for one in run.rounds()]
    told = {}
    if task.condition == WHOLE and model == MODELS[0]:
        told |= {
            f"logistic regression on {modality} alone": by_file[run.linear_probes.predictions(modality)]
            for modality in data.WIDTH
        }
    told[model] = rounds[0]
    if len(rounds) > 1:
        told[f"{model}, after self-training"] = rounds[-1]
    told[f"{model}, vote"] = by_file[run.vote.predictions]
    best = optimum(task)
    for title, waf in told.items():
        yield Figure(condition=task.condition, title=title, waf=waf, of_optimum=waf / best, seconds=seconds)


def figure(task: Task, title: str, answer: np.ndarray, started: float | None = None) -> Figure:
    waf = metrics.waf(task.unlabeled.truth, answer)
    return Figure(
        condition=task.condition,
        title=title,
        waf=waf,
        of_optimum=waf / optimum(task),
        seconds=time.monotonic() - started if started else 0.0,
    )


def optimum(task: Task) -> float:
    """WAF of the best answers to the task's own clips: compared with it, the draw cancels out."""
    answer = decide(task.world.posterior(task.unlabeled, UNLABELED_SHARES))
    return metrics.waf(task.unlabeled.truth, answer)


def write_run(task: Task, folder: Path, seed: int, overrides: tuple[str, ...] = ()) -> configuration.Config:
    """The task as a run folder that can be fused, and ``truth.csv`` of its unlabelled clips."""
    run, labeled = Run(folder), len(task.labeled.truth)
    names = [f"clip_{row:06d}" for row in range(labeled + len(task.unlabeled.truth))]
    labels = [EMOTIONS[row] for row in (*task.labeled.truth, *task.unlabeled.truth)]
    told = [
        f"{name},{label if row < labeled else ''}"
        for row, (name, label) in enumerate(zip(names, labels, strict=True))
    ]
    truth = [f"{name},{label}" for name, label in zip(names[labeled:], labels[labeled:], strict=True)]
    files.write_text(folder / "labels.csv", "\n".join(["name,label", *told, ""]))
    files.write_text(folder / "truth.csv", "\n".join(["name,label", *truth, ""]))
    for modality in data.WIDTH:
        write_set(run, modality, names, task.labeled + task.unlabeled)
    files.write_text(folder / "generated.yaml", YAML.format(out=folder, seed=seed))
    config = configuration.load(folder / "generated.yaml", overrides)
    configuration.save(config, run.config)
    return config


def write_set(run: Run, modality: str, names: list[str], sample: Sample) -> None:
    """One modality of the clips that have it."""
    present, store = sample.present[modality], run.features(modality)
    values = sample.values[present][:, data.COLUMNS[modality]]
    shard = FeatureSet(
        modality=modality,
        utterance=values,
        names=[name for name, there in zip(names, present, strict=True) if there],
        missing={name: f"no {modality}" for name, there in zip(names, present, strict=True) if not there},
    )
    # Of the content, so that a second call computes nothing again.
    fingerprint = files.fingerprint_of(
        [shard.names, hashlib.sha256(np.ascontiguousarray(values)).hexdigest()]
    )
    features.write_shard(FeatureFolder(store).shard(0), shard, fingerprint)
    features.describe(store, modality=modality, width=values.shape[1])
    files.write_marker(store, fingerprint, clips=len(names))


def summary(found: list[list[Figure]]) -> list[dict]:
    """One row per condition and title, over the seeds."""
    rows: dict[tuple[str, str], list[Figure]] = {}
    for one in (one for of_seed in found for one in of_seed):
        rows.setdefault((one.condition, one.title), []).append(one)
    made = []
    for (condition, title), figures in rows.items():
        row = {"condition": condition, "title": title}
        for key in ("waf", "of_optimum", "seconds"):
            values = [getattr(one, key) for one in figures]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row[key] = {"mean": float(np.mean(values)), "deviation": spread, "by_seed": values}
        made.append(row)
    return made


def table(rows: list[dict]) -> str:
    """The rows as aligned text, a block per condition."""
    width, lines, condition = max(len(row["title"]) for row in rows) + 4, [], ""
    for row in rows:
        if row["condition"] != condition:
            condition = row["condition"]
            lines += ["", f"{condition:{width}}{'WAF':>13}{'of the optimum':>18}{'seconds':>9}"]
        cells = [
            f"{100 * row[key]['mean']:6.2f} ± {100 * row[key]['deviation']:4.2f}"
            for key in ("waf", "of_optimum")
        ]
        seconds = row["seconds"]["mean"]
        lines.append(
            f"  {row['title']:{width - 2}}{cells[0]:>13}{cells[1]:>18}"
            + (f"{seconds:9.1f}" if seconds else "")
        )
    return "\n".join(lines[1:])


if __name__ == "__main__":
    main()
