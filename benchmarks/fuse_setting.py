"""What the fusion benchmark runs on, and what it is compared with.

Generated features of the challenge's size, as mer_dist stores them and as one file per clip; and a
plain re-implementation of the way the challenge baseline (MERTools, MER2024) trains its
``attention`` model: small files that processes hand over one at a time, small batches through a
loader, every clip to be answered predicted again in every epoch.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core.records import EMOTIONS
from mer_dist.features import store as features
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.ensemble import MemberData
from mer_dist.stages.fuse import LARGE
from mer_dist.storage import files
from mer_dist.storage.run_folder import FeatureFolder, Run

#: Both contestants compute here.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LABELED, FOLDS = 5030, 5
WIDTHS = {"audio": 1024, "video": 768, "text": 5120}
#: Deviations between the centres of two emotions, in one dimension.
SIGNAL = 0.1
#: As in the baseline.
BATCH, HIDDEN, DROPOUT, READERS = 32, 256, 0.3, 8
YAML = """
run: {{folder: {folder}/run}}
fuse: {{labels: {folder}/labels.csv, sets: [audio, video, text]}}
"""


def names_of(count: int) -> list[str]:
    return [f"clip_{row:06d}" for row in range(count)]


def truth_of(count: int) -> np.ndarray:
    """(N,) the emotion of every clip, the labelled ones first."""
    return np.random.default_rng(0).integers(len(EMOTIONS), size=count)


def fill(values: Tensor, truth: np.ndarray, seed: int) -> Tensor:
    """``(N, D)`` drawn in place: the emotion's centre and noise."""
    random = torch.Generator().manual_seed(seed)
    centers = SIGNAL * torch.randn(len(EMOTIONS), values.shape[1], generator=random)
    for part, own in zip(values.split(4096), torch.from_numpy(truth).split(4096), strict=True):
        part.copy_(torch.randn(part.shape, generator=random) + centers[own])
    return values


def inputs_of(unlabeled: int) -> tuple[FeatureBatch, np.ndarray]:
    """What the stage holds on the device of so many clips, and their emotions."""
    truth = truth_of(LABELED + unlabeled)
    values = []
    for seed, width in enumerate(WIDTHS.values()):
        half = 4 * len(truth) * width > LARGE
        whole = torch.empty(len(truth), width, dtype=torch.half if half else torch.float)
        values.append(fill(whole, truth, seed)[:, None])
    mask = torch.ones(len(truth), 1, dtype=torch.bool)
    return FeatureBatch(list(WIDTHS), values, [mask] * len(values)).to(DEVICE), truth


def lessons_of(truth: np.ndarray, seeds: int, folds: int = FOLDS) -> list[MemberData]:
    """What the models of each fold and seed learn from."""
    rows = torch.arange(LABELED, device=DEVICE)
    targets = torch.eye(len(EMOTIONS))[torch.from_numpy(truth[:LABELED])].to(DEVICE)
    lessons = []
    for fold in range(folds):
        own = rows[rows % FOLDS != fold]
        lessons += [
            MemberData(own, targets[own], torch.ones(len(own), device=DEVICE), 100 * fold + seed)
            for seed in range(seeds)
        ]
    return lessons


def write_run(folder: Path, unlabeled: int, overrides: tuple[str, ...] = ()) -> Config:
    """The same clips as feature sets in shards, with a label file; returns the configuration."""
    truth = truth_of(LABELED + unlabeled)
    names = names_of(len(truth))
    rows = [
        f"{name},{EMOTIONS[own] if row < LABELED else ''}"
        for row, (name, own) in enumerate(zip(names, truth, strict=True))
    ]
    files.write_text(folder / "labels.csv", "\n".join(["name,label", *rows, ""]))
    files.write_text(folder / "job.yaml", YAML.format(folder=folder))
    config = configuration.load(folder / "job.yaml", overrides)
    for seed, (modality, width) in enumerate(WIDTHS.items()):
        store = Run(config.run.folder).features(modality)
        values = fill(torch.empty(len(truth), width), truth, seed).numpy()
        # Shards hold the clips in another order than the one they are used in.
        order = np.random.default_rng(0).permutation(len(names))
        for number, start in enumerate(range(0, len(names), config.shard.clips)):
            rows = order[start : start + config.shard.clips]
            own = [names[row] for row in rows]
            shard = FeatureSet(modality=modality, names=own, utterance=values[rows])
            features.write_shard(FeatureFolder(store).shard(number), shard, "generated")
        features.describe(store, modality=modality, width=width)
        files.write_marker(store, "generated")
    return config


def write_files(folder: Path, unlabeled: int) -> None:
    """The same clips as one file per clip and modality."""
    truth = truth_of(LABELED + unlabeled)
    for seed, (modality, width) in enumerate(WIDTHS.items()):
        (folder / modality).mkdir(parents=True, exist_ok=True)
        values = fill(torch.empty(len(truth), width), truth, seed).numpy()
        for name, row in zip(names_of(len(truth)), values, strict=True):
            np.save(folder / modality / f"{name}.npy", row, allow_pickle=False)


def read_files(folder: Path, count: int) -> dict[str, list[np.ndarray]]:
    """File by file, into one list per modality."""
    return {modality: [np.load(path) for path in paths] for modality, paths in _files(folder, count)}


def hand_over_files(folder: Path, count: int) -> dict[str, list[np.ndarray]]:
    """As the baseline loads: other processes read the files and hand over one clip at a time."""
    found = {}
    for modality, paths in _files(folder, count):
        with multiprocessing.get_context("fork").Pool(READERS) as pool:
            found[modality] = [frames.mean(0) for frames in pool.imap(_frames, paths)]
            pool.close()  # without these two its processes would be killed, between any two steps
            pool.join()
    return found


def _files(folder: Path, count: int) -> list[tuple[str, list[Path]]]:
    return [
        (modality, [folder / modality / f"{name}.npy" for name in names_of(count)]) for modality in WIDTHS
    ]


def _frames(path: Path) -> np.ndarray:
    """(T, D): a vector is one frame."""
    return np.atleast_2d(np.load(path))


class Clips(Dataset):
    """One clip at a time."""

    def __init__(self, embeddings: dict[str, list[np.ndarray]], truth: np.ndarray, rows: range | list[int]):
        self.embeddings, self.truth, self.rows = embeddings, truth, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict:
        row = self.rows[place]
        clip = {modality: embeddings[row] for modality, embeddings in self.embeddings.items()}
        return clip | {"label": int(self.truth[row]), "name": f"clip_{row:06d}"}


def collate(clips: list[dict]) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    batch = {modality: torch.from_numpy(np.array([clip[modality] for clip in clips])) for modality in WIDTHS}
    return batch, torch.tensor([clip["label"] for clip in clips]), [clip["name"] for clip in clips]


def loader(embeddings: dict, truth: np.ndarray, rows: range | list[int], shuffle: bool = False) -> DataLoader:
    return DataLoader(Clips(embeddings, truth, rows), BATCH, shuffle=shuffle, collate_fn=collate)


def block(inputs: int) -> nn.Sequential:
    layers = [nn.Dropout(DROPOUT)]
    for size in (inputs, HIDDEN, HIDDEN):
        layers += [nn.Linear(size, HIDDEN), nn.ReLU()]
    return nn.Sequential(*layers)


class Baseline(nn.Module):
    """An encoder per modality, a weight for each from all of them, weighted sum, classifier."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({modality: block(width) for modality, width in WIDTHS.items()})
        self.look = block(len(WIDTHS) * HIDDEN)
        self.weigh, self.classify = nn.Linear(HIDDEN, len(WIDTHS)), nn.Linear(HIDDEN, len(EMOTIONS))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [encoder(batch[modality]) for modality, encoder in self.encoders.items()]
        weights = self.weigh(self.look(torch.cat(parts, 1)))
        return self.classify((torch.stack(parts, 2) @ weights[:, :, None]).squeeze(2))


class BaselineFold:
    """One fold's model and its loaders, epoch by epoch."""

    def __init__(self, embeddings: dict[str, list[np.ndarray]], truth: np.ndarray, fold: int = 0):
        torch.manual_seed(fold)
        own = [row for row in range(LABELED) if row % FOLDS == fold]
        others = [row for row in range(LABELED) if row % FOLDS != fold]
        self.teach = loader(embeddings, truth, others, shuffle=True)
        self.answer = [loader(embeddings, truth, rows) for rows in (own, range(LABELED, len(truth)))]
        self.model = Baseline().to(DEVICE)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, weight_decay=1e-5)

    def train(self) -> None:
        self.model.train()
        for batch, label, _ in self.teach:
            self.optimizer.zero_grad()
            F.cross_entropy(self._tell(batch), label.to(DEVICE)).backward()
            self.optimizer.step()

    def predict(self) -> tuple[np.ndarray, list[str]]:
        """Logits of the fold's own clips and of all unlabelled ones, and their names.

        As in the baseline gradients stay switched on, and the loss is computed here, too.
        """
        self.model.eval()
        logits, losses, names = [], [], []
        for some in self.answer:
            for batch, label, of_batch in some:
                told = self._tell(batch)
                losses.append(F.cross_entropy(told, label.to(DEVICE)).item())
                logits.append(told.detach().cpu().numpy())
                names += of_batch
        return np.concatenate(logits), names

    def _tell(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model({modality: values.to(DEVICE) for modality, values in batch.items()})
