"""Rounds of self-training: the models learn again with the unlabelled clips they are sure of.

No labelled clip influences its own out-of-fold prediction. The models of fold k train on labelled
clips of other folds and on pseudo-labels that the models of fold k gave in the round before; warm
ones go on from these same models. Temperature and thresholds, which turn what they told into
pseudo-labels, and the dropout come from models that left out fold k *and* the fold they are judged
on. How long training takes does not depend on what was taken, since all folds train side by side:
the most that another fold took would tell of labels of fold k. What remains are the paths through
fine-tuned extractors that docs/architecture.md describes, and one number where
``self_train.patience`` is set: how many rounds there are follows from the labels of all folds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from mer_dist.config import fusion_models
from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError, reading
from mer_dist.core.log import logger
from mer_dist.features.join import Clips
from mer_dist.fusion import label_shift, predictions, pseudo_label_log, pseudo_labels, recipes
from mer_dist.fusion.pseudo_labels import Selection
from mer_dist.fusion.recipes import Recipe
from mer_dist.processes import preempt
from mer_dist.storage import files, timings
from mer_dist.storage.run_folder import Run

if TYPE_CHECKING:
    from torch import Tensor

    from mer_dist.fusion.batch import FeatureBatch
    from mer_dist.fusion.ensemble import MemberData
    from mer_dist.fusion.members import FusionModel

#: Beside the predictions of a round: what each fold's models say of the unlabelled clips and, in
#: round 0, what models without two folds say of the labelled ones.
BY_FOLD = "by_fold.safetensors"
#: The state of the round's models, in the order of :func:`_members`.
MODELS = "models.safetensors"
#: A probability below this counts as this much when likelihoods are compared.
TINY = 1e-6


def self_train(config: Config, clips: Clips, recipe: Recipe, inputs: Callable[[], FeatureBatch]) -> Recipe:
    """Run the rounds that are missing, the supervised round 0 among them.

    Args:
        recipe: of clips and features.
        inputs: gives the features of ``clips.names``; called only if there is a round to run.

    Returns:
        The recipe of the last round.

    Raises:
        UserError: the rule learns thresholds, and there are too few folds to learn them.
    """
    run, settings = Run(config.run.folder), config.self_train
    last = recipes.last_round(config, clips)
    if last and settings.rule == "precision" and clips.folds < 3:
        raise UserError(
            "self_train.rule precision learns from models that left out two folds, so "
            f"folds.count must be at least 3; it is {clips.folds}"
        )
    loaded, wafs = None, []
    for number in range(last + 1):
        recipe = recipes.round_of(config, number, last, recipe)
        if done := files.marked(run.round(number), recipe.made_from):
            logger.info("%s: already there", title(number, config.fuse.model))
        else:
            preempt.stop_if_asked(f"before {title(number, config.fuse.model)}")
            loaded = loaded or inputs()
            part = recipes.part_taken(config, number, last)
            done = _Round(config, clips, loaded, number, part).run(recipe)
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
    for folder in (run.folder / "rounds").glob("[0-9]*"):
        if int(folder.name) > number:
            shutil.rmtree(folder)
    return recipe


def title(number: int, model: str = "agt") -> str:
    """What a round of this ``fuse.model`` is called in the result table."""
    name = {"agt": "AGT", "mlp": "MLP"}.get(model, f"{model} fusion")
    return name if number == 0 else f"{name} + self-training round {number}"


def by_fold(run: Run, number: int) -> np.ndarray:
    """(K, U, C): probabilities of the unlabelled clips by the models of each fold."""
    return predictions.array(run.round(number) / BY_FOLD, "probability")


def present(run: Run) -> np.ndarray:
    """(N,) bool: clips that have any of the fused modalities."""
    return predictions.array(run.round(0) / BY_FOLD, "present").astype(bool)


def held_out(run: Run) -> np.ndarray:
    """(K, L, C): probabilities of the labelled clips by models that left out fold k and their own.

    NaN for the clips of fold k itself, those without any modality, and all where K is 2. Used by
    whatever is fitted for fold k: temperature, thresholds, and the weights of the vote.
    """
    return predictions.array(run.round(0) / BY_FOLD, "held_out")


def chosen_dropout(run: Run) -> np.ndarray:
    """(K,): what round 0 found best for the models of each fold."""
    return predictions.array(run.round(0) / BY_FOLD, "dropout")


def _members(folds: int, seeds: int) -> list[str]:
    return [f"fold-{fold}/seed-{seed}" for fold in range(folds) for seed in range(seeds)]


class _Round:
    """One round: pseudo-labels, K × S models, their predictions."""

    def __init__(self, config: Config, clips: Clips, inputs: FeatureBatch, number: int, part: float):
        self.config, self.clips, self.inputs = config, clips, inputs
        self.number, self.part = number, part
        self.title = title(number, config.fuse.model)
        self.out = Run(config.run.folder)
        self.classes = len(clips.labels)
        self.unlabeled = np.flatnonzero(~clips.labeled)
        self.present = inputs.present.cpu().numpy()

    def run(self, recipe: Recipe) -> dict:
        """Run the round; returns the mark of its folder."""
        from mer_dist.fusion import ensemble

        started = time.monotonic()
        facts = {} if self.number else self._without_pairs()
        dropout = chosen_dropout(self.out) if self.number else facts["dropout"]
        chosen = self._pseudo_labels() if self.number else []
        lessons = [
            self._lesson([fold], seed, dropout[fold], chosen[fold] if chosen else None)
            for fold in range(self.clips.folds)
            for seed in range(self.config.fuse.seeds)
        ]
        model, losses = ensemble.train(
            self.inputs, lessons, self.config.fuse, self._steps(), self._start(), self._between
        )
        every = self._predict(model)
        kept = facts | {
            "probability": np.ascontiguousarray(every[:, self.unlabeled], np.float32),
            "present": self.present.astype(np.uint8),
        }
        told, labeled = self._predictions(every), self.clips.labeled
        waf = metrics.waf(self.clips.truth[labeled], told.answer[labeled])
        seconds = time.monotonic() - started
        timings.note(
            self.out, "fuse", self.out.round(self.number), seconds=seconds, clips=len(self.clips.names)
        )
        with files.atomic_folder(self.out.round(self.number)) as folder:
            predictions.write(folder / "predictions.parquet", told)
            save_file(kept, folder / BY_FOLD)
            self._write_models(folder, model)
            self._write_curves(folder, losses.numpy())
            if chosen:
                self._write_lineage(folder, chosen)
            files.mark(folder, recipe.made_from, of=recipe.of, clips=len(self.clips.names), oof_waf=waf)
        logger.info(
            "%s: %d models, out-of-fold WAF %.2f %%, %.0f s", told.title, len(lessons), 100 * waf, seconds
        )
        return files.mark_of(self.out.round(self.number))

    def _between(self) -> None:
        """Between two steps: a round takes minutes, and nothing of it is kept before it is done."""
        preempt.stop_if_asked(f"in {self.title}")

    def _pseudo_labels(self) -> list[Selection]:
        """Per fold the pseudo-labels that its own models of the round before give."""
        labeled, usable = np.flatnonzero(self.clips.labeled), self.present[self.unlabeled]
        chosen = []
        for told, judged in zip(by_fold(self.out, self.number - 1), held_out(self.out), strict=True):
            known = np.isfinite(judged).all(1)
            chosen.append(
                pseudo_labels.pseudo_labels(
                    told,
                    usable,
                    judged[known],
                    self.clips.truth[labeled[known]],
                    self.part,
                    self.config.self_train,
                )
            )
        counts = [int(one.taken.sum()) for one in chosen]
        logger.info(
            "%s: %s of %d unlabelled clips taken by fold",
            self.title,
            ", ".join(map(str, counts)),
            len(self.unlabeled),
        )
        if not any(counts):
            logger.warning(
                "%s: no clip is sure enough for self_train.rule %s; it trains on labels alone",
                self.title,
                self.config.self_train.rule,
            )
        return chosen

    def _steps(self) -> int:
        """Steps of an epoch: as many as show the labelled clips and the part that may be taken.

        Not what was taken: all folds take the same number of steps, so the longest lesson would
        tell every fold of the others. Of more clips an epoch shows a random part.
        """
        longest = max(self.present[self.clips.outside(fold)].sum() for fold in range(self.clips.folds))
        shown = longest + round(self.part * self.present[self.unlabeled].sum())
        return max(-(-int(shown) // self.config.fuse.batch), 1)

    def _start(self) -> dict[str, Tensor] | None:
        """The models to go on from: read back, so that an interruption changes nothing."""
        if self.number == 0 or self.config.self_train.start == "scratch":
            return None
        from safetensors.torch import load_file

        device = str(self.inputs.values[0].device)
        path = self.out.round(self.number - 1) / MODELS
        with reading(path, "delete its folder and run fuse"):
            return load_file(path, device)

    def _lesson(
        self, without: list[int], seed: int, dropout: float, chosen: Selection | None = None
    ) -> MemberData:
        import torch

        from mer_dist.fusion.ensemble import MemberData, seed_of

        rows = self.clips.outside(*without)
        rows = rows[self.present[rows]]
        label, weight = self.clips.truth[rows], np.ones(len(rows))
        if chosen is not None:
            taken = np.flatnonzero(chosen.taken)
            rows = np.concatenate([rows, self.unlabeled[taken]])
            label = np.concatenate([label, chosen.label[taken]])
            weight = np.concatenate([weight, chosen.weight[taken]])
        device = self.inputs.values[0].device
        own = seed_of(self.config.run.seed, "round", self.number, "without", *without, "seed", seed)
        return MemberData(
            rows=torch.from_numpy(rows).to(device),
            targets=torch.eye(self.classes, device=device)[torch.from_numpy(label).to(device)],
            weights=torch.from_numpy(weight).float().to(device),
            seed=own,
            dropout=float(dropout),
        )

    def _predict(self, model: FusionModel) -> np.ndarray:
        """(K, N, C): mean over the seeds of each fold; a clip without any modality gets the shares
        of the labels that the fold's models were trained on."""
        told = self._probability(model, np.flatnonzero(self.present))
        told = told.reshape(self.clips.folds, -1, *told.shape[1:]).mean(1)
        every = np.empty((self.clips.folds, len(self.clips.names), self.classes))
        every[:, self.present] = told
        for fold in range(self.clips.folds):
            trained_on = self.clips.truth[self.clips.outside(fold)]
            every[fold, ~self.present] = label_shift.shares(trained_on, self.classes)
        return every

    def _probability(self, model: FusionModel, rows: np.ndarray) -> np.ndarray:
        import torch

        from mer_dist.fusion import ensemble

        on_device = torch.from_numpy(rows).to(self.inputs.values[0].device)
        return np.exp(ensemble.predict(model, self.inputs, on_device, self._between).double().numpy())

    def _without_pairs(self) -> dict[str, np.ndarray]:
        """What models without two folds tell: ``held_out``, see :func:`held_out`, and the ``dropout``
        (K,) of each fold's models, of ``fuse.dropout`` the one with the least loss there.

        A dropout, temperature, threshold or weight of the vote fitted on plain out-of-fold
        predictions would carry the labels of fold k into its own models, pseudo-labels or
        answers, since the models of all other folds know them. One model per pair of folds, and
        not one per seed, will do. They are trained in round 0 alone: those of later rounds would
        need pseudo-labels from models without three folds, and so on. Later rounds are surer than
        the temperature knows.
        """
        from mer_dist.fusion import ensemble

        clips, options, labeled = self.clips, self._dropouts(), np.flatnonzero(self.clips.labeled)
        pairs = [
            pair for pair in combinations(range(clips.folds), 2) if self.present[clips.outside(*pair)].any()
        ]
        told = np.full((len(options), clips.folds, len(labeled), self.classes), np.nan, np.float32)
        usual = np.full(clips.folds, options[len(options) // 2])
        if not pairs:
            return {"held_out": told[0], "dropout": usual}
        lessons = [self._lesson([*pair], 0, option) for option in options for pair in pairs]
        model, _ = ensemble.train(self.inputs, lessons, self.config.fuse, between=self._between)
        rows = np.flatnonzero(self.present[labeled])
        fold, every = clips.fold[labeled[rows]], self._probability(model, labeled[rows])
        for (option, pair), probability in zip(product(range(len(options)), pairs), every, strict=True):
            for without, other in (pair, pair[::-1]):
                told[option, without, rows[fold == other]] = probability[fold == other]
        right = told[:, :, np.arange(len(labeled)), clips.truth[labeled]]
        best = np.nansum(-np.log(np.maximum(right, TINY)), 2).argmin(0)
        logger.info("%s: dropout by fold: %s", self.title, ", ".join(map(str, options[best])))
        return {"held_out": told[best, np.arange(clips.folds)], "dropout": options[best]}

    def _dropouts(self) -> np.ndarray:
        """The values to choose from; some models, such as linear, have no use for any."""
        options, model = self.config.fuse.dropout, fusion_models.find(self.config.fuse.model)
        return np.array(options if "dropout" in model.options else options[:1])

    def _predictions(self, by_fold: np.ndarray) -> predictions.Predictions:
        clips = self.clips
        probability = by_fold.mean(0)
        own = np.flatnonzero(clips.labeled)
        probability[own] = by_fold[clips.fold[own], own]
        return predictions.Predictions(
            title=self.title,
            labels=clips.labels,
            names=clips.names,
            labeled=clips.labeled,
            fold=clips.fold,
            probability=probability,
            answer=probability.argmax(1),
        )

    def _write_curves(self, folder: Path, losses: np.ndarray) -> None:
        by_fold = losses.reshape(self.clips.folds, -1, losses.shape[1]).mean(1)
        curves = [{"fold": fold, "train_loss": curve} for fold, curve in enumerate(by_fold.tolist())]
        files.write_json(folder / "curves.json", {"folds": curves})

    def _write_models(self, folder: Path, model: FusionModel) -> None:
        from safetensors.torch import save_file as save_tensors

        # Each by itself: weights that a module ties share their bytes, which safetensors refuses.
        state = {
            name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()
        }
        members = _members(self.clips.folds, self.config.fuse.seeds)
        save_tensors(state, folder / MODELS, {"members": " ".join(members)})

    def _write_lineage(self, folder: Path, chosen: list[Selection]) -> None:
        names = [self.clips.names[row] for row in self.unlabeled]
        members = np.array(_members(self.clips.folds, self.config.fuse.seeds))
        models = [" ".join(own) for own in members.reshape(self.clips.folds, -1)]
        pseudo_label_log.write(folder / pseudo_label_log.FILE, names, self.clips.labels, chosen, models)
