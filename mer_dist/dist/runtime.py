"""The process group of fine-tuning: Accelerate, with DeepSpeed ZeRO-3 where it was launched so."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_dist.dist import memory
from mer_dist.dist.env import own_tools_first, place
from mer_dist.errors import UserError
from mer_dist.settings import FinetuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.optim import Optimizer


def accelerator(
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
    from accelerate.utils import InitProcessGroupKwargs

    # The libraries' notes to each other about coming versions would drown the log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|transformers|deepspeed")
    torch.set_num_threads(threads)
    os.environ["PATH"] = own_tools_first()
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise UserError(f"trackers names {tracker}, which is not installed: pip install {tracker}")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(minutes=timeout)
    group = [InitProcessGroupKwargs(backend=backend, timeout=limit)] if place().launched else []
    joined = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=trackers or None,
        project_dir=tracking,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=group,
    )
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if not joined.num_processes == world == place().world:
        raise RuntimeError(
            f"Accelerate counts {joined.num_processes} processes, torch {world}, the launcher {place().world}"
        )
    return joined


def agreed(joined: Accelerator, value):
    """Rank 0's ``value`` on every rank."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if joined.num_processes > 1 else value


def from_all(joined: Accelerator, value) -> list:
    """The ``value`` of every rank, in the order of ranks, on all of them."""
    from accelerate.utils import gather_object

    return gather_object([value]) if joined.num_processes > 1 else [value]


def anywhere(joined: Accelerator, here: bool) -> bool:
    """Whether it is so on any rank; asked by all of them."""
    import torch

    return joined.reduce(torch.tensor(float(here), device=joined.device), "sum").item() > 0


def zero_stage(joined: Accelerator) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    plugin = joined.state.deepspeed_plugin
    return 0 if plugin is None else plugin.zero_stage


def offloaded_to(joined: Accelerator) -> set[str]:
    """Where DeepSpeed keeps what it takes off the device: ``cpu``, ``nvme``; empty if it keeps all there."""
    plugin = joined.state.deepspeed_plugin
    settings = {} if plugin is None else plugin.deepspeed_config["zero_optimization"]
    parts = (settings.get(f"offload_{part}") or {} for part in ("optimizer", "param"))
    return {part["device"] for part in parts if part.get("device", "none") != "none"}


def prepare(joined: Accelerator, config: FinetuneConfig, model: nn.Module, optimizer: Optimizer):
    """``Accelerator.prepare`` of the two, with batch sizes and, under DeepSpeed, a buffer for gradients that
    suit the model. What the user's own DeepSpeed file sets stays.

    Returns:
        The wrapped model and optimizer.
    """
    _set_batch(joined, config)
    plugin = joined.state.deepspeed_plugin
    if plugin is None:
        return joined.prepare(model, optimizer)
    settings = plugin.deepspeed_config["zero_optimization"]
    own = {key: value for key, value in settings.items() if value != "auto"}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    count = sum(getattr(weight, "ds_numel", weight.numel()) for weight in trained)
    bucket = {"reduce_bucket_size": memory.reduce_bucket(count)}
    plugin.deepspeed_config["zero_optimization"] = {**bucket, **own}
    wrapped = joined.prepare(model, optimizer)
    # The next model has other sizes.
    plugin.deepspeed_config["zero_optimization"] = settings
    return wrapped


def unwrapped(joined: Accelerator, model: nn.Module) -> nn.Module:
    """The model that was prepared, without what is wrapped round it for DeepSpeed.

    Without DeepSpeed nothing is, and Accelerate would import DeepSpeed, for seconds, to ask whether so.
    """
    return model if joined.state.deepspeed_plugin is None else joined.unwrap_model(model)


def _set_batch(joined: Accelerator, config: FinetuneConfig) -> None:
    """DeepSpeed would divide by the passes of a step, whose number changes: the trainer scales the loss itself
    and says which pass is the last."""
    joined.gradient_accumulation_steps = 1
    plugin = joined.state.deepspeed_plugin
    if plugin is not None:
        share = -(-config.batch // joined.num_processes)
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=share,
            gradient_accumulation_steps=1,
            train_batch_size=share * joined.num_processes,
            gradient_clipping=config.clip_norm,
        )


def settle(joined: Accelerator, model: Any) -> None:
    """Wait for what ZeRO-3 gathers ahead for a prepared model, and split it again. Call after a forward pass
    that no backward pass follows: ZeRO-3 has begun to gather for it, and weights under way cannot be saved."""
    if zero_stage(joined) == 3:
        model.empty_partition_cache()


def gathered(joined: Accelerator, parameters: dict) -> dict:
    """Whole copies on the CPU of named parameters on the main process; nothing on the others.

    Under ZeRO-3 each rank holds a part only; saving such a parameter without gathering writes an
    empty tensor and no error.
    """
    whole = {}
    for name, value in parameters.items():
        with _whole(value) if zero_stage(joined) == 3 else nullcontext():
            if joined.is_main_process:
                whole[name] = value.detach().cpu().clone()
    return whole


def _whole(value):
    import deepspeed

    return deepspeed.zero.GatheredParameters([value])
