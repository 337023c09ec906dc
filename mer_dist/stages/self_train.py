"""Rounds of self-training: AGT learns again with the unlabelled clips it is sure of.

No labelled clip influences its own out-of-fold prediction. The models of fold k train on labelled
clips of other folds and on pseudo-labels that the models of fold k gave in the round before; the
temperature that turns those into confidences comes from models that left out fold k *and* the
fold they are judged on. What remains are the paths through fine-tuned extractors that
docs/architecture.md describes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from mer_dist import files, metrics, predictions, prior
from mer_dist.config import Config, as_dict
from mer_dist.dist import preempt
from mer_dist.errors import Stopped
from mer_dist.joined import Clips
from mer_dist.layout import Run
from mer_dist.log import logger
from mer_dist.models import fusion
from mer_dist.models.fusion import Inputs, Lesson, seed_of
from mer_dist.settings import SelfTrainConfig

#: Beside the predictions of a round: what each fold's models say of the unlabelled clips.
BY_FOLD = "by_fold.safetensors"
TAKEN, UNSURE, BEYOND, EMPTY = "", "below the confidence", "beyond its class's quota", "no modality"


@dataclass(kw_only=True)
class Selection:
    """Pseudo-labels for the models of one fold, one entry per unlabelled clip."""

    #: (N, C), calibrated.
    probability: np.ndarray
    label: np.ndarray
    #: (N,) str: why the clip was not taken; empty if it was.
    reason: np.ndarray
    #: (C,): the least confidence that was taken of each label.
    threshold: np.ndarray
    #: (N,): 0 if not taken.
    weight: np.ndarray


def self_train(config: Config, clips: Clips, made_from: str, inputs: Callable[[], Inputs]) -> str:
    """Run the rounds that are missing, the supervised round 0 among them.

    Args:
        made_from: fingerprint of clips and features.
        inputs: gives the features of ``clips.names``; called only if there is a round to run.

    Returns:
        The fingerprint of the last round.
    """
    run, settings = Run(config.run.folder), config.self_train
    model = as_dict(config.fuse)
    del model["labels"], model["sets"]
    last = settings.rounds if not clips.labeled.all() else 0
    made_from = files.fingerprint([made_from, model, config.run.seed, last > 0])
    loaded = None
    for number in range(last + 1):
        part = settings.quota * number / max(last, 1)
        if number:
            own = [number, part, settings.confidence, settings.weight]
            made_from = files.fingerprint([made_from, *own])
        if files.marked(run.round(number), made_from):
            logger.info("%s: already there", title(number))
            continue
        if preempt.asked():
            raise Stopped(f"asked to stop before {title(number)}")
        loaded = loaded or inputs()
        _Round(config, clips, loaded, number, part).run(made_from)
    for folder in (run.folder / "rounds").glob("[0-9]*"):
        if int(folder.name) > last:
            shutil.rmtree(folder)
    return made_from


def title(number: int) -> str:
    return "AGT" if number == 0 else f"AGT + self-training round {number}"


def by_fold(run: Run, number: int) -> np.ndarray:
    """(K, U, C): probabilities of the unlabelled clips by the models of each fold."""
    return load_file(run.round(number) / BY_FOLD)["probability"]


class _Round:
    """One round: pseudo-labels, K × S models, their predictions."""

    def __init__(self, config: Config, clips: Clips, inputs: Inputs, number: int, part: float):
        self.config, self.clips, self.inputs = config, clips, inputs
        self.number, self.part = number, part
        self.out = Run(config.run.folder)
        self.classes = len(clips.labels)
        self.unlabeled = np.flatnonzero(~clips.labeled)
        self.present = inputs.present.cpu().numpy()

    def run(self, made_from: str) -> None:
        started = time.monotonic()
        scale, chosen = self._pseudo_labels()
        lessons = [
            self._lesson([fold], seed, chosen[fold] if chosen else None)
            for fold in range(self.clips.folds)
            for seed in range(self.config.fuse.seeds)
        ]
        model, losses = fusion.train(self.inputs, lessons, self.config.fuse)
        by_fold = self._predict(model)
        if self.number == 0 and self.config.self_train.rounds:
            scale = self._scales()
        told = self._predictions(by_fold)
        with files.atomic_folder(self.out.round(self.number)) as folder:
            predictions.write(folder / "predictions.parquet", told)
            kept = np.ascontiguousarray(by_fold[:, self.unlabeled], np.float32)
            save_file({"probability": kept, "scale": scale}, folder / BY_FOLD)
            self._write_curves(folder, losses.numpy())
            if chosen:
                self._write_selection(folder, chosen)
            seconds = time.monotonic() - started
            files.mark(folder, made_from, seconds=seconds, clips=len(self.clips.names))
        labeled = self.clips.labeled
        waf = metrics.waf(self.clips.truth[labeled], told.answer[labeled])
        logger.info("%s: %d models, out-of-fold WAF %.2f %%, %.0f s", told.title, len(lessons),
                    100 * waf, seconds)

    def _pseudo_labels(self) -> tuple[np.ndarray, list[Selection]]:
        """The scale of each fold's log probabilities, and its models' own pseudo-labels."""
        if self.number == 0:
            return np.ones(self.clips.folds), []
        scale = load_file(self.out.round(0) / BY_FOLD)["scale"]
        before = by_fold(self.out, self.number - 1)
        usable = self.present[self.unlabeled]
        none = np.zeros(self.classes)
        chosen = [
            select(prior.Calibration(float(one), none)(probability), usable, self.part,
                   self.config.self_train)
            for one, probability in zip(scale, before, strict=True)
        ]
        counts = [int((selection.reason == TAKEN).sum()) for selection in chosen]
        logger.info("%s: %s of %d unlabelled clips taken by fold", title(self.number),
                    ", ".join(map(str, counts)), len(self.unlabeled))
        return scale, chosen

    def _lesson(self, without: list[int], seed: int, chosen: Selection | None = None) -> Lesson:
        rows = self.clips.outside(*without)
        rows = rows[self.present[rows]]
        label, weight = self.clips.truth[rows], np.ones(len(rows))
        if chosen is not None:
            taken = np.flatnonzero(chosen.reason == TAKEN)
            rows = np.concatenate([rows, self.unlabeled[taken]])
            label = np.concatenate([label, chosen.label[taken]])
            weight = np.concatenate([weight, chosen.weight[taken]])
        device = self.inputs.values[0].device
        own = seed_of(self.config.run.seed, "round", self.number, "without", *without, "seed", seed)
        return Lesson(
            rows=torch.from_numpy(rows).to(device),
            targets=torch.eye(self.classes, device=device)[torch.from_numpy(label).to(device)],
            weights=torch.from_numpy(weight).float().to(device), seed=own,
        )

    def _predict(self, model: fusion.AGT) -> np.ndarray:
        """(K, N, C): mean over the seeds of each fold; a clip without any modality gets the shares
        of the labels that the fold's models were trained on."""
        told = self._probability(model, np.flatnonzero(self.present))
        told = told.reshape(self.clips.folds, -1, *told.shape[1:]).mean(1)
        every = np.empty((self.clips.folds, len(self.clips.names), self.classes))
        every[:, self.present] = told
        for fold in range(self.clips.folds):
            trained_on = self.clips.truth[self.clips.outside(fold)]
            every[fold, ~self.present] = prior.shares(trained_on, self.classes)
        return every

    def _probability(self, model: fusion.AGT, rows: np.ndarray) -> np.ndarray:
        on_device = torch.from_numpy(rows).to(self.inputs.values[0].device)
        return np.exp(fusion.predict(model, self.inputs, on_device).double().numpy())

    def _scales(self) -> np.ndarray:
        """(K,): for the models of each fold the inverse temperature of their log probabilities.

        It is fitted on clips of the other folds, as told by models that left out both folds: a
        scale fitted on plain out-of-fold predictions would carry the labels of fold k into the
        pseudo-labels of fold k. With two folds there are no such models, and it stays 1.
        """
        clips, scale = self.clips, np.ones(self.clips.folds)
        pairs = list(combinations(range(clips.folds), 2))
        if clips.folds < 3:
            return scale
        lessons = [self._lesson([*pair], 0) for pair in pairs]
        model, _ = fusion.train(self.inputs, lessons, self.config.fuse)
        rows = np.flatnonzero(clips.labeled & self.present)
        told = dict(zip(pairs, self._probability(model, rows), strict=True))
        for fold in range(clips.folds):
            others = [other for other in range(clips.folds) if other != fold]
            held_out = [told[min(fold, other), max(fold, other)][clips.fold[rows] == other]
                        for other in others]
            truth = [clips.truth[rows][clips.fold[rows] == other] for other in others]
            fitted = prior.calibrate(np.concatenate(held_out), np.concatenate(truth), bias=False)
            scale[fold] = fitted.scale
        return scale

    def _predictions(self, by_fold: np.ndarray) -> predictions.Predictions:
        clips = self.clips
        probability = by_fold.mean(0)
        own = np.flatnonzero(clips.labeled)
        probability[own] = by_fold[clips.fold[own], own]
        return predictions.Predictions(
            title=title(self.number), labels=clips.labels, names=clips.names,
            labeled=clips.labeled, fold=clips.fold, probability=probability,
            answer=probability.argmax(1),
        )

    def _write_curves(self, folder: Path, losses: np.ndarray) -> None:
        by_fold = losses.reshape(self.clips.folds, -1, losses.shape[1]).mean(1)
        curves = [{"fold": fold, "train_loss": curve} for fold, curve in enumerate(by_fold.tolist())]
        files.write_json(folder / "curves.json", {"folds": curves})

    def _write_selection(self, folder: Path, chosen: list[Selection]) -> None:
        """selection.parquet: what became of every unlabelled clip for the models of every fold."""
        labels = np.array(self.clips.labels)
        names = np.array(self.clips.names)[self.unlabeled]
        tables = []
        for fold, one in enumerate(chosen):
            columns = {"fold": np.full(len(names), fold, np.int32), "name": names}
            columns |= {f"p_{label}": one.probability[:, row] for row, label in enumerate(labels)}
            columns |= {
                "pseudo_label": labels[one.label], "selected": one.reason == TAKEN,
                "reason": one.reason, "threshold": one.threshold[one.label], "weight": one.weight,
            }
            tables.append(pa.table({key: pa.array(values) for key, values in columns.items()}))
        pq.write_table(pa.concat_tables(tables), folder / "selection.parquet")


def select(
    probability: np.ndarray, usable: np.ndarray, part: float, settings: SelfTrainConfig
) -> Selection:
    """Take the surest clips of each label, as many as the label's expected share of ``part``.

    A single threshold would take mostly the labels that are easy, and the next round would think
    them more frequent still; a quota per label, in the proportion of the summed probabilities,
    keeps the shares (class-balanced self-training, Zou et al. 2018). A taken clip weighs
    ``settings.weight`` times its confidence.

    Args:
        probability: (N, C), calibrated.
        usable: (N,) bool, False for a clip without any modality.
        part: of the N clips that is taken at most.
    """
    confidence, label = probability.max(1), probability.argmax(1)
    reason = np.where(confidence < settings.confidence, UNSURE, BEYOND).astype(object)
    reason[~usable] = EMPTY
    threshold = np.full(probability.shape[1], settings.confidence)
    for own, quota in enumerate(np.round(part * probability[usable].sum(0)).astype(int)):
        rows = np.flatnonzero((reason == BEYOND) & (label == own))
        taken = rows[np.argsort(-confidence[rows], kind="stable")[:quota]]
        reason[taken] = TAKEN
        if len(taken):
            threshold[own] = confidence[taken].min()
    weight = np.where(reason == TAKEN, settings.weight * confidence, 0.0)
    return Selection(probability=probability, label=label, reason=reason.astype(str),
                     threshold=threshold, weight=weight)
