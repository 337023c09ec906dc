"""CMU-MOSI: fuse features that nobody here made, and compare AGT with simpler ways.

The published features of the train rows were made by extractors that saw their labels, so only
the test rows are used: cross-validation inside them, folds split by video, repeated over seeds of
folds and models. AGT runs at its defaults, the baselines as ``comparison.MODELS`` says; the strength
of logistic regression comes from an inner cross-validation in every fold. A seed that is done is
not computed again. ::

    python benchmarks/mosi.py ../shared/data/cmu-mosi --out runs/mosi --seeds 10
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from comparison import MODELS, command, difference, link, reuse, spread

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.log import setup
from mer_dist.features import join
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.interop.npy import import_npy
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.files import write_text
from mer_dist.storage.run_folder import ALL_SETS, Run

MODALITIES = ("audio", "video", "text")
LABELS = ("negative", "positive")
BY_VIDEO = "^(.*)_"
LOGISTIC, VOTE = "logistic regression on all three", "vote (AGT and the probes)"
#: Titles whose difference is asked for.
PAIRS = (("AGT", LOGISTIC), ("AGT", "attention"), ("AGT", "text alone"), (VOTE, LOGISTIC))
YAML = """
run: {{folder: {folder}, seed: {seed}}}
corpus: {{labels: [negative, positive]}}
folds: {{count: 5, seed: {seed}, group: '{group}'}}
fuse: {{labels: {base}/labels.csv, sets: [audio, video, text]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/mosi"))
    parser.add_argument("--seeds", type=int, default=10, help="each of the folds and of the models")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of every fuse run")
    parsed = parser.parse_args()
    setup("mosi")
    base = import_once(parsed.data, parsed.out)
    seeds = [parsed.first_seed + seed for seed in range(parsed.seeds)]
    told: dict[str, list[Predictions]] = {}
    for seed in seeds:
        for title, found in of_seed(base, parsed.out / f"seed-{seed}", seed, parsed.overrides):
            told.setdefault(title, []).append(found)
    truth, videos = truth_of(base, told["AGT"][0].names)
    facts = {
        "command": command(),
        "overrides": parsed.overrides,
        "seeds": seeds,
        "clips": len(truth),
        "videos": len(set(videos)),
        "rows": rows(told, truth),
        "differences": differences(told, truth, videos),
        "errors": errors(told, truth),
    }
    files.write_json(parsed.out / "mosi.json", facts)
    print(table(facts))


def import_once(data: Path, out: Path) -> Path:
    """``out/base``, the run folder whose features all others link to."""
    convert(data, out / "base")
    prepare(out / "base")
    return out / "base"


def convert(data: Path, out: Path) -> None:
    """Write the test rows as ``out/npy/<modality>-UTT/<name>.npy`` and ``out/labels.csv``."""
    with open(data / "names_test.csv", encoding="utf-8", newline="") as file:
        rows = [(row["name"], LABELS[int(row["label"])]) for row in csv.DictReader(file)]
    write_text(out / "labels.csv", "name,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    for modality in MODALITIES:
        folder = out / "npy" / f"{modality}-UTT"
        folder.mkdir(parents=True, exist_ok=True)
        with open(data / f"{modality}_test.csv", encoding="utf-8", newline="") as file:
            for (name, _), line in zip(rows, csv.reader(file), strict=True):
                np.save(folder / f"{name}.npy", np.array(line[:-1], np.float32))


def prepare(out: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> Config:
    """The configuration, saved, with the features imported."""
    for modality in MODALITIES:
        import_npy(Run(out), modality, modality, out / "npy" / f"{modality}-UTT")
    return configure(out, out, seed, overrides)


def configure(
    base: Path, folder: Path, seed: int, overrides: tuple[str, ...] = (), group: str = BY_VIDEO
) -> Config:
    """A run of its own in ``folder`` on the features and labels in ``base``."""
    link(folder, Run(base).features_folder)
    write_text(folder / "mosi.yaml", YAML.format(folder=folder, base=base, seed=seed, group=group))
    config = configuration.load(folder / "mosi.yaml", overrides)
    configuration.save(config, Run(folder).config)
    return config


def of_seed(base: Path, folder: Path, seed: int, overrides: list[str]) -> Iterator[tuple[str, Predictions]]:
    """Titles and out-of-fold predictions of every way to answer, on the same folds."""
    fused = []
    for model, changes in MODELS.items():
        run = Run(folder / model)
        if fused:  # the probes do not depend on the model
            reuse(folder / "AGT", run.folder, "linear_probes")
        fuse(configure(base, run.folder, seed, ("self_train.rounds=0", *overrides, *changes)))
        fused.append((model, predictions.read(run.round(0).predictions)))
    run = Run(folder / "AGT")
    for modality in MODALITIES:
        yield f"{modality} alone", predictions.read(run.linear_probes.predictions(modality))
    yield LOGISTIC, predictions.read(run.linear_probes.predictions(ALL_SETS))
    yield from reversed(fused)
    yield VOTE, predictions.read(run.vote.predictions)


def truth_of(base: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) index of the label and (N,) video of each name."""
    label_of, _ = join.read_labels(base / "labels.csv", list(LABELS))
    videos = [name.rpartition("_")[0] for name in names]
    return np.array([LABELS.index(label_of[name]) for name in names]), np.array(videos)


def averaged(told: list[Predictions]) -> np.ndarray:
    """(N,) answers of the probabilities averaged over seeds."""
    return np.mean([one.probability for one in told], 0).argmax(1)


def rows(told: dict[str, list[Predictions]], truth: np.ndarray) -> list[dict]:
    return [
        {
            "title": title,
            **spread([metrics.waf(truth, one.answer) for one in found]),
            "averaged": metrics.waf(truth, averaged(found)),
        }
        for title, found in told.items()
    ]


def differences(told: dict[str, list[Predictions]], truth: np.ndarray, videos: np.ndarray) -> list[dict]:
    answers = {title: averaged(found) for title, found in told.items()}
    return [
        {
            "first": first,
            "second": second,
            "drawn": drawn,
            **difference(truth, answers[first], answers[second], groups),
        }
        for first, second in PAIRS
        for drawn, groups in (("videos", videos), ("clips", None))
    ]


def errors(told: dict[str, list[Predictions]], truth: np.ndarray) -> dict[str, float]:
    """What the wrong answers of AGT look like, seeds averaged, as parts of all clips."""
    answers = {title: averaged(told[title]) for title in ("AGT", LOGISTIC, "text alone")}
    wrong = {title: answer != truth for title, answer in answers.items()}
    mean = np.mean([found.probability for found in told["AGT"]], 0)
    sure = mean.max(1) > 0.8
    return {
        "AGT wrong": wrong["AGT"].mean(),
        "AGT and logistic regression both wrong": (wrong["AGT"] & wrong[LOGISTIC]).mean(),
        "AGT and text alone both wrong": (wrong["AGT"] & wrong["text alone"]).mean(),
        "AGT wrong and above 80 % sure": (wrong["AGT"] & sure).mean(),
        "AGT wrong, truth negative": (wrong["AGT"] & (truth == 0)).mean(),
        "clips that are negative": (truth == 0).mean(),
    }


def table(facts: dict) -> str:
    seeds = facts["seeds"]
    lines = [
        facts["command"],
        (
            f"CMU-MOSI, {facts['clips']} test rows of {facts['videos']} videos, 5 folds by video, seeds "
            f"{seeds[0]} to {seeds[-1]}: out-of-fold weighted F1 in %"
        ),
        "",
        f"{'':36}{'mean':>6} ± {'dev.':4}   seeds averaged",
    ]
    for row in facts["rows"]:
        lines.append(
            f"{row['title']:36}{100 * row['mean']:6.2f} ± {100 * row['deviation']:4.2f}"
            f"{100 * row['averaged']:17.2f}"
        )
    lines += ["", "Differences of the answers averaged over seeds, 95 % paired bootstrap, in points"]
    for row in facts["differences"]:
        title = f"{row['first']} minus {row['second']}"
        lines.append(
            f"{title:62}{100 * row['difference']:+6.2f}  ({100 * row['low']:+.2f} to "
            f"{100 * row['high']:+.2f}) over {row['drawn']}"
        )
    lines += ["", "Part of all clips"]
    lines += [f"{what:44}{100 * part:6.1f} %" for what, part in facts["errors"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
