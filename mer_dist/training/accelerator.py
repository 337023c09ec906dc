"""The process group of fine-tuning: Accelerate, plainly data parallel, or with DeepSpeed if so launched."""

from __future__ import annotations

import gc
import os
import warnings
from contextlib import nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import UserError
from mer_dist.processes import launch_config
from mer_dist.processes.env import own_tools_first, process_info, under_deepspeed
from mer_dist.training import caches

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.optim import Optimizer


def make_accelerator(
    precision: str, trackers: list[str], tracking: Path, threads: int, timeout: float = 30
) -> Accelerator:
    """Join the process group. Call once per process, before any model is loaded.

    Args:
        timeout: minutes that ranks wait for one another, for instance while rank 0 makes a checkpoint
            durable.

    Raises:
        UserError: a tracker's package is not installed; Accelerate would ignore it silently.
        RuntimeError: the launcher's process count and Accelerate's disagree. On a CPU under
            DeepSpeed, Accelerate treats every rank as alone unless a backend is set.
    """
    import torch
    import torch.distributed
    from accelerate import Accelerator

    # Deprecation warnings of the libraries would flood the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|transformers|deepspeed")
    torch.set_num_threads(threads)
    os.environ["PATH"] = own_tools_first()
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise UserError(f"trackers names {tracker}, which is not installed: pip install {tracker}")
    if under_deepspeed() and not torch.cuda.is_available():
        caches.compile_communication()
    accelerator = Accelerator(
        # Without this it treats every rank as alone on a machine without a GPU.
        cpu=process_info().launched and not under_deepspeed() and not torch.cuda.is_available(),
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=trackers or None,
        project_dir=tracking,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=_group(timedelta(minutes=timeout)) if process_info().launched else [],
    )
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if not accelerator.num_processes == world == process_info().world:
        raise RuntimeError(
            f"Accelerate counts {accelerator.num_processes} processes, torch {world}, "
            f"the launcher {process_info().world}"
        )
    return accelerator


def _group(limit: timedelta) -> list:
    """How Accelerate joins the ranks: through DeepSpeed, or in a process group created here."""
    import torch
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    if under_deepspeed():
        return [InitProcessGroupKwargs(backend=backend, timeout=limit)]
    # DeepSpeed names the device itself; NCCL would guess it at the first barrier.
    device = torch.device("cuda", process_info().local_rank) if on_gpu else None
    torch.distributed.init_process_group(backend, timeout=limit, device_id=device)
    # Some weights never get a gradient (HuBERT's embedding of masked steps). With this setting torch also
    # keeps its first gradient buckets, so that a resumed training sums in the same order.
    return [
        DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    ]


def broadcast_object(accelerator: Accelerator, value):
    """Rank 0's ``value`` on every rank."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def all_gather_object(accelerator: Accelerator, value) -> list:
    """The ``value`` of every rank, in the order of ranks, on all of them."""
    from accelerate.utils import gather_object

    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def any_rank(accelerator: Accelerator, here: bool) -> bool:
    """Whether ``here`` is true on any rank; a collective call."""
    import torch

    return accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum").item() > 0


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return 0 if plugin is None else plugin.zero_stage


def unknown_kind(accelerator: Accelerator) -> str:
    """Accelerate's distributed type if it is neither DeepSpeed nor plain data parallelism."""
    from accelerate.utils import DistributedType

    known = (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
        DistributedType.DEEPSPEED,
    )
    return "" if accelerator.distributed_type in known else str(accelerator.distributed_type.value)


def offloaded_to(accelerator: Accelerator) -> set[str]:
    """DeepSpeed's offload devices: ``cpu``, ``nvme``; empty without offloading."""
    plugin = accelerator.state.deepspeed_plugin
    settings = {} if plugin is None else plugin.deepspeed_config["zero_optimization"]
    parts = (settings.get(f"offload_{part}") or {} for part in ("optimizer", "param"))
    return {part["device"] for part in parts if part.get("device", "none") != "none"}


def prepare(accelerator: Accelerator, config: FinetuneConfig, model: nn.Module, optimizer: Optimizer):
    """``Accelerator.prepare`` of both, with batch sizes and, under DeepSpeed, a gradient buffer that suit
    the model. Settings of the user's own DeepSpeed file stay.

    Returns:
        The wrapped model and optimizer.
    """
    _set_batch(accelerator, config)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return accelerator.prepare(model, optimizer)
    settings = plugin.deepspeed_config["zero_optimization"]
    own = {key: value for key, value in settings.items() if value != "auto"}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    count = sum(getattr(weight, "ds_numel", weight.numel()) for weight in trained)
    bucket = {"reduce_bucket_size": launch_config.reduce_bucket(count)}
    plugin.deepspeed_config["zero_optimization"] = {**bucket, **own}
    wrapped = accelerator.prepare(model, optimizer)
    # The next model has other sizes.
    plugin.deepspeed_config["zero_optimization"] = settings
    return wrapped


def unwrapped(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The prepared model without its wrappers for several ranks.

    Accelerate's own method is used under DeepSpeed only, because importing DeepSpeed takes seconds.
    """
    from torch.nn.parallel import DistributedDataParallel

    if accelerator.state.deepspeed_plugin is not None:
        return accelerator.unwrap_model(model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def _set_batch(accelerator: Accelerator, config: FinetuneConfig) -> None:
    """DeepSpeed would divide by the number of passes in a step, which varies: the trainer itself scales the
    loss and marks the last pass."""
    accelerator.gradient_accumulation_steps = 1
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        share = -(-config.batch // accelerator.num_processes)
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=share,
            gradient_accumulation_steps=1,
            train_batch_size=share * accelerator.num_processes,
            gradient_clipping=config.clip_norm,
        )


def release_gathered_params(accelerator: Accelerator, model: Any) -> None:
    """Wait for the weights that ZeRO-3 prefetches, and split them again. Call after a forward pass without a
    backward pass: ZeRO-3 has begun to prefetch for one, and weights in transfer cannot be saved."""
    if zero_stage(accelerator) == 3:
        model.empty_partition_cache()


def free(accelerator: Accelerator) -> None:
    """Release the prepared objects for the next model's memory; the caller must not hold any either.

    DeepSpeed's engine, hooks and closures form reference cycles, which only the garbage collector finds,
    and global lists of ZeRO-3 keep every model for good.
    """
    import torch

    if zero_stage(accelerator) == 3:
        forget_models()
    # It collects garbage while it still holds the models itself.
    accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_models() -> None:
    """Empty DeepSpeed's global state: the modules that were last run, and the caches of its coordinator,
    which all instances share."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        # Its methods are wrapped, and only the closure holds the cached function.
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def gather_full_params(accelerator: Accelerator, parameters: dict) -> dict:
    """The complete named parameters, copied to the CPU of the main process; empty on the others.

    Under ZeRO-3 each rank holds only a part; saving such a parameter without gathering it writes
    an empty tensor and raises no error.
    """
    full = {}
    for name, value in parameters.items():
        with _whole(value) if zero_stage(accelerator) == 3 else nullcontext():
            if accelerator.is_main_process:
                full[name] = value.detach().cpu().clone()
    return full


def _whole(value):
    import deepspeed

    return deepspeed.zero.GatheredParameters([value])
