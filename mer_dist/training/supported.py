"""Which training methods work with which launch layouts.

``tests/training/test_zero3.py`` tests every cell: {full, lora, lora on nf4, lora on int8} × {one process,
plain data parallelism, ZeRO-2, ZeRO-3}. All of them learn the same as one process; anything outside that
table is refused before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from mer_dist.config.config import Config
from mer_dist.core.errors import UserError

ZERO_STAGES = (2, 3)


def check(zero_stage: int, offloaded_to: Iterable[str] = (), kind: str = "") -> None:
    """Refuse an untested launch layout. Full fine-tuning of weights in 4 or 8 bits was refused before,
    by the configuration.

    Args:
        zero_stage: 0 without DeepSpeed.
        offloaded_to: devices on which DeepSpeed keeps parameters or optimizer.
        kind: Accelerate's distributed type if neither DeepSpeed nor plain data parallelism.

    Raises:
        UserError: with what to use instead.
    """
    if zero_stage not in (0, *ZERO_STAGES):
        raise UserError(
            f"ZeRO stage {zero_stage} is not supported; set zero_stage to 2 or 3 in the "
            "accelerate launch file"
        )
    if "nvme" in offloaded_to:
        raise UserError(
            "offloading to NVMe is not supported, its checkpoints are not the ones kept here; set "
            "offload_optimizer_device and offload_param_device to cpu or none in the accelerate "
            "launch file"
        )
    if kind:
        raise UserError(
            f"distributed_type {kind} is not supported; set it to MULTI_GPU (plain data parallelism) or "
            "DEEPSPEED in the accelerate launch file"
        )


def check_batches(config: Config, processes: int) -> None:
    """Refuse global batches that so many processes cannot share evenly.

    Raises:
        UserError: with the key, and the values that fit.
    """
    for name, extractor in config.extractors.items():
        batch = extractor.finetune.batch if extractor.finetune else processes
        if batch % processes:
            fit = ", ".join(str(count) for count in range(1, batch + 1) if batch % count == 0)
            raise UserError(
                f"extractors.{name}.finetune.batch is {batch}, which {processes} processes cannot share "
                f"evenly; start one of {fit} processes, or take a multiple of {processes}"
            )
