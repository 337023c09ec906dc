"""Hundreds of small kernels launched at once: a call recorded as a CUDA graph and replayed.

A training step of small models is about 500 kernels of a few microseconds; a CPU takes several
times as long to launch them as a GPU to run them. A graph launches all of them in one call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mer_dist.core.log import logger

#: Warm-up calls before the recording, in which libraries and the optimizer allocate their state.
WARM = 3
#: Fewer calls are not recorded: a recording takes about as long as several of them.
WORTH = 20


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


class CudaGraphStep:
    """Calls ``call``; on a GPU, the calls after the first few are replays of a recording.

    ``call`` works on tensors with fixed addresses: inputs of a call are written into them, not
    passed as arguments. It never waits for the device, draws nothing from a torch generator, and
    keeps no autograd graph. Its result is valid until the next call.

    If a recording fails, one warning is logged and this process goes on without recordings.
    """

    #: Until a recording fails.
    possible = True

    def __init__(self, call: Callable[[], Tensor], device: torch.device, calls: int):
        self.call, self.records = call, can_capture(device) and calls >= WORTH
        self.calls = 0
        self.recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self) -> Tensor:
        if self.calls == WARM and self.records and CudaGraphStep.possible:
            self.recording = _captured_or_none(self.call)
        self.calls += 1
        if self.recording is None:
            return self.call()
        graph, result = self.recording
        graph.replay()
        return result


def _captured_or_none(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
    try:
        return capture(call)
    except RuntimeError as error:
        CudaGraphStep.possible = False
        logger.warning("steps are started kernel by kernel, as they could not be recorded: %s", error)
        return None


def capture(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record the kernels of ``call`` without running them; also the tensor of a replay's result."""
    graph = torch.cuda.CUDAGraph()
    # torch.cuda.graph returns to this stream by itself only if the recording succeeds.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        result = call()
    return graph, result


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings: the allocator reserves memory per stream."""
    return torch.cuda.Stream(device)


@contextmanager
def capturable(device: torch.device) -> Iterator[None]:
    """Work on a separate stream, as warm-up calls must; the default stream cannot record."""
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), _stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)
