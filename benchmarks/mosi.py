"""CMU-MOSI: fuse features that nobody here made, and compare AGT with simpler ways.

The published features of the train rows were made by extractors that saw their labels, so only
the test rows are used: cross-validation inside them, folds split by video. ::

    python benchmarks/mosi.py ../shared/data/cmu-mosi --out runs/mosi
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from mer_dist import config as configuration
from mer_dist import joined, metrics
from mer_dist.files import write_text
from mer_dist.layout import Run
from mer_dist.log import setup
from mer_dist.stages.exchange import import_npy
from mer_dist.stages.fuse import fuse, probe
from mer_dist.stages.score import score

MODALITIES = ("audio", "video", "text")
LABELS = ("negative", "positive")
YAML = """
run: {{folder: {out}, seed: {seed}}}
corpus: {{labels: [negative, positive]}}
folds: {{count: 5, seed: {seed}, group: '^(.*)_'}}
fuse: {{labels: {out}/labels.csv, sets: [audio, video, text]}}
self_train: {{rounds: 0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/mosi"))
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the models")
    parsed = parser.parse_args()
    setup("mosi")
    convert(parsed.data, parsed.out)
    config = prepare(parsed.out, parsed.seed)
    fuse(config)
    rows = score(parsed.out)
    figures = {row["title"]: (row["oof_waf"], row["oof_interval"]) for row in rows}
    figures["logistic regression on all three"] = concatenated(config)
    print(f"CMU-MOSI test rows, {config.folds.count} folds by video, seed {parsed.seed}: "
          "weighted F1 in %, 95 % bootstrap interval")
    for title, (figure, (low, high)) in figures.items():
        print(f"{title:36}{100 * figure:6.2f}  ({100 * low:.2f} to {100 * high:.2f})")


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


def prepare(out: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> configuration.Config:
    """The configuration, saved, with the features imported."""
    run = Run(out)
    write_text(run.folder / "mosi.yaml", YAML.format(out=out, seed=seed))
    config = configuration.load(run.folder / "mosi.yaml", overrides)
    configuration.save(config, run.config)
    for modality in MODALITIES:
        import_npy(run, modality, modality, out / "npy" / f"{modality}-UTT")
    return config


def concatenated(config: configuration.Config) -> tuple[float, tuple[float, float]]:
    """Out-of-fold weighted F1 of logistic regression on all features side by side."""
    run = Run(config.run.folder)
    clips, _ = joined.read_clips(config, run)
    found = [joined.read_set(run, name, clips)[0].utterances(clips.names) for name in MODALITIES]
    values = np.concatenate([values for values, _ in found], 1)
    answer = probe(values, np.all([valid for _, valid in found], 0), clips).argmax(1)
    return metrics.waf(clips.truth, answer), metrics.waf_interval(clips.truth, answer)


if __name__ == "__main__":
    main()
