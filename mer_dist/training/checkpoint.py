"""Checkpoints of a training in progress: DeepSpeed's partitions, complete or absent.

A checkpoint is a folder ``step-<n>``. Every rank writes its part of the weights, the fp32 masters
and the moments into a temporary folder; then rank 0 writes the marker with the position in the data
and the checksums, makes all of it durable, and renames it. Frozen weights are not in it: they come
from the base model. The weights of the best epoch so far are beside it, in ``best-<epoch>``.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.storage import files
from mer_dist.training import universal_checkpoint
from mer_dist.training.accelerator import all_gather_object, broadcast_object, unwrapped, zero_stage

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Trainable weights and optimizer without DeepSpeed: every process holds all, and rank 0 writes them.
ALONE = "alone.pt"
#: After a failed write, a disk with fewer free bytes counts as full.
FULL = 2**20
#: The rank in DeepSpeed's name of a file; files without one are rank 0's.
_WRITER = re.compile(r"pp_rank_(\d+)_")
#: A checkpoint during conversion to another number of processes.
CONVERTED = ".universal"


@dataclass(kw_only=True)
class Progress:
    """Position of a training; all that resuming needs besides tensors."""

    #: optimizer steps taken.
    step: int = 0
    #: the current epoch, from 1, and how many of its global batches are done.
    epoch: int = 1
    batch: int = 0
    #: summed loss over the clips of those batches.
    loss: float = 0.0
    #: the curves of the finished epochs.
    epochs: list[dict] = field(default_factory=list)
    #: held-out WAF and negative loss of the best epoch; the highest pair wins.
    best: tuple[float, float] = (-1.0, float("-inf"))
    best_epoch: int = 0


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: holds the ``step-<n>`` folders; all ranks must see it.
        fingerprint: of the training; checkpoints of another one are not used, and are removed when the
            first one is saved.
        keep: how many of the newest stay.
        minutes: between two checkpoints; 0: only on request.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, fingerprint: str, keep: int, minutes: float):
        self.accelerator, self.folder, self.fingerprint = accelerator, Path(folder), fingerprint
        self.keep, self.seconds = keep, 60 * minutes
        self.saved_at = time.monotonic()
        #: damaged ones; they are removed when the next one is saved.
        self.passed_over: set[Path] = set()

    def due(self) -> bool:
        """By this rank's clock; ranks must agree before any of them saves."""
        return self.seconds > 0 and time.monotonic() - self.saved_at >= self.seconds

    def best(self, epoch: int) -> Path:
        """Folder of the weights of an epoch while it is the best."""
        return self.folder / f"best-{epoch:04d}"

    def faults_of_best(self, epoch: int) -> list[str]:
        """Faults of the weights of the best epoch; empty for 0, no best epoch yet."""
        if not epoch:
            return []
        folder = self.best(epoch)
        content = (files.read_marker(folder, self.fingerprint) or {}).get("content")
        faults = ["is gone, or its marker is"] if content is None else files.damaged(folder, content)
        return [f"{folder.name}: {fault}" for fault in faults]

    def forget_best_but(self, epoch: int) -> None:
        """Remove the weights of other epochs, except those that a checkpoint refers to."""
        epochs = {epoch, *(facts["progress"]["best_epoch"] for facts in self._usable().values())}
        for path in set(self.folder.glob("best-*")) - set(map(self.best, epochs)):
            shutil.rmtree(path)

    def save(self, model: Any, optimizer: Any, progress: Progress) -> None:
        """Called by all ranks at the same step boundary; a step that is already saved is skipped.

        Raises:
            OSError: the disk is full; the partial checkpoint is removed.
        """
        started, target = time.monotonic(), self.folder / f"step-{progress.step:08d}"
        # A job that stops right after it resumed would replace a checkpoint by itself.
        if broadcast_object(self.accelerator, self.accelerator.is_main_process and target in self._usable()):
            return
        temporary = target.with_name(f".{target.name}.tmp")
        if self.accelerator.is_main_process:
            for truncated in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(truncated)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with _full_disk_named(temporary, target):
            self._write(temporary, model, optimizer)
            # Each rank checksums its own files, which its node may still hold in memory.
            own = files.contents(temporary / name for name in self._own(os.listdir(temporary)))
            files.sync(temporary)
        contents = all_gather_object(self.accelerator, own)
        if self.accelerator.is_main_process:
            size = self._publish(temporary, target, progress, contents)
            logger.info(
                "checkpoint at step %d: %.1f MiB in %.1f s, in %s",
                progress.step,
                size / 2**20,
                time.monotonic() - started,
                target,
            )
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def _write(self, temporary: Path, model: Any, optimizer: Any) -> None:
        """Write this rank's part."""
        if zero_stage(self.accelerator) == 0:
            if self.accelerator.is_main_process:
                named = unwrapped(self.accelerator, model).named_parameters()
                trained = {name: value for name, value in named if value.requires_grad}
                torch.save({"weights": trained, "optimizer": optimizer.state_dict()}, temporary / ALONE)
        else:
            model.save_checkpoint(
                str(self.folder), tag=temporary.name, save_latest=False, exclude_frozen_parameters=True
            )

    def _own(self, names: Iterable[str]) -> list[str]:
        """The files of a checkpoint that this rank has written or, if another number of ranks wrote it, its
        part of them."""
        here, world = self.accelerator.process_index, self.accelerator.num_processes
        writers = ((name, _WRITER.search(name)) for name in names)
        return [name for name, writer in writers if (int(writer[1]) if writer else 0) % world == here]

    def _publish(self, temporary: Path, target: Path, progress: Progress, contents: list[dict]) -> int:
        """Publish the checkpoint that all ranks have written; returns its bytes."""
        content = {name: facts for own in contents for name, facts in own.items()}
        files.write_marker(
            temporary,
            self.fingerprint,
            progress=asdict(progress),
            content=content,
            processes=self.accelerator.num_processes,
            zero_stage=zero_stage(self.accelerator),
        )
        files.publish(temporary, target)
        self.passed_over.discard(target)
        for path in set(self.folder.glob("step-*")) - {target, *[*self._usable()][-self.keep :]}:
            shutil.rmtree(path)
        self.forget_best_but(progress.best_epoch)
        return sum(size for size, _ in content.values())

    def load(self, model: Any, optimizer: Any) -> Progress | None:
        """Load the newest usable checkpoint of this training; None if there is none."""
        found = self._newest()
        if found is None:
            return None
        newest, facts = found
        progress = Progress(**facts["progress"])
        written, stage = (facts["processes"], facts["zero_stage"]), zero_stage(self.accelerator)
        # Without DeepSpeed it is the same for any number of processes.
        if written == (self.accelerator.num_processes, stage) or written[1] == stage == 0:
            self._load_as_written(newest, model, optimizer)
        else:
            logger.info("%s was written by %d processes at ZeRO stage %d; it is converted", newest, *written)
            self._load_converted(newest, model, optimizer, progress.step)
        logger.info("going on from %s", newest)
        return progress

    def _load_as_written(self, checkpoint: Path, model: Any, optimizer: Any) -> None:
        if zero_stage(self.accelerator) == 0:
            with tensors_only(checkpoint):
                state = torch.load(checkpoint / ALONE, map_location="cpu", weights_only=True)
            unwrapped(self.accelerator, model).load_state_dict(state["weights"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
            return
        with tensors_only(checkpoint):
            read, _ = model.load_checkpoint(
                str(self.folder),
                tag=checkpoint.name,
                load_module_strict=False,
                load_lr_scheduler_states=False,
            )
        if read is None:
            raise UserError(f"{checkpoint} could not be read by DeepSpeed; delete it and start again")

    def _load_converted(self, checkpoint: Path, model: Any, optimizer: Any, step: int) -> None:
        converted = self.folder / CONVERTED
        if self.accelerator.is_main_process:
            _convert(checkpoint, converted, step)
        self.accelerator.wait_for_everyone()
        stage = zero_stage(self.accelerator)
        with tensors_only(checkpoint):
            universal_checkpoint.load(
                converted, model if stage else unwrapped(self.accelerator, model), optimizer, step, stage
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(converted)

    def _newest(self) -> tuple[Path, dict] | None:
        """The checkpoint to resume, and its marker. Every rank checks its part of it for damage, and rank 0
        the weights of the best epoch, which only an older checkpoint can reproduce; older ones are read
        only if there is damage."""
        # Rank 0 chooses for all: another rank might see the folder a moment later.
        candidates = broadcast_object(
            self.accelerator, self._candidates() if self.accelerator.is_main_process else []
        )
        for path, facts in candidates:
            own = files.damaged(path, {name: facts["content"][name] for name in self._own(facts["content"])})
            if self.accelerator.is_main_process:
                own += self.faults_of_best(facts["progress"]["best_epoch"])
            faults = [fault for rank in all_gather_object(self.accelerator, own) for fault in rank]
            if not faults:
                return path, facts
            self.passed_over.add(path)
            if self.accelerator.is_main_process:
                logger.warning("%s is damaged (%s); it is passed over", path, "; ".join(faults))
        if self.accelerator.is_main_process and any(self.folder.glob("step-*")):
            logger.warning("no checkpoint in %s can be used; this training starts again", self.folder)
        return None

    def _candidates(self) -> list[tuple[Path, dict]]:
        """Checkpoints that may be resumed, newest first, with their markers."""
        shutil.rmtree(self.folder / CONVERTED, ignore_errors=True)
        usable = self._usable()
        for path in sorted(set(self.folder.glob("step-*")) - set(usable)):
            logger.warning("%s is passed over (%s)", path, _truncated(path) or "it is of another training")
        return [*reversed(usable.items())]

    def _usable(self) -> dict[Path, dict]:
        """The complete checkpoints of this training with their markers, oldest first."""
        found = set(whole(self.folder)) - self.passed_over
        markers = ((path, files.read_marker(path, self.fingerprint)) for path in sorted(found))
        return {path: facts for path, facts in markers if facts}


@contextmanager
def _full_disk_named(temporary: Path, target: Path) -> Iterator[None]:
    """Name a full disk as the cause; torch raises an error of its own."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        free = shutil.disk_usage(temporary.parent).free
        shutil.rmtree(temporary, ignore_errors=True)
        if free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


def _convert(checkpoint: Path, target: Path, step: int) -> None:
    if files.required_marker(checkpoint)["zero_stage"]:
        with tensors_only(checkpoint):
            universal_checkpoint.convert(checkpoint, target, step)
        return
    with tensors_only(checkpoint):
        saved = torch.load(checkpoint / ALONE, map_location="cpu", weights_only=True)
    weights, optimizer = saved["weights"], saved["optimizer"]
    # A weight that never got a gradient has no moments here; DeepSpeed has zeros.
    moments = {
        name: optimizer["state"].get(number)
        or dict.fromkeys(universal_checkpoint.MOMENTS, torch.zeros_like(weight))
        for number, (name, weight) in enumerate(weights.items())
    }
    universal_checkpoint.write(weights, moments, len(optimizer["param_groups"]), step, target)


def whole(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first.

    Only sizes are compared; comparing the content takes as long as reading it.
    """
    return [path for path in sorted(Path(folder).glob("step-*")) if not _truncated(path)]


def _truncated(path: Path) -> str:
    """Why a checkpoint is not complete; empty if it is."""
    content = (files.read_marker(path) or {}).get("content", {})
    truncated = [name for name, (size, _) in content.items() if _size(path / name) != size]
    if truncated:
        return f"truncated: {', '.join(truncated)}"
    return "" if content else "its marker is missing or damaged"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def trained_weights(checkpoint: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Complete trained tensors of a checkpoint by their name in the model, rounded from the fp32
    masters to ``dtype``. Needs no process group, and memory for one more tensor.

    Raises:
        UserError: the checkpoint is incomplete or damaged.
    """
    if checkpoint not in whole(checkpoint.parent):
        raise UserError(f"checkpoint {checkpoint} is not complete; take another one")
    facts = files.required_marker(checkpoint)
    if faults := files.damaged(checkpoint, facts["content"]):
        raise UserError(f"checkpoint {checkpoint} is damaged ({'; '.join(faults)}); take another one")
    if facts["zero_stage"] == 0:
        with tensors_only(checkpoint):
            parts = torch.load(checkpoint / ALONE, map_location="cpu", weights_only=True)["weights"]
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with tensors_only(checkpoint), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            parts = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint.parent), checkpoint.name, exclude_frozen_parameters=True, lazy_mode=True
            )
    return {name: value.contiguous().detach().to(dtype) for name, value in parts.items()}


@contextmanager
def tensors_only(checkpoint: Path) -> Iterator[None]:
    """DeepSpeed reads its files as arbitrary pickles; within this context torch refuses all but
    tensors and the few types that DeepSpeed itself writes.

    Raises:
        UserError: ``checkpoint`` contains something else.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def enum_member(kind: Any, name: str) -> ZeroStageEnum:
        # Python before 3.11.4 pickles a member of an enum as getattr(class, name).
        if kind is not ZeroStageEnum:
            raise pickle.UnpicklingError(f"Weights only load failed: an attribute of {kind}")
        return ZeroStageEnum[name]

    allowed = [LossScaler, ZeroStageEnum, fragment_address, (enum_member, "builtins.getattr")]
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        found = refused[1] if refused else "something that torch cannot read as tensors"
        raise UserError(
            f"{checkpoint}: refused, and nothing of it is run: it holds {found}; if no other torch "
            "or DeepSpeed wrote it, delete it, and training goes on from the one before"
        ) from error
    finally:
        os.environ.pop(key) if before is None else os.environ.update({key: before})
