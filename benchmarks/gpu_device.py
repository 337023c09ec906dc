"""The card itself: which versions meet, and how fast its matrix products and copies are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import torch
from gpu import Check

PACKAGES = [
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "omegaconf",
    "webdataset",
    "av",
    "scikit-learn",
    "opencv-python-headless",
]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(call: Callable, repeat: int = 1) -> tuple[float, object]:
    """Seconds of one call, the device's work included, and its last result."""
    _settle()
    start = time.perf_counter()
    for _ in range(repeat):
        result = call()
    _settle()
    return (time.perf_counter() - start) / repeat, result


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def syncs(call: Callable) -> int | None:
    """How often the host waits for the GPU in one call; None on a CPU."""
    import warnings

    if not torch.cuda.is_available():
        return None
    call()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(found)


def busy(call: Callable) -> float | None:
    """The part of one call's time in which the GPU works; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    call()
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    seconds, _ = timed(call)
    with torch.profiler.profile(activities=kinds) as seen:
        timed(call)
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / seconds


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def step_device(check: Check) -> None:
    """Versions, and the rates that shares of the peak are of: TFLOP/s of square products, GB/s of copies."""
    where, size = device(), 256 if check.tiny else 8192

    def rate(dtype: torch.dtype, precision: str = "highest") -> float:
        torch.set_float32_matmul_precision(precision)
        one, other = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
        timed(lambda: one @ other, 3)
        return 2 * size**3 / timed(lambda: one @ other, 10)[0] / 1e12

    host = torch.empty(2**25, dtype=torch.uint8)
    copies = {"copy_pageable": len(host) / timed(lambda: host.to(where), 5)[0] / 1e9}
    if where.type == "cuda":
        pinned = host.pin_memory()
        copies["copy_pinned"] = len(host) / timed(lambda: pinned.to(where, non_blocking=True), 5)[0] / 1e9
    check.tell(
        "device",
        card=torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        python=platform.python_version(),
        processors=os.cpu_count(),
        **{name: _version(name) for name in PACKAGES},
        bf16=rate(torch.bfloat16),
        fp32=rate(torch.float32),
        tf32=rate(torch.float32, "high"),
        **copies,
    )
