"""The process group of fine-tuning: Accelerate, plainly data parallel, or with DeepSpeed where it was launched so."""

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
    """Join the process group. Call once in a process, before any model is loaded.

    Args:
        timeout: minutes that ranks wait for one another; rank 0 alone makes a checkpoint durable
            meanwhile.

    Raises:
        UserError: a tracker's package is not installed; Accelerate would leave it out silently.
        RuntimeError: the launcher's process count and Accelerate's disagree. On a CPU, Accelerate
            believes every rank alone under DeepSpeed unless it is given a backend.
    """
    import torch
    import torch.distributed
    from accelerate import Accelerator

    # The libraries' notes to each other about coming versions would drown the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|transformers|deepspeed")
    torch.set_num_threads(threads)
    os.environ["PATH"] = own_tools_first()
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise UserError(f"trackers names {tracker}, which is not installed: pip install {tracker}")
    if under_deepspeed() and not torch.cuda.is_available():
        caches.compile_communication()
    accelerator = Accelerator(
        # Without this it believes every rank alone on a machine that has no GPU.
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
            f"Accelerate counts {accelerator.num_processes} processes, torch {world}, the launcher {process_info().world}"
        )
    return accelerator


def _group(limit: timedelta) -> list:
    """How Accelerate shall join the ranks: through DeepSpeed, or by a group that is made here."""
    import torch
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    if under_deepspeed():
        return [InitProcessGroupKwargs(backend=backend, timeout=limit)]
    # DeepSpeed names the device itself; NCCL would guess it at the first barrier.
    device = torch.device("cuda", process_info().local_rank) if on_gpu else None
    torch.distributed.init_process_group(backend, timeout=limit, device_id=device)
    # Some weights never get a gradient (HuBERT's embedding of masked steps); and as torch is told so, it leaves
    # the buckets of gradients as they are first cut, in which a resumed training sums in the same order.
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
    """Whether it is so on any rank; asked by all of them."""
    import torch

    return accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum").item() > 0


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return 0 if plugin is None else plugin.zero_stage


def unknown_kind(accelerator: Accelerator) -> str:
    """By what Accelerate joins the ranks, where it is neither DeepSpeed nor plain data parallelism."""
    from accelerate.utils import DistributedType

    known = (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
        DistributedType.DEEPSPEED,
    )
    return "" if accelerator.distributed_type in known else str(accelerator.distributed_type.value)


def offloaded_to(accelerator: Accelerator) -> set[str]:
    """Where DeepSpeed keeps what it takes off the device: ``cpu``, ``nvme``; empty if it keeps all there."""
    plugin = accelerator.state.deepspeed_plugin
    settings = {} if plugin is None else plugin.deepspeed_config["zero_optimization"]
    parts = (settings.get(f"offload_{part}") or {} for part in ("optimizer", "param"))
    return {part["device"] for part in parts if part.get("device", "none") != "none"}


def prepare(accelerator: Accelerator, config: FinetuneConfig, model: nn.Module, optimizer: Optimizer):
    """``Accelerator.prepare`` of the two, with batch sizes and, under DeepSpeed, a buffer for gradients that
    suit the model. What the user's own DeepSpeed file sets stays.

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
    """The model that was prepared, without what is wrapped round it for several ranks.

    Without DeepSpeed Accelerate is not asked, which would import DeepSpeed, for seconds.
    """
    from torch.nn.parallel import DistributedDataParallel

    if accelerator.state.deepspeed_plugin is not None:
        return accelerator.unwrap_model(model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def _set_batch(accelerator: Accelerator, config: FinetuneConfig) -> None:
    """DeepSpeed would divide by the passes of a step, whose number changes: the trainer scales the loss itself
    and says which pass is the last."""
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
    """Wait for what ZeRO-3 gathers ahead for a prepared model, and split it again. Call after a forward pass
    that no backward pass follows: ZeRO-3 has begun to gather for it, and weights under way cannot be saved."""
    if zero_stage(accelerator) == 3:
        model.empty_partition_cache()


def free(accelerator: Accelerator) -> None:
    """Let go of what was prepared, once the caller holds none of it either: the next model needs its memory.

    DeepSpeed's engine, hooks and closures point at each other, which only the collector of cycles sees, and
    lists of ZeRO-3's that belong to no engine keep every model for good.
    """
    import torch

    if zero_stage(accelerator) == 3:
        _forget_models()
    # It collects while it still points to the models itself.
    accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_models() -> None:
    """Empty what DeepSpeed keeps for a whole process: the modules that were last run, and what its coordinator
    remembers by module, for all instances together."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        # Its methods are wrapped without a name for what is inside.
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def gather_full_params(accelerator: Accelerator, parameters: dict) -> dict:
    """Whole copies on the CPU of named parameters on the main process; nothing on the others.

    Under ZeRO-3 each rank holds a part only; saving such a parameter without gathering writes an
    empty tensor and no error.
    """
    whole = {}
    for name, value in parameters.items():
        with _whole(value) if zero_stage(accelerator) == 3 else nullcontext():
            if accelerator.is_main_process:
                whole[name] = value.detach().cpu().clone()
    return whole


def _whole(value):
    import deepspeed

    return deepspeed.zero.GatheredParameters([value])
