"""What an outside labeller adds, on the actors of CREMA-D with odd numbers (``--actors even``: to choose by).

How people answered by ear and by eye stands for the features, with 60 or 600 labelled clips of 20 actors; all clips of
the other actors are answered. Teachers are simulated, of which 60, 75 or 90 % of the answers are right, sure of
themselves as often as that or at 99 %; one says nothing but chance; and one is emotion2vec, which has very probably
seen these clips. Change of WAF in points, mean and the worst of the seeds.

In the vote, beside logistic regression; as a check of the labels, one in ten of which is wrong: how many of these it
finds, how many of those that it names are wrong, and what it changes to leave these clips out::

    python benchmarks/teachers.py ../shared/data/crema-d/crema-d.npz --seeds 10

In the self-training of AGT, by consensus, and in the vote after it::

    python benchmarks/teachers.py ../shared/data/crema-d/crema-d.npz --seeds 3 --self-training runs/teachers
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from comparison import command

from mer_dist.config import config as configuration
from mer_dist.core import metrics
from mer_dist.features.join import Clips
from mer_dist.features.store import FeatureSet, describe, write_shard
from mer_dist.fusion import predictions, teachers
from mer_dist.fusion.cross_fitted import CrossFitted
from mer_dist.fusion.linear_probe import linear_probe
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.teachers import Teacher
from mer_dist.fusion.vote import pool
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import FeatureFolder, Run

ACTORS, COUNTS, FOLDS = 20, (60, 600), 5
CHANCE, OVERSURE = 1 / 6, 0.99
CALIBRATED = {f"{right} % right, {right} % sure" for right in (60, 75, 90)}
#: Part of the labels that is wrong where they are checked.
WRONG = 0.1
SETS = {"voice": "audio", "face": "video"}
YAML = """
run: {{folder: {folder}/run, seed: {seed}}}
corpus: {{labels: [{labels}]}}
folds: {{count: 3, seed: {seed}, group: '^([^_]+)_'}}
fuse: {{labels: {folder}/labels.csv, sets: [voice, face]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="crema-d.npz")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--actors", choices=("odd", "even"), default="odd")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of labelled clips")
    parser.add_argument("--self-training", type=Path, help="train AGT in folders below this one")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of every fuse run")
    parsed = parser.parse_args()
    data = dict(np.load(parsed.data, allow_pickle=False))
    print(command())
    for count in parsed.counts:
        draws = [Draw.make(data, count, seed, parsed.actors) for seed in range(parsed.seeds)]
        if parsed.self_training:
            tell_self_training(draws, parsed.self_training, parsed.overrides)
        else:
            tell_vote(draws)
            tell_check(draws)


def change(values: list[float]) -> str:
    return f"{100 * np.mean(values):+6.2f} (worst {100 * min(values):+.2f})"


def tell_vote(draws: list[Draw]) -> None:
    plain = [draw.waf(draw.models()) for draw in draws]
    print(f"{draws[0].count} labels: the models alone {100 * np.mean(plain):.2f}")
    for title in draws[0].teachers:
        taught = [draw.waf(draw.models(), draw.teachers[title]) for draw in draws]
        alone = np.mean([draw.waf_of(draw.teachers[title]) for draw in draws])
        gains = [after - before for before, after in zip(plain, taught, strict=True)]
        print(f"  {title:32} teacher alone {100 * alone:6.2f}   change {change(gains)}")


def tell_check(draws: list[Draw]) -> None:
    """Of labels one in ten of which is wrong: what a teacher and the models find together."""
    mistaken = [draw.mistaken() for draw in draws]
    plain = [draw.waf(draw.models()) for draw in mistaken]
    print(f"{draws[0].count} labels, one in ten wrong: the models alone {100 * np.mean(plain):.2f}")
    for title in draws[0].teachers:
        found, named, gains = [], [], []
        for draw, before in zip(mistaken, plain, strict=True):
            probe = draw.models()
            teacher = draw.teachers[title].answer
            answer = draw.pooled(probe).argmax(1)
            disputed = draw.clips.labeled & (teacher == answer) & (answer != draw.clips.truth)
            wrong = draw.clips.labeled & (draw.clips.truth != draw.truth)
            found.append((disputed & wrong).sum() / wrong.sum())
            named.append((disputed & wrong).sum() / max(disputed.sum(), 1))
            gains.append(draw.without(disputed) - before)
        print(
            f"  {title:32} finds {100 * np.mean(found):3.0f} % of them, {100 * np.mean(named):3.0f} % of those named; "
            f"without these clips {change(gains)}"
        )


def tell_self_training(draws: list[Draw], out: Path, overrides: list[str]) -> None:
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for draw in draws:
        for title, figures in draw.self_trained(out / f"{draw.count}-{draw.seed}", overrides):
            rows[title].append(figures)
    first = np.array(next(iter(rows.values())))
    print(
        f"{draws[0].count} labels: round 0 {100 * first[:, 0].mean():.2f}, by {next(iter(rows))} last round "
        f"{100 * first[:, 1].mean():.2f}, vote {100 * first[:, 2].mean():.2f}; changes from these two:"
    )
    for title, figures in [*rows.items()][1:]:
        gains = (np.array(figures) - first)[:, 1:].T.tolist()
        print(f"  {title:44} last round {change(gains[0])}, vote {change(gains[1])}")


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


@dataclass(frozen=True)
class Draw:
    """Some labelled clips, those to be answered, and their teachers."""

    data: dict[str, np.ndarray]
    seed: int
    #: The labelled clips first.
    rows: np.ndarray
    #: (N,) int
    truth: np.ndarray
    clips: Clips
    teachers: dict[str, Teacher]

    @classmethod
    def make(cls, data: dict[str, np.ndarray], count: int, seed: int, actors: str) -> Draw:
        random = np.random.default_rng(seed)
        actor, truth = data["actor"].astype(int), data["intended"].astype(int)
        own = np.unique(actor[actor % 2 == (actors == "odd")])
        some = random.permutation(own)[:ACTORS]
        labeled = random.permutation(np.flatnonzero(np.isin(actor, some)))[:count]
        others = np.flatnonzero(np.isin(actor, own) & ~np.isin(actor, some))
        rows = np.concatenate([labeled, others])
        known = np.arange(len(rows)) < count
        clips = Clips(
            labels=[str(label) for label in data["labels"]],
            names=[str(name) for name in data["names"][rows]],
            truth=np.where(known, truth[rows], -1),
            folds=FOLDS,
            fold=np.where(known, np.searchsorted(np.sort(some), actor[rows]) % FOLDS, -1),
        )
        taught = said(random, truth[rows], data["emotion2vec"][rows], clips.labels)
        return cls(
            data, seed, rows, truth[rows], clips, {title: Teacher(title, own) for title, own in taught}
        )

    @property
    def count(self) -> int:
        return int(self.clips.labeled.sum())

    def mistaken(self) -> Draw:
        """The same with one label in ten replaced by another."""
        random = np.random.default_rng(self.seed)
        wrong = random.permutation(self.count)[: round(WRONG * self.count)]
        truth = self.clips.truth.copy()
        truth[wrong] = (truth[wrong] + random.integers(1, len(self.clips.labels), len(wrong))) % len(
            self.clips.labels
        )
        return replace(self, clips=replace(self.clips, truth=truth))

    def models(self) -> CrossFitted:
        values = features(self.data, self.rows)
        return linear_probe(values, [np.ones(len(self.rows), bool)] * len(values), self.clips)

    def pooled(self, probe: CrossFitted, *taught: Teacher) -> np.ndarray:
        there = np.ones(len(self.rows), bool)
        return pool(
            probe.oof.probability[None], probe.nested_oof[None], self.clips, there, "soft", taught
        ).probability

    def waf(self, probe: CrossFitted, *taught: Teacher) -> float:
        asked = ~self.clips.labeled
        return metrics.waf(self.truth[asked], self.pooled(probe, *taught)[asked].argmax(1))

    def waf_of(self, teacher: Teacher) -> float:
        own = ~self.clips.labeled & teacher.covers
        return metrics.waf(self.truth[own], teacher.answer[own])

    def without(self, disputed: np.ndarray) -> float:
        """WAF of the models that never saw these labelled clips."""
        keep = ~disputed
        clips = replace(
            self.clips,
            names=[name for name, own in zip(self.clips.names, keep, strict=True) if own],
            truth=self.clips.truth[keep],
            fold=self.clips.fold[keep],
        )
        left = replace(self, rows=self.rows[keep], truth=self.truth[keep], clips=clips)
        return left.waf(left.models())

    def self_trained(self, out: Path, overrides: list[str]) -> Iterator[tuple[str, list[float]]]:
        """Title, and WAF of round 0, of the last round, and of the vote."""
        self.write(out)

        def figures(*options: str) -> list[float]:
            config = configuration.load(out / "job.yaml", (*options, *overrides))
            fuse(config)
            run = Run(config.run.folder)
            told = [run.round(0), run.round(config.self_train.rounds), run.vote]
            return [self.waf_in(predictions.read(one.predictions)) for one in told]

        yield "quota", figures()
        # How sure a teacher is of itself changes nothing, as that is calibrated: one of each pair is enough.
        some = [(name, title) for name, title in enumerate(self.teachers) if title not in CALIBRATED]
        for name, title in some:
            yield f"quota; {title} in the vote", figures(f"vote.teachers=[t{name}]")
        for name, title in some:
            own = ("self_train.rule=consensus", f"self_train.teachers=[t{name}]")
            yield f"consensus with {title}", figures(*own)
            yield f"  and {title} in the vote", figures(*own, f"vote.teachers=[t{name}]")

    def write(self, out: Path) -> None:
        """A run folder with these clips, and their teachers as t0, t1, …"""
        names = self.clips.names
        label = [self.clips.labels[own] if own >= 0 else "" for own in self.clips.truth]
        rows = [f"{name},{own}\n" for name, own in zip(names, label, strict=True)]
        files.write_text(out / "labels.csv", "".join(["name,label\n", *rows]))
        text = YAML.format(folder=out.resolve(), seed=self.seed, labels=", ".join(self.clips.labels))
        files.write_text(out / "job.yaml", text)
        run = Run(out.resolve() / "run")
        for (name, modality), values in zip(SETS.items(), features(self.data, self.rows), strict=True):
            store = run.features(name)
            shard = FeatureSet(modality=modality, names=names, utterance=values)
            write_shard(FeatureFolder(store).shard(0), shard, str(self.seed))
            describe(store, modality=modality, width=values.shape[1])
            files.write_marker(store, str(self.seed), shards=[0])
        for name, teacher in enumerate(self.teachers.values()):
            covered = np.flatnonzero(teacher.covers)
            said = [names[row] for row in covered]
            teachers.write(run, f"t{name}", self.clips.labels, said, teacher.probability[covered])

    def waf_in(self, told: Predictions) -> float:
        row_of = {name: row for row, name in enumerate(told.names)}
        asked = np.flatnonzero(~self.clips.labeled)
        answer = told.answer[[row_of[self.clips.names[row]] for row in asked]]
        return metrics.waf(self.truth[asked], answer)


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
