"""Which ways of training work under which way of launching.

``tests/training/test_zero3.py`` tries every cell: {full, lora, lora on nf4, lora on int8} × {one process,
plain data parallelism, ZeRO-2, ZeRO-3}. All of them learn what one process learns; what is not in that table is refused
before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from mer_dist.config.config import Config
from mer_dist.core.errors import UserError

ZERO_STAGES = (2, 3)


def check(zero_stage: int, offloaded_to: Iterable[str] = (), kind: str = "") -> None:
    """Refuse a way of launching that was never tried. Weights in 4 or 8 bits that are to be trained
    in full are refused before, by the configuration.

    Args:
        zero_stage: 0 without DeepSpeed.
        offloaded_to: devices on which DeepSpeed keeps parameters or optimizer.
        kind: what joins the processes, where it is neither DeepSpeed nor plain data parallelism.

    Raises:
        UserError: it says what to use instead.
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
        UserError: it names the key, and what would fit.
    """
    for name, extractor in config.extractors.items():
        batch = extractor.finetune.batch if extractor.finetune else processes
        if batch % processes:
            fit = ", ".join(str(count) for count in range(1, batch + 1) if batch % count == 0)
            raise UserError(
                f"extractors.{name}.finetune.batch is {batch}, which {processes} processes cannot share "
                f"evenly; start one of {fit} processes, or take a multiple of {processes}"
            )
