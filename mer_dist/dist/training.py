"""The training loop: one model, weighted cross-entropy, exactly-once epochs on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mer_dist.dist import preempt
from mer_dist.dist.checkpoint import Checkpoints, Progress
from mer_dist.dist.partition import NOBODY, epoch_order, global_batches, micro_batches, micro_size
from mer_dist.dist.runtime import prepare, settle, unwrapped
from mer_dist.errors import Stopped, UserError
from mer_dist.log import logger
from mer_dist.metrics import waf
from mer_dist.prefetch import prefetched
from mer_dist.settings import FinetuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


#: Place of the first clip in the global batch, positions of the clips, and the model's inputs, on the CPU.
MicroBatch = tuple[int, np.ndarray, dict[str, torch.Tensor]]


@dataclass(kw_only=True)
class Task:
    """What to learn, from which clips. A position is a clip's place among N."""

    #: positions of one micro-batch -> model inputs; :data:`NOBODY` places repeat a real clip.
    load: Callable[[np.ndarray], dict[str, torch.Tensor]]
    #: (N,) class indices.
    targets: np.ndarray
    #: positions used for training, and those that choose the best epoch: held out, or all of them twice
    #: where none can be spared.
    train: np.ndarray
    held_out: np.ndarray
    #: (C,) weight of each class in the loss.
    class_weights: np.ndarray
    #: prefix of what is sent to the trackers.
    name: str

    @property
    def spared(self) -> bool:
        """Whether the epoch is chosen on clips that are not trained on."""
        return not np.isin(self.held_out, self.train).any()


class Trainer:
    """Trains ``model`` on ``task`` from the newest of ``checkpoints``, or from the start."""

    def __init__(
        self,
        joined: Accelerator,
        model: nn.Module,
        task: Task,
        config: FinetuneConfig,
        seed: int,
        checkpoints: Checkpoints | None = None,
    ):
        self.joined, self.task, self.config, self.seed = joined, task, config, seed
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.model, self.optimizer = prepare(joined, config, model, optimizer)
        self.class_weights = torch.tensor(task.class_weights, dtype=torch.float32, device=joined.device)
        self.steps_per_epoch = -(-len(task.train) // config.batch)
        self.checkpoints = checkpoints
        resumed = checkpoints and checkpoints.load(self.model, self.optimizer)
        self.progress = resumed or Progress()

    def run(
        self,
        keep: Callable[[nn.Module, int], None],
        note: Callable[[int, float, int], None] = lambda epoch, seconds, clips: None,
    ) -> dict:
        """Train the epochs that are left.

        Args:
            keep: called with the model and the number of the epoch whenever the WAF that chooses is best.
            note: called with the number of every epoch, and the seconds and clips of this start.

        Returns:
            The learning curves: ``{"epochs": [...], "best_epoch": n, "held_out": n}``, with 0 where nothing
            was held out and ``validation_*`` are of the clips that it trained on.

        Raises:
            Stopped: a signal asked for it; all ranks stop at the same step, after a checkpoint.
        """
        progress = self.progress
        while progress.epoch <= self.config.epochs:
            started = time.monotonic()
            loss, clips = self.train_epoch()
            rate = clips / (time.monotonic() - started)
            row = {"epoch": progress.epoch, "train_loss": loss, **self.evaluate()}
            self._check_number(row["validation_loss"], None, f"the evaluation after epoch {progress.epoch}")
            progress.epochs.append(row)
            self._tell(row, rate)
            note(progress.epoch, time.monotonic() - started, clips)
            score = (row["validation_waf"], -row["validation_loss"])
            if score > tuple(progress.best):
                progress.best, progress.best_epoch = score, progress.epoch
                keep(unwrapped(self.joined, self.model), progress.epoch)
            progress.epoch, progress.batch, progress.loss = progress.epoch + 1, 0, 0.0
        held_out = len(self.task.held_out) if self.task.spared else 0
        return {"epochs": progress.epochs, "best_epoch": progress.best_epoch, "held_out": held_out}

    def train_epoch(self) -> tuple[float, int]:
        """The rest of the epoch under way; returns the mean loss of the whole epoch, and the clips that
        it saw now."""
        self.model.train()
        progress = self.progress
        order = epoch_order(len(self.task.train), self.seed, progress.epoch)
        batches = global_batches(self.task.train[order], self.config.batch)[progress.batch :]
        for batch, mine in self._loaded(batches):
            self._save_or_stop_together()
            progress.loss += self._optimizer_step(batch, mine)
            progress.batch += 1
        # An evaluation may take longer than the time that is left.
        self._save_or_stop_together()
        clips = sum(int((batch != NOBODY).sum()) for batch in batches)
        return progress.loss / len(self.task.train), clips

    def _tell(self, row: dict, rate: float) -> None:
        logger.info(
            "%s epoch %d/%d: loss %.3f, %s WAF %.3f (%.1f clips/s)",
            self.task.name,
            row["epoch"],
            self.config.epochs,
            row["train_loss"],
            "held-out" if self.task.spared else "training clips'",
            row["validation_waf"],
            rate,
        )
        told = {**row, "clips_per_second": rate}
        curves = {f"{self.task.name}/{key}": value for key, value in told.items()}
        self.joined.log(curves, self.progress.step)

    def _optimizer_step(self, batch: np.ndarray, mine: list[MicroBatch]) -> float:
        """One step over a global batch, of which ``mine`` is this rank's part; returns the summed
        loss of all its clips."""
        step = self.progress.step
        rate = learning_rate(step, self.steps_per_epoch * self.config.epochs, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clips = int((batch != NOBODY).sum())
        # Accelerate averages over ranks and micro-batches; the mean over clips is wanted.
        scale = self.joined.num_processes * len(mine) / clips
        summed, norm = torch.zeros((), device=self.joined.device), None
        for place, positions, inputs in mine:
            # Dropout depends on the place in the run alone: neither on what was drawn before, nor on
            # the rank that computes it.
            torch.manual_seed(_mix(self.seed, step, place))
            with self.joined.accumulate(self.model):
                loss = self._loss(positions, inputs)
                self.joined.backward(loss * scale)
                if self.joined.sync_gradients:
                    norm = self.joined.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            summed += loss.detach()
        self.progress.step += 1
        total = self.joined.reduce(summed, "sum").item()
        self._check_number(total, norm, f"step {self.progress.step}")
        return total

    def _check_number(self, loss: float, norm: torch.Tensor | float | None, where: str) -> None:
        """Before the next checkpoint: weights that such a step has changed are lost for good.

        Args:
            norm: of the gradients, where it is known; DeepSpeed says -1 for one that is no number.

        Raises:
            UserError: the loss, or the size of the gradients, is no finite number, on all ranks alike.
        """
        if math.isfinite(loss) and (norm is None or 0 <= norm < math.inf):
            return
        extractor, settings = self.task.name.partition("/")[0], self.config
        held = "" if settings.precision == "fp32" else f", or its precision from {settings.precision} to fp32"
        raise UserError(
            f"{self.task.name}: the loss is no finite number any more at {where}; lower "
            f"extractors.{extractor}.finetune.learning_rate ({settings.learning_rate:g}){held}. If it is so "
            "at the first step, the weights of the model folder are no numbers. Earlier checkpoints are kept"
        )

    def _loss(self, positions: np.ndarray, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the weighted cross-entropy over the real clips of a micro-batch."""
        logits = self._logits(inputs)
        targets = torch.tensor(self.task.targets[positions], device=logits.device)
        losses = F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        )
        real = torch.tensor(positions != NOBODY, device=logits.device)
        return torch.where(real, losses, 0.0).sum()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and WAF on the clips that choose the epoch, computed by all ranks together."""
        self.model.eval()
        logits, positions = self._predict(self.task.held_out)
        settle(self.joined, self.model)
        targets = torch.tensor(self.task.targets[positions])
        return {
            "validation_loss": F.cross_entropy(logits, targets).item(),
            "validation_waf": waf(targets.numpy(), logits.argmax(1).numpy()),
        }

    def _predict(self, positions: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Logits of ``positions`` in any order, and which position each row belongs to."""
        rows, owners = [], []
        for _, parts in self._loaded(global_batches(positions, self.config.batch)):
            for _, mine, inputs in parts:
                logits = self._logits(inputs)
                owned = torch.tensor(mine, device=logits.device)
                rows.append(self.joined.gather(logits).cpu())
                owners.append(self.joined.gather(owned).cpu())
        owner = torch.cat(owners).numpy()
        return torch.cat(rows)[owner != NOBODY], owner[owner != NOBODY]

    def _loaded(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, list[MicroBatch]]]:
        """Each global batch with this rank's part of it, read while the one before is computed."""
        rank, world = self.joined.process_index, self.joined.num_processes
        size = micro_size(self.config.batch, self.config.micro_batch, world)

        def load(batch: np.ndarray):
            mine = micro_batches(batch, size, rank, world)
            return batch, [(place, positions, self.task.load(positions)) for place, positions in mine]

        return prefetched(load, batches)

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = {name: value.to(self.joined.device, non_blocking=True) for name, value in inputs.items()}
        return self.model(**moved)

    def _save_or_stop_together(self) -> None:
        """Ranks may see a signal or their clock at different steps; they agree before they act."""
        due = self.checkpoints is not None and self.checkpoints.due()
        wishes = torch.tensor([float(preempt.asked()), float(due)], device=self.joined.device)
        stop, save = (self.joined.reduce(wishes, "sum") > 0).tolist()
        if self.checkpoints is not None and (stop or save) and self.progress.step:
            self.checkpoints.save(self.model, self.optimizer, self.progress)
        if stop:
            raise Stopped(f"asked to stop at step {self.progress.step} of {self.task.name}")


def learning_rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Linear warm-up over the first part of ``steps``, then a cosine down to zero."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
