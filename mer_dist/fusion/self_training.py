"""Rounds of self-training: the models train again, with the unlabelled clips they are confident about.

No labelled clip influences its own out-of-fold prediction. The models of fold k train on labelled
clips of other folds and on pseudo-labels from the models of fold k in the round before; warm starts
continue these same models. Temperature and thresholds, which turn predictions into pseudo-labels, and
the dropout come from models that left out fold k *and* the fold they are evaluated on. The number of
steps does not depend on the selected clips: all folds train side by side, and the largest selection
of another fold would leak labels of fold k. Two paths remain: through fine-tuned extractors
(docs/architecture.md) and, with ``self_train.patience``, the number of rounds, which depends on the
labels of all folds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError, reading
from mer_dist.core.log import logger
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features.join import Clips
from mer_dist.fusion import label_shift, nested, pseudo_label_log, pseudo_labels, recipes, teachers
from mer_dist.fusion.cross_fitted import CrossFittedRound
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.pseudo_labels import PseudoLabels
from mer_dist.fusion.recipes import Recipe
from mer_dist.storage import files, timings
from mer_dist.storage.run_folder import RoundFolder, Run

if TYPE_CHECKING:
    from torch import Tensor

    from mer_dist.fusion.batch import FeatureBatch
    from mer_dist.fusion.ensemble import MemberData
    from mer_dist.fusion.members import FusionModel


def self_train(
    config: Config,
    clips: Clips,
    recipe: Recipe,
    inputs: Callable[[], FeatureBatch],
    should_stop: ShouldStop = never,
) -> Recipe:
    """Run the rounds that are missing, the supervised round 0 among them.

    Args:
        recipe: of clips and features.
        inputs: returns the features of ``clips.names``; called only if there is a round to run.

    Returns:
        The recipe of the last round.

    Raises:
        UserError: the rule fits thresholds, and there are too few folds to fit them.
    """
    run, settings = Run(config.run.folder), config.self_train
    last = recipes.last_round(config, clips)
    if last and settings.rule in ("precision", "consensus") and clips.folds < 3:
        raise UserError(
            f"self_train.rule {settings.rule} needs models that left out two folds, so "
            f"folds.count must be at least 3; it is {clips.folds}"
        )
    loaded, wafs = None, []
    for number in range(last + 1):
        recipe = recipes.round_of(config, number, last, recipe)
        if done := files.read_marker(run.round(number).folder, recipe.fingerprint):
            logger.info("%s: already there", title(number, config.fuse.model))
        else:
            boundary(should_stop, f"before {title(number, config.fuse.model)}")
            loaded = loaded or inputs()
            part = recipes.part_taken(config, number, last)
            done = _Round(config, clips, loaded, number, part, should_stop).run(recipe)
        wafs.append(done["oof_waf"])
        if number < last and recipes.enough(wafs, settings.patience):
            logger.info(
                "self-training stops after round %d of %d: out-of-fold WAF has not risen above "
                "the %.2f %% of round %d for %d rounds (self_train.patience)",
                number,
                last,
                100 * max(wafs),
                wafs.index(max(wafs)),
                settings.patience,
            )
            break
    for one in run.rounds():
        if one.number > number:
            shutil.rmtree(one.folder)
    return recipe


def title(number: int, model: str = "agt") -> str:
    """The name of a round of this ``fuse.model`` in the result table."""
    name = {"agt": "AGT", "mlp": "MLP"}.get(model, f"{model} fusion")
    return name if number == 0 else f"{name} + self-training round {number}"


def _members(folds: int, seeds: int) -> list[str]:
    return [f"fold-{fold}/seed-{seed}" for fold in range(folds) for seed in range(seeds)]


def _reasons(chosen: list[PseudoLabels]) -> list[str]:
    """Why clips are not selected, the most frequent reason first."""
    counts = np.bincount(np.concatenate([one.reason for one in chosen]), minlength=len(pseudo_labels.REASONS))
    return [
        pseudo_labels.REASONS[code] for code in np.argsort(-counts, kind="stable") if code and counts[code]
    ]


class _Round:
    """One round: pseudo-labels, K × S models, their predictions."""

    def __init__(
        self,
        config: Config,
        clips: Clips,
        inputs: FeatureBatch,
        number: int,
        part: float,
        should_stop: ShouldStop = never,
    ):
        self.should_stop = should_stop
        self.config, self.clips, self.inputs = config, clips, inputs
        self.number, self.part = number, part
        self.title = title(number, config.fuse.model)
        self.out = Run(config.run.folder)
        self.classes = len(clips.labels)
        self.unlabeled = np.flatnonzero(~clips.labeled)
        self.present = inputs.present.cpu().numpy()

    def run(self, recipe: Recipe) -> dict:
        """Run the round; returns the marker of its folder."""
        from mer_dist.fusion import ensemble

        started = time.monotonic()
        if self.number:
            first = CrossFittedRound.load(self.out, 0)
            dropout, nested_oof = first.dropout, first.nested_oof
        else:
            dropout, nested_oof = self._nested()
        chosen = self._pseudo_labels() if self.number else []
        members = [
            self._member_data([fold], seed, dropout[fold], chosen[fold] if chosen else None)
            for fold in range(self.clips.folds)
            for seed in range(self.config.fuse.seeds)
        ]
        model, losses = ensemble.train(
            self.inputs, members, self.config.fuse, self._steps(), self._start(), self._between
        )
        every = self._predict(model)
        made = CrossFittedRound(
            number=self.number,
            oof=self._out_of_fold(every),
            nested_oof=nested_oof,
            fold_predictions=np.ascontiguousarray(every[:, self.unlabeled], np.float32),
            present=self.present,
            dropout=dropout,
        )
        labeled = self.clips.labeled
        waf = metrics.waf(self.clips.truth[labeled], made.oof.answer[labeled])
        seconds = time.monotonic() - started
        timings.note(
            self.out, "fuse", self.out.round(self.number).folder, seconds=seconds, clips=len(self.clips.names)
        )
        with files.atomic_folder(self.out.round(self.number).folder) as folder:
            own = RoundFolder(folder)
            made.save(own)
            self._write_models(own.models, model)
            if self.number == 0:
                self._write_moments(own.moments)
            self._write_curves(own.curves, losses.numpy())
            if chosen:
                self._write_pseudo_label_log(own.pseudo_label_log, chosen)
            files.write_marker(
                folder, recipe.fingerprint, of=recipe.of, clips=len(self.clips.names), oof_waf=waf
            )
        logger.info(
            "%s: %d models, out-of-fold WAF %.2f %%, %.0f s", self.title, len(members), 100 * waf, seconds
        )
        return files.required_marker(self.out.round(self.number).folder)

    def _between(self) -> None:
        """Stop between two steps: a round takes minutes, and an unfinished one is not kept."""
        boundary(self.should_stop, f"in {self.title}")

    def _pseudo_labels(self) -> list[PseudoLabels]:
        """Per fold the pseudo-labels from its own models of the round before."""
        labeled, usable = np.flatnonzero(self.clips.labeled), self.present[self.unlabeled]
        before, chosen = CrossFittedRound.load(self.out, self.number - 1), []
        taught_by = teachers.read(self.config, self.out, self.clips, "self_train")
        for unlabeled, judged in zip(before.fold_predictions, before.nested_oof, strict=True):
            known = np.isfinite(judged).all(1)
            rows = labeled[known]
            truth = self.clips.truth[rows]
            taught = teachers.together(taught_by, truth, rows, self.unlabeled) if taught_by else None
            chosen.append(
                pseudo_labels.pseudo_labels(
                    unlabeled, usable, judged[known], truth, self.part, self.config.self_train, taught
                )
            )
        counts = [int(one.taken.sum()) for one in chosen]
        logger.info(
            "%s: %s of %d unlabelled clips selected by fold",
            self.title,
            ", ".join(map(str, counts)),
            len(self.unlabeled),
        )
        if not any(counts):
            logger.warning(
                "%s: no clip is taken by self_train.rule %s (%s); it trains on labels alone",
                self.title,
                self.config.self_train.rule,
                ", ".join(_reasons(chosen)),
            )
        return chosen

    def _steps(self) -> int:
        """Steps per epoch: enough to show the labelled clips and the fraction that may be selected.

        Not the clips selected: all folds take the same number of steps, so the largest fold would
        leak labels to the others. If there are more clips, an epoch shows a random subset.
        """
        longest = max(self.present[self.clips.outside(fold)].sum() for fold in range(self.clips.folds))
        shown = longest + round(self.part * self.present[self.unlabeled].sum())
        return max(-(-int(shown) // self.config.fuse.batch), 1)

    def _start(self) -> dict[str, Tensor] | None:
        """The models to continue: read from disk, so that an interruption changes nothing."""
        if self.number == 0 or self.config.self_train.start == "scratch":
            return None
        from safetensors.torch import load_file

        device = str(self.inputs.values[0].device)
        path = self.out.round(self.number - 1).models
        with reading(path, "delete its folder and run fuse"):
            return load_file(path, device)

    def _member_data(
        self, held_out_folds: list[int], seed: int, dropout: float, chosen: PseudoLabels | None = None
    ) -> MemberData:
        import torch

        from mer_dist.fusion.ensemble import MemberData, seed_of

        rows = self.clips.outside(*held_out_folds)
        rows = rows[self.present[rows]]
        label, weight = self.clips.truth[rows], np.ones(len(rows))
        if chosen is not None:
            taken = np.flatnonzero(chosen.taken)
            rows = np.concatenate([rows, self.unlabeled[taken]])
            label = np.concatenate([label, chosen.label[taken]])
            weight = np.concatenate([weight, chosen.weight[taken]])
        device = self.inputs.values[0].device
        own = seed_of(self.config.run.seed, "round", self.number, "without", *held_out_folds, "seed", seed)
        return MemberData(
            rows=torch.from_numpy(rows).to(device),
            targets=torch.eye(self.classes, device=device)[torch.from_numpy(label).to(device)],
            weights=torch.from_numpy(weight).float().to(device),
            seed=own,
            dropout=float(dropout),
        )

    def _predict(self, model: FusionModel) -> np.ndarray:
        """(K, N, C): mean over the seeds of each fold; a clip without any modality gets the label
        proportions that the fold's models were trained on."""
        probability = self._probability(model, np.flatnonzero(self.present))
        probability = probability.reshape(self.clips.folds, -1, *probability.shape[1:]).mean(1)
        every = np.empty((self.clips.folds, len(self.clips.names), self.classes))
        every[:, self.present] = probability
        for fold in range(self.clips.folds):
            trained_on = self.clips.truth[self.clips.outside(fold)]
            every[fold, ~self.present] = label_shift.shares(trained_on, self.classes)
        return every

    def _probability(self, model: FusionModel, rows: np.ndarray) -> np.ndarray:
        import torch

        from mer_dist.fusion import ensemble

        on_device = torch.from_numpy(rows).to(self.inputs.values[0].device)
        return np.exp(ensemble.predict(model, self.inputs, on_device, self._between).double().numpy())

    def _nested(self) -> tuple[np.ndarray, np.ndarray]:
        """The dropout (K,) of each fold's models, and ``nested_oof`` under it.

        With plain out-of-fold predictions the labels of fold k would leak into its own models,
        pseudo-labels or predictions. One model per pair of folds, not one per seed, is enough. They are
        trained in round 0 alone: those of later rounds would need pseudo-labels from models without three
        folds, and so on. Later rounds are more confident than this temperature corrects for.
        """
        options = self._dropouts()
        pairs = [
            pair
            for pair in combinations(range(self.clips.folds), 2)
            if self.present[self.clips.outside(*pair)].any()
        ]
        predicted = self._without_two_folds(options, pairs) if pairs else []
        chosen, nested_oof = nested.select(self.clips, len(options), predicted, len(options) // 2)
        dropout = options[chosen]
        if pairs:
            logger.info("%s: dropout by fold: %s", self.title, ", ".join(map(str, dropout)))
        return dropout, nested_oof

    def _without_two_folds(
        self, options: np.ndarray, pairs: list[tuple[int, int]]
    ) -> Iterator[tuple[int, tuple[int, int], np.ndarray, np.ndarray]]:
        """Predictions of models without two folds, as :func:`nested.select` takes them."""
        from mer_dist.fusion import ensemble

        members = [self._member_data([*pair], 0, option) for option in options for pair in pairs]
        model, _ = ensemble.train(self.inputs, members, self.config.fuse, between=self._between)
        labeled = np.flatnonzero(self.clips.labeled)
        rows = np.flatnonzero(self.present[labeled])
        every = self._probability(model, labeled[rows])
        for (option, pair), probability in zip(product(range(len(options)), pairs), every, strict=True):
            yield option, pair, rows, probability

    def _dropouts(self) -> np.ndarray:
        """The values to choose from; some models, such as linear, have no dropout."""
        options, model = self.config.fuse.dropout, FUSION_MODELS[self.config.fuse.model]
        return np.array(options if "dropout" in model.options else options[:1])

    def _out_of_fold(self, every: np.ndarray) -> Predictions:
        """From the predictions of each fold's models for all clips, (K, N, C)."""
        probability = every.mean(0)
        own = np.flatnonzero(self.clips.labeled)
        probability[own] = every[self.clips.fold[own], own]
        return Predictions.of(self.clips, self.title, probability)

    def _write_curves(self, path: Path, losses: np.ndarray) -> None:
        fold_losses = losses.reshape(self.clips.folds, -1, losses.shape[1]).mean(1)
        curves = [{"fold": fold, "train_loss": curve} for fold, curve in enumerate(fold_losses.tolist())]
        files.write_json(path, {"folds": curves})

    def _write_models(self, path: Path, model: FusionModel) -> None:
        """Their state, in the order of :func:`_members`."""
        from safetensors.torch import save_file as save_tensors

        # Cloned: tied weights of a module share memory, which safetensors refuses.
        state = {
            name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()
        }
        members = _members(self.clips.folds, self.config.fuse.seeds)
        save_tensors(state, path, {"members": " ".join(members)})

    def _write_moments(self, path: Path) -> None:
        from safetensors.torch import save_file as save_tensors

        tensors: dict[str, Tensor] = {}
        for number, (shift, scale) in enumerate(self.inputs.moments):
            tensors |= {f"shift.{number}": shift.cpu(), f"scale.{number}": scale.cpu()}
        save_tensors(tensors, path)

    def _write_pseudo_label_log(self, path: Path, chosen: list[PseudoLabels]) -> None:
        names = [self.clips.names[row] for row in self.unlabeled]
        members = np.array(_members(self.clips.folds, self.config.fuse.seeds))
        models = [" ".join(own) for own in members.reshape(self.clips.folds, -1)]
        pseudo_label_log.write(path, names, self.clips.labels, chosen, models)
