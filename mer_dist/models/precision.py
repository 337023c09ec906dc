"""The floating-point precision of an extractor, and the meaning of ``precision: auto``.

``fp32`` is true float32: by torch's default, cuDNN's convolutions would use TF32, which keeps 10 of the
23 mantissa bits of each factor. ``tf32`` allows that in convolutions and matrix products alike, on GPUs
that have it; elsewhere it is ``fp32``.
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
#: The value of ``auto`` on a GPU that computes in bf16, and elsewhere.
ON_A_GPU, ELSEWHERE = "bf16", "fp32"


def of_this_machine() -> str:
    """The value of ``auto`` for a run without any features yet."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return ON_A_GPU
    return ELSEWHERE


def settled(config: ExtractorConfig, auto: str) -> ExtractorConfig:
    """The settings with ``precision: auto`` replaced by ``auto``."""
    return replace(config, precision=auto) if config.precision == AUTO else config


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Allow or forbid TF32 in float32 products on a GPU within the context."""
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

    # Of all settings for this, only these two keep the others consistent.
    torch.set_float32_matmul_precision(matrices)
    torch.backends.cudnn.allow_tf32 = convolutions
