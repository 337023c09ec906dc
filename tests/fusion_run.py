"""A small run folder with generated features, ready to be fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_dist.config import config
from mer_dist.config.config import Config
from mer_dist.features import store as features
from mer_dist.features.store import FeatureSet
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

LABELS = ["neutral", "angry", "happy"]
#: Which two labels a modality cannot tell apart.
CONFUSED = {"audio": (0, 1), "video": (1, 2), "text": (0, 2)}
WIDTH = 12
TEXT = """
run: {{folder: {folder}/run}}
corpus: {{labels: [neutral, angry, happy]}}
folds: {{count: 3}}
fuse:
  {{labels: {folder}/labels.csv, sets: [voice, face, line], width: 16, heads: 2, seeds: 2,
    epochs: {epochs}, batch: 16, learning_rate: 5e-3, dropout: [0.2, 0.4], feature_dropout: 0.1}}
self_train: {{rounds: {rounds}}}
"""


def make(
    folder: Path, labeled=90, unlabeled=120, epochs=3, rounds=1, shares=(1, 1, 1)
) -> tuple[Config, np.ndarray]:
    """The configuration, and the true label of every clip in the order of :func:`names`."""
    random = np.random.default_rng(0)
    truth = np.concatenate(
        [np.arange(labeled) % 3, random.choice(3, unlabeled, p=np.array(shares) / sum(shares))]
    )
    write_labels(folder, truth, labeled)
    for name, (modality, confused) in zip(("voice", "face", "line"), CONFUSED.items(), strict=True):
        centers = 1.2 * random.normal(size=(3, WIDTH))
        centers[list(confused)] = centers[list(confused)].mean(0)
        values = centers[truth] + random.normal(size=(len(truth), WIDTH))
        write_set(Run(folder / "run"), name, modality, names(len(truth)), values)
    return configure(folder, epochs, rounds), truth


def names(count: int) -> list[str]:
    return [f"clip_{row:04d}" for row in range(count)]


def write_labels(folder: Path, truth: np.ndarray, labeled: int) -> None:
    rows = [
        f"{name},{LABELS[label] if row < labeled else ''}\n"
        for row, (name, label) in enumerate(zip(names(len(truth)), truth, strict=True))
    ]
    files.write_text(folder / "labels.csv", "name,label\n" + "".join(rows))


def write_set(
    run: Run, name: str, modality: str, clips: list[str], values: np.ndarray, fingerprint: str = "1", **facts
) -> None:
    store = run.features(name)
    shard = FeatureSet(modality=modality, names=clips, utterance=values.astype(np.float32))
    features.write_shard(store / "00000.safetensors", shard, fingerprint)
    features.describe(store, modality=modality, width=values.shape[1], **facts)
    files.write_marker(store, fingerprint, shards=[0])


def configure(folder: Path, epochs: int = 3, rounds: int = 1, overrides: tuple[str, ...] = ()) -> Config:
    path = folder / "job.yaml"
    path.write_text(TEXT.format(folder=folder, epochs=epochs, rounds=rounds), encoding="utf-8")
    made = config.load(path, overrides)
    config.save(made, Run(made.run.folder).config)
    return made
