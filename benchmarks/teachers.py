"""What an outside labeller adds to the vote, on the actors of CREMA-D with odd numbers.

Logistic regression on how people answered by ear and by eye stands for the models, with 60 or 600 labelled clips of 20
actors; all clips of the other actors are answered. Teachers are simulated, of which 60, 75 or 90 % of the answers are
right, sure of themselves as often as that or at 99 %; one says nothing but chance; and one is emotion2vec, which has
very probably seen these clips. Change of WAF in points, mean and the worst of the seeds. ::

    python benchmarks/teachers.py ../shared/data/crema-d/crema-d.npz --seeds 10
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from comparison import command

from mer_dist.core import metrics
from mer_dist.features.join import Clips
from mer_dist.fusion.linear_probe import linear_probe
from mer_dist.fusion.teachers import Teacher
from mer_dist.fusion.vote import pool

ACTORS, COUNTS, FOLDS = 20, (60, 600), 5
CHANCE, OVERSURE = 1 / 6, 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="crema-d.npz")
    parser.add_argument("--seeds", type=int, default=10)
    parsed = parser.parse_args()
    data = dict(np.load(parsed.data, allow_pickle=False))
    print(command())
    for count in COUNTS:
        changes, alone = defaultdict(list), defaultdict(list)
        for seed in range(parsed.seeds):
            for title, before, after, own in trial(data, count, seed):
                changes[title].append(100 * (after - before))
                alone[title].append(100 * own)
                alone["models"].append(100 * before)
        print(f"{count} labels: the models alone {np.mean(alone['models']):.2f}")
        for title, found in changes.items():
            print(
                f"  {title:32} teacher alone {np.mean(alone[title]):6.2f}   change {np.mean(found):+6.2f} "
                f"(worst {min(found):+.2f})"
            )


def features(data: dict[str, np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Of voice and face: smoothed shares of the answers, their logarithms, intensities; (n, 18) each."""
    found = []
    for name in ("voice", "face"):
        votes, level = data[f"{name}_votes"][rows].astype(np.float32), data[f"{name}_level"][rows]
        shares = (votes + 0.5) / (votes.sum(1, keepdims=True) + 3)
        found.append(
            np.concatenate([shares, np.log(shares), np.maximum(level, 0) / 100], 1).astype(np.float32)
        )
    return found


def trial(data: dict[str, np.ndarray], count: int, seed: int) -> Iterator[tuple[str, float, float, float]]:
    """Title, and WAF on the clips to be answered: of the models, with the teacher, and of the teacher alone."""
    random = np.random.default_rng(seed)
    actor, truth = data["actor"].astype(int), data["intended"].astype(int)
    odd = np.unique(actor[actor % 2 == 1])
    own = random.permutation(odd)[:ACTORS]
    labeled = random.permutation(np.flatnonzero(np.isin(actor, own)))[:count]
    others = np.flatnonzero(np.isin(actor, odd) & ~np.isin(actor, own))
    rows = np.concatenate([labeled, others])
    clips = Clips(
        labels=[str(label) for label in data["labels"]],
        names=[str(name) for name in data["names"][rows]],
        truth=np.where(np.arange(len(rows)) < count, truth[rows], -1),
        folds=FOLDS,
        fold=np.where(
            np.arange(len(rows)) < count, np.searchsorted(own[np.argsort(own)], actor[rows]) % FOLDS, -1
        ),
    )
    there = np.ones(len(rows), bool)
    values = features(data, rows)
    probe = linear_probe(values, [there] * len(values), clips)
    asked, true = ~clips.labeled, truth[others]

    def waf(*taught: Teacher) -> float:
        pooled, *_ = pool(probe.oof.probability[None], probe.nested_oof[None], clips, there, "soft", taught)
        return metrics.waf(true, pooled[asked].argmax(1))

    before = waf()
    for title, probability in said(random, truth[rows], data["emotion2vec"][rows], clips.labels):
        teacher = Teacher(title, probability)
        own = teacher.covers[asked]
        yield title, before, waf(teacher), metrics.waf(true[own], teacher.answer[asked][own])


def said(
    random: np.random.Generator, truth: np.ndarray, model: np.ndarray, labels: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Title and (N, C) of each teacher."""
    classes = len(labels)
    for right in (CHANCE, 0.6, 0.75, 0.9):
        wrong = (truth + random.integers(1, classes, len(truth))) % classes
        answer = np.where(random.random(len(truth)) < right, truth, wrong)
        for sure in (right, OVERSURE):
            if right == CHANCE and sure == CHANCE:
                continue
            made = np.full((len(truth), classes), (1 - sure) / (classes - 1))
            made[np.arange(len(truth)), answer] = sure
            yield f"{100 * right:.0f} % right, {100 * sure:.0f} % sure", made
    # angry, disgusted, fearful, happy, neutral, other, sad, surprised, unknown; the labels are in this order, too.
    # It answers clips of four emotions alone, so that its silence tells something, too; the vote does not ask that.
    own = model[:, [0, 1, 2, 3, 4, 6]].astype(np.float64) + 1e-3
    own[model.sum(1) == 0] = np.nan
    yield "emotion2vec", own / own.sum(1, keepdims=True)


if __name__ == "__main__":
    main()
