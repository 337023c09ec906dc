"""CMU-MOSI with few labels: supervised against self-training, on clips seen unlabelled and on new videos.

Of the 752 test rows (see ``mosi.py`` for why only these) each seed holds out three videos in ten.
Of the clips of the other videos some are labelled, drawn at random in the proportion of the labels;
the rest is unlabelled, learned from by self-training, and scored (transductive). The held-out
videos are answered by the models that each round saved (inductive). ::

    python benchmarks/few_labels.py ../shared/data/cmu-mosi --labels 30 60 150 --seeds 10
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import mosi
import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
from comparison import command, logistic, spread

from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.log import setup
from mer_dist.features import join, store
from mer_dist.features.join import Clips
from mer_dist.fusion import batch, ensemble, predictions
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.members import build
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

HELD_OUT = 0.3
LOGISTIC, VOTE = "logistic regression", "vote"
WAYS = ("transductive", "inductive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/few-labels"))
    parser.add_argument("--labels", type=int, nargs="+", default=[30, 60, 150])
    parser.add_argument("--seeds", type=int, default=10, help="each of the drawn clips, folds and models")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of every fuse run")
    parsed = parser.parse_args()
    setup("few_labels")
    base = mosi.import_once(parsed.data, parsed.out)
    seeds = [parsed.first_seed + seed for seed in range(parsed.seeds)]
    told = []
    for count in parsed.labels:
        folder = parsed.out / f"labels-{count}"
        trials = [Trial.make(base, folder / f"seed-{seed}", count, seed, parsed.overrides) for seed in seeds]
        told.append(summary(count, [trial.judge() for trial in trials]))
    facts = {"command": command(), "seeds": seeds, "overrides": parsed.overrides, "labels": told}
    files.write_json(parsed.out / "few_labels.json", facts)
    print(
        facts["command"],
        f"weighted F1 in %, mean ± deviation over seeds {seeds[0]} to {seeds[-1]}; "
        "change from round 0 of the same seeds ± standard error",
        sep="\n",
    )
    for of_count in told:
        print(table(of_count))


@dataclass
class Trial:
    """One draw of labelled clips, fused, and everything that is known of all clips."""

    config: Config
    clips: Clips
    #: Truth of ``clips.names`` and then of ``held_out``: (N + H,) int.
    truth: np.ndarray
    held_out: list[str]
    #: Features in the same order, standardised by the moments of ``clips``.
    inputs: FeatureBatch

    @classmethod
    def make(cls, base: Path, folder: Path, count: int, seed: int, overrides: list[str]) -> Trial:
        labels, held_out = draw(base, count, seed)
        files.write_text(
            folder / "labels.csv",
            "name,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()),
        )
        # Labelled clips and those to be answered come from the same videos, and so do the folds.
        own = (f"fuse.labels={folder}/labels.csv", *overrides)
        config = mosi.configure(base, folder, seed, own, group="")
        if config.fuse.level != "utterance":
            raise UserError("fuse.level: CMU-MOSI has utterance vectors only")
        fuse(config)
        clips, _ = join.read_clips(config, Run(folder))
        names = [*clips.names, *held_out]
        return cls(config, clips, mosi.truth_of(base, names)[0], held_out, inputs_of(config, names, clips))

    def judge(self) -> dict:
        """``waf``: title -> way -> figure; ``pseudo``: per round, the part taken and right; sizes."""
        answers = {LOGISTIC: self.logistic(), **self.rounds()}
        vote = predictions.read(Run(self.config.run.folder).vote.predictions)
        unlabeled = np.flatnonzero(~self.clips.labeled)
        new = np.arange(len(self.clips.names), len(self.truth))
        waf = {
            title: {
                way: metrics.waf(self.truth[rows], answer[rows])
                for way, rows in zip(WAYS, (unlabeled, new), strict=True)
            }
            for title, answer in answers.items()
        }
        waf[VOTE] = {WAYS[0]: metrics.waf(self.truth[unlabeled], vote.answer[unlabeled])}
        return {"waf": waf, "pseudo": self.pseudo_labels(), "unlabeled": len(unlabeled), "new": len(new)}

    def logistic(self) -> np.ndarray:
        """(N + H,) answers of one model of all labelled clips, tuned by cross-validation in them."""
        rows = np.flatnonzero(self.clips.labeled)
        values = np.concatenate([of_set[:, 0].numpy() for of_set in self.inputs.values], 1)
        return logistic(values[rows], self.truth[rows], self.config.run.seed).predict(values)

    def rounds(self) -> dict[str, np.ndarray]:
        """Title -> (N + H,) answers of each round, after an early stop those of the last one."""
        last = self.last_round()
        of_round = [self.probability(number).argmax(1) for number in range(last + 1)]
        planned = self.config.self_train.rounds
        return {title(number): of_round[min(number, last)] for number in range(planned + 1)}

    def last_round(self) -> int:
        run = Run(self.config.run.folder)
        return len(run.rounds()) - 1

    def probability(self, number: int) -> np.ndarray:
        """(N + H, C): mean over all models of a round, read back from its folder.

        That is what an unlabelled clip gets; what is told of labelled clips here is not out of fold.
        """
        config = self.config
        members = config.folds.count * config.fuse.seeds
        model = build(self.inputs, len(self.clips.labels), config.fuse, [0] * members)
        model.load_state_dict(safetensors.torch.load_file(Run(config.run.folder).round(number).models))
        every = torch.arange(len(self.truth))
        return ensemble.predict(model.eval(), self.inputs, every).double().exp().mean(0).numpy()

    def pseudo_labels(self) -> list[dict[str, float]]:
        """Per round from 1 on: the part of the unlabelled clips taken, and of these the part right."""
        truth_of = dict(zip(self.clips.names, self.truth[: len(self.clips.names)], strict=True))
        found = []
        for number in range(1, self.last_round() + 1):
            path = Run(self.config.run.folder).round(number).pseudo_label_log
            rows = pq.read_table(path, columns=["name", "pseudo_label", "selected"]).to_pylist()
            right = [
                self.clips.labels[truth_of[row["name"]]] == row["pseudo_label"]
                for row in rows
                if row["selected"]
            ]
            found.append({"taken": len(right) / len(rows), "right": sum(right) / max(len(right), 1)})
        return found


def draw(base: Path, count: int, seed: int) -> tuple[dict[str, str], list[str]]:
    """name -> label ("" if unlabelled) of the clips of the run, and the names of the held-out videos."""
    from sklearn.model_selection import train_test_split

    label_of, _ = join.read_labels(base / "labels.csv", list(mosi.LABELS))
    videos = sorted({video_of(name) for name in label_of})
    drawn = np.random.default_rng(seed).permutation(videos)[: round(HELD_OUT * len(videos))]
    seen = [name for name in label_of if video_of(name) not in drawn]
    labeled, _ = train_test_split(
        seen, train_size=count, stratify=[label_of[name] for name in seen], random_state=seed
    )
    known = set(labeled)
    labels = {name: label_of[name] if name in known else "" for name in seen}
    return labels, [name for name in label_of if name not in labels]


def video_of(name: str) -> str:
    return name.rpartition("_")[0]


def inputs_of(config: Config, names: list[str], clips: Clips) -> FeatureBatch:
    """The fused sets of these clips, of which the first are ``clips`` and give the moments."""
    run, found = Run(config.run.folder), FeatureBatch([], [], [])
    for name in join.fused_sets(config):
        of_set = store.load(run.features(name), frames=False)
        values, mask = of_set.utterances(names)
        found.modality.append(str(of_set.modality))
        found.values.append(torch.from_numpy(values)[:, None])
        found.mask.append(torch.from_numpy(mask)[:, None])
    return batch.standardize(found, moments_of=torch.arange(len(names)) < len(clips.names))


def title(number: int) -> str:
    return f"round {number}" + ", supervised" * (number == 0)


def summary(count: int, judged: list[dict]) -> dict:
    """Mean and spread over seeds of every figure, and of its difference from round 0."""
    rows = []
    for name in judged[0]["waf"]:
        row = {"title": name}
        for way in judged[0]["waf"][name]:
            own = np.array([one["waf"][name][way] for one in judged])
            before = np.array([one["waf"][title(0)][way] for one in judged])
            row[way] = spread(own) | {"change": spread(own - before)}
        rows.append(row)
    pseudo = []
    for number in range(max(len(one["pseudo"]) for one in judged)):
        there = [one["pseudo"][number] for one in judged if number < len(one["pseudo"])]
        pseudo.append(
            {key: spread([one[key] for one in there]) for key in there[0]}
            | {"round": number + 1, "seeds": len(there)}
        )
    sizes = {key: spread([one[key] for one in judged])["mean"] for key in ("unlabeled", "new")}
    return {"labeled": count, **sizes, "rows": rows, "pseudo_labels": pseudo}


def table(told: dict) -> str:
    lines = [
        "",
        (
            f"{told['labeled']} labelled, {told['unlabeled']:.0f} unlabelled clips, "
            f"{told['new']:.0f} of held-out videos"
        ),
        f"{'':24}" + "".join(f"{way:>14}{'change':>16}" for way in WAYS),
    ]
    for row in told["rows"]:
        line = f"{row['title']:24}"
        for way in WAYS:
            if figure := row.get(way):
                line += (
                    f"{100 * figure['mean']:7.2f} ± {100 * figure['deviation']:4.2f}"
                    f"{100 * figure['change']['mean']:+9.2f} ± {100 * figure['change']['error']:4.2f}"
                )
        lines.append(line)
    for row in told["pseudo_labels"]:
        lines.append(
            f"pseudo-labels of round {row['round']}: {100 * row['taken']['mean']:.1f} % of the "
            f"unlabelled clips, {100 * row['right']['mean']:.1f} % of them right"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
