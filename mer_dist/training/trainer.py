"""The training loop: one model, weighted cross-entropy, exactly-once epochs on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.log import logger
from mer_dist.core.metrics import waf
from mer_dist.core.prefetch import loaders, prefetched
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.processes.env import ranks_here
from mer_dist.training.accelerator import prepare, release_gathered_params, unwrapped
from mer_dist.training.checkpoint import Checkpoints, Progress
from mer_dist.training.partition import PAD_INDEX, Passes, epoch_order, global_batches

if TYPE_CHECKING:
    from accelerate import Accelerator


class Pass(NamedTuple):
    """The input of one forward and backward pass, on the CPU."""

    #: position of its first clip, in the order in which the global batch is cut.
    number: int
    #: (B,) of the clips.
    positions: np.ndarray
    #: the same for the device.
    owners: torch.Tensor
    inputs: dict[str, torch.Tensor]


class StepOutcome(NamedTuple):
    """The result of a step, the same on all ranks."""

    #: summed over the clips of the global batch.
    loss: float
    #: whether any rank was asked to stop, or finds a checkpoint due.
    stop: bool
    save: bool
    #: whether loss and gradients are finite.
    finite: bool


@dataclass(kw_only=True)
class Task:
    """What to learn, and from which clips. A position is the index of one of N clips."""

    #: positions of one pass -> model inputs; :data:`PAD_INDEX` positions repeat a real clip.
    load: Callable[[np.ndarray], dict[str, torch.Tensor]]
    #: (N,) class indices.
    targets: np.ndarray
    #: positions for training, and those that choose the best epoch: held out, or both times all if
    #: none can be held out.
    train: np.ndarray
    held_out: np.ndarray
    #: (C,) weight of each class in the loss.
    class_weights: np.ndarray
    #: how global batches are cut.
    passes: Passes
    #: prefix of values in the trackers.
    name: str

    @property
    def spared(self) -> bool:
        """Whether the epoch is chosen on clips that are not trained on."""
        return not np.isin(self.held_out, self.train).any()


class Trainer:
    """Trains ``model`` on ``task`` from the newest of ``checkpoints``, or from the start.

    On a CPU the same start, seed and number of ranks give the same bits, wherever a training was interrupted.
    On a GPU this needs ``config.deterministic``; otherwise attention sums its gradients in any order, and
    losses agree only within the precision.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        config: FinetuneConfig,
        seed: int,
        checkpoints: Checkpoints | None = None,
        should_stop: ShouldStop = never,
    ):
        self.should_stop = should_stop
        self.accelerator, self.task, self.config, self.seed = accelerator, task, config, seed
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        on_gpu = accelerator.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            trainable, lr=config.learning_rate, weight_decay=config.weight_decay, fused=on_gpu or None
        )
        self.model, self.optimizer = prepare(accelerator, config, model, optimizer)
        self.class_weights = torch.tensor(task.class_weights, dtype=torch.float32, device=accelerator.device)
        self.targets = torch.tensor(task.targets, device=accelerator.device)
        self.steps_per_epoch = -(-len(task.train) // config.batch)
        self.checkpoints = checkpoints
        resumed = checkpoints and checkpoints.load(self.model, self.optimizer)
        self.progress = resumed or Progress()

    def run(
        self,
        on_best: Callable[[nn.Module, int], None],
        on_epoch_end: Callable[[int, float, int], None] = lambda epoch, seconds, clips: None,
    ) -> dict:
        """Train the remaining epochs.

        Args:
            on_best: called with the model and the epoch whenever the validation WAF is the best so far.
            on_epoch_end: called with every epoch, and its seconds and clips since this start.

        Returns:
            The learning curves: ``{"epochs": [...], "best_epoch": n, "held_out": n}``; ``held_out`` is 0 if
            ``validation_*`` are of the training clips because none was held out.

        Raises:
            Stopped: ``should_stop`` was true on any rank; all stop at the same step, after a checkpoint.
        """
        with _deterministic(self.config.deterministic):
            return self._run(on_best, on_epoch_end)

    def _run(
        self, on_best: Callable[[nn.Module, int], None], on_epoch_end: Callable[[int, float, int], None]
    ) -> dict:
        progress = self.progress
        while progress.epoch <= self.config.epochs:
            started = time.monotonic()
            loss, clips = self.train_epoch()
            rate = clips / (time.monotonic() - started)
            row = {"epoch": progress.epoch, "train_loss": loss, **self.evaluate()}
            finite = math.isfinite(row["validation_loss"])
            self._check_number(finite, f"the evaluation after epoch {progress.epoch}")
            progress.epochs.append(row)
            self._tell(row, rate)
            on_epoch_end(progress.epoch, time.monotonic() - started, clips)
            score = (row["validation_waf"], -row["validation_loss"])
            if score > tuple(progress.best):
                progress.best, progress.best_epoch = score, progress.epoch
                on_best(unwrapped(self.accelerator, self.model), progress.epoch)
            progress.epoch, progress.batch, progress.loss = progress.epoch + 1, 0, 0.0
        held_out = len(self.task.held_out) if self.task.spared else 0
        return {"epochs": progress.epochs, "best_epoch": progress.best_epoch, "held_out": held_out}

    def train_epoch(self) -> tuple[float, int]:
        """Train the rest of the current epoch; returns the mean loss of the complete epoch, and the number
        of clips since this start."""
        self.model.train()
        progress = self.progress
        order = epoch_order(len(self.task.train), self.seed, progress.epoch)
        batches = global_batches(self.task.train[order], self.config.batch)[progress.batch :]
        # An evaluation may have taken long.
        self._save_or_stop(self._agreed(torch.zeros((), device=self.accelerator.device), None))
        for batch, mine in self._loaded(batches):
            outcome = self._optimizer_step(batch, mine)
            progress.loss += outcome.loss
            progress.batch += 1
            self._save_or_stop(outcome)
        clips = sum(int((batch != PAD_INDEX).sum()) for batch in batches)
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
        logged = {**row, "clips_per_second": rate}
        curves = {f"{self.task.name}/{key}": value for key, value in logged.items()}
        self.accelerator.log(curves, self.progress.step)

    def _optimizer_step(self, batch: np.ndarray, mine: list[Pass]) -> StepOutcome:
        """One step over a global batch, of which ``mine`` is this rank's part. The host waits for the device
        once, at the end.

        Raises:
            UserError: see :meth:`_check_number`.
        """
        step = self.progress.step
        rate = learning_rate(step, self.steps_per_epoch * self.config.epochs, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clips = int((batch != PAD_INDEX).sum())
        # Gradients are averaged over ranks and summed over passes; this makes them the mean over clips.
        scale = self.accelerator.num_processes / clips
        summed, norm = torch.zeros((), device=self.accelerator.device), None
        for number, part in enumerate(mine, 1):
            # Dropout depends on the position in the run alone: not on earlier random numbers, nor on
            # the rank.
            torch.manual_seed(_mix(self.seed, step, part.number))
            with self._accumulating(last=number == len(mine)):
                loss = self._loss(part)
                self.accelerator.backward(loss * scale)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            summed += loss.detach()
        self.progress.step += 1
        outcome = self._agreed(summed, norm)
        self._check_number(outcome.finite, f"step {self.progress.step}")
        return outcome

    @contextmanager
    def _accumulating(self, last: bool) -> Iterator[None]:
        """Accumulate gradients; only the ``last`` pass reduces them over ranks and takes the step.

        Accelerate's own ``accumulate`` needs the same number of passes in every step.
        """
        self.accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            yield

    def _agreed(self, loss: torch.Tensor, norm: torch.Tensor | float | None) -> StepOutcome:
        """Ranks may see a signal or a due checkpoint at different steps; one reduction makes them agree on
        these and on the loss.

        Args:
            loss: of this rank.
            norm: of the gradients, if known; DeepSpeed has -1 for one that is not finite.
        """
        due = self.checkpoints is not None and self.checkpoints.due()
        requests = self._sent(torch.tensor([float(self.should_stop()), float(due)]))
        size = norm if isinstance(norm, torch.Tensor) else self._sent(torch.tensor(float(norm or 0)))
        unsound = ~(torch.isfinite(size) & (size >= 0))
        local = torch.cat([loss[None], requests, unsound[None].to(loss.device, loss.dtype)])
        total, stop, save, unsound = self.accelerator.reduce(local, "sum").tolist()
        return StepOutcome(total, stop > 0, save > 0, finite=math.isfinite(total) and not unsound)

    def _check_number(self, finite: bool, where: str) -> None:
        """Call before the next checkpoint: a step with a non-finite loss ruins the weights for good.

        Raises:
            UserError: the loss or the gradient norm is not finite; raised on all ranks alike.
        """
        if finite:
            return
        extractor, settings = self.task.name.partition("/")[0], self.config
        held = "" if settings.precision == "fp32" else f", or its precision from {settings.precision} to fp32"
        raise UserError(
            f"{self.task.name}: the loss is not finite any more at {where}; lower "
            f"extractors.{extractor}.finetune.learning_rate ({settings.learning_rate:g}){held}. If it is so "
            "at the first step, the weights of the model folder are not finite. Earlier checkpoints are kept"
        )

    def _loss(self, part: Pass) -> torch.Tensor:
        """Sum of the weighted cross-entropy over the real clips of a pass."""
        owners, logits = self._sent(part.owners), self._logits(part)
        losses = F.cross_entropy(
            logits,
            self.targets[owners],
            weight=self.class_weights,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        )
        return torch.where(owners != PAD_INDEX, losses, 0.0).sum()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and WAF on the clips that choose the epoch, computed by all ranks together."""
        self.model.eval()
        logits = self._predict(self.task.held_out)
        release_gathered_params(self.accelerator, self.model)
        targets = torch.tensor(self.task.targets[self.task.held_out])
        return {
            "validation_loss": F.cross_entropy(logits, targets).item(),
            "validation_waf": waf(targets.numpy(), logits.argmax(1).numpy()),
        }

    def _predict(self, positions: np.ndarray) -> torch.Tensor:
        """Logits ``(len(positions), C)`` on the CPU, computed by all ranks together."""
        # One row per clip, which one rank fills; the last row is for padding.
        shape = len(self.task.targets) + 1, len(self.class_weights)
        logits = torch.zeros(shape, device=self.accelerator.device)
        for _, mine in self._loaded(global_batches(positions, self.config.batch)):
            for part in mine:
                logits[self._sent(part.owners)] = self._logits(part)
        return self.accelerator.reduce(logits, "sum").cpu()[torch.from_numpy(positions)]

    def _loaded(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, list[Pass]]]:
        """Each global batch with this rank's part of it, read while earlier ones are computed."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        on_gpu = self.accelerator.device.type == "cuda"

        def load(batch: np.ndarray):
            return batch, [read(*part) for part in self.task.passes.cut(batch, world)[rank::world]]

        def read(number: int, positions: np.ndarray) -> Pass:
            inputs, owners = self.task.load(positions), torch.from_numpy(positions)
            if on_gpu:
                # Transfers from unpinned memory make both host and device wait.
                inputs = {name: value.pin_memory() for name, value in inputs.items()}
                owners = owners.pin_memory()
            return Pass(number, positions, owners, inputs)

        threads = loaders(ranks_here()) if on_gpu else 1
        return prefetched(load, batches, ahead=threads + 1, threads=threads)

    def _sent(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.accelerator.device, non_blocking=True)

    def _logits(self, part: Pass) -> torch.Tensor:
        return self.model(**{name: self._sent(value) for name, value in part.inputs.items()})

    def _save_or_stop(self, outcome: StepOutcome) -> None:
        """Act on the outcome, on which all ranks agree."""
        if self.checkpoints is not None and (outcome.stop or outcome.save) and self.progress.step:
            self.checkpoints.save(self.model, self.optimizer, self.progress)
        if outcome.stop:
            raise Stopped(f"asked to stop at step {self.progress.step} of {self.task.name}")


def learning_rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Linear warm-up over the first part of ``steps``, then a cosine down to zero."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@contextmanager
def _deterministic(asked: bool) -> Iterator[None]:
    """Make torch deterministic within the context; operations without a deterministic form fail."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(asked or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
