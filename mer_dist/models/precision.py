"""What numbers an extractor computes in, and what ``precision: auto`` stands for.

``fp32`` means float32: cuDNN's convolutions would run in TF32 by torch's own default, which keeps 10 of the
23 bits of what is multiplied. ``tf32`` allows that in convolutions and matrix products alike, on GPUs that
have it; elsewhere it is ``fp32``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from mer_dist.config.sections import ExtractorConfig

if TYPE_CHECKING:
    import torch

AUTO = "auto"
#: What it may stand for: on a GPU that computes in bf16, and elsewhere.
ON_A_GPU, ELSEWHERE = "bf16", "fp32"


def of_this_machine() -> str:
    """What ``auto`` stands for where nothing has been made yet."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return ON_A_GPU
    return ELSEWHERE


def settled(config: ExtractorConfig, auto: str) -> ExtractorConfig:
    """The same settings with ``auto`` in the place of that word."""
    return replace(config, precision=auto) if config.precision == AUTO else config


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, a GPU may round the factors of float32 products to TF32, or not."""
    import torch

    if device.type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _allow_tf32("high" if precision == "tf32" else "highest", precision == "tf32")
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(matrices: str, convolutions: bool) -> None:
    import torch

    # These two, of all ways to say it, leave every other one with the same answer.
    torch.set_float32_matmul_precision(matrices)
    torch.backends.cudnn.allow_tf32 = convolutions
