"""Forward passes of one model whose weights are split over all processes, for a model that fits no single device.

ZeRO-3 (Rajbhandari et al. 2020, "ZeRO", section 5.3) gathers the weights of a layer when a pass reaches it. So all
processes must start the same number of passes: they prepare the same chunks of clips, deal the batches of a chunk, and
tell one another the results. Which process computes a batch changes no bit of it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from mer_dist.core.log import logger
from mer_dist.core.stopping import ShouldStop
from mer_dist.models.extractor import Extractor
from mer_dist.models.feeding import Chunk, asked
from mer_dist.processes.env import own_tools_first, process_info
from mer_dist.training import accelerator, caches

if TYPE_CHECKING:
    import numpy as np


def _settings(precision: str) -> dict:
    """DeepSpeed's, which also give the type in which the parts are kept."""
    half = {"bf16": "bf16", "fp16": "fp16"}.get(precision)
    own: dict = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    return own | ({half: {"enabled": True}} if half else {})


def join(minutes: float = 30) -> None:
    """Join the group of all processes. Call before a model is loaded.

    Args:
        minutes: that processes wait for one another.
    """
    import deepspeed

    if distributed.is_initialized():
        return
    os.environ["PATH"] = own_tools_first()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # Otherwise every rank would communicate from the first GPU.
        torch.cuda.set_device(process_info().local_rank)
    else:
        caches.compile_communication()
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo", timeout=timedelta(minutes=minutes), verbose=False
    )


def agreed(value):
    """The ``value`` of rank 0, on every process."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


class SplitWeights:
    """An extractor of which each process holds a part."""

    def __init__(self, load: Callable[[], Extractor], precision: str, should_stop: ShouldStop):
        """
        Args:
            precision: of the extractor, never ``auto``.
            load: the extractor; weights are split as they are read, where its family allows it.
            should_stop: this process was asked to stop.
        """
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        # While it lives, transformers splits the weights that it reads.
        settings = _settings(precision)
        splitting = HfDeepSpeedConfig(settings)
        self.extractor = load()
        del splitting
        self._engine, *_ = deepspeed.initialize(model=_Embedding(self.extractor), config=settings)
        weights: list[Any] = [*self.extractor.parameters()]  # ZeRO-3 adds attributes that types do not know
        sizes = [(weight.ds_tensor.numel(), weight.ds_numel) for weight in weights]
        held, all_weights = map(sum, zip(*sizes, strict=True))
        logger.info(
            "this process holds %.0f %% of the weights of %s, in %s",
            100 * held / all_weights,
            self.extractor.folder,
            str(weights[0].ds_tensor.dtype).removeprefix("torch."),
        )
        self._should_stop = should_stop
        #: Whether any process was asked to stop before the last chunk was ready.
        self.stopped = False

    def computed(
        self, _: Extractor, chunks: Iterable[Chunk], device: torch.device
    ) -> Iterator[tuple[Chunk, dict[int, np.ndarray]]]:
        """See :data:`mer_dist.models.feeding.Compute`; every process has the results of all."""
        here = process_info()
        for chunk in chunks:
            own: dict[int, np.ndarray] = {}
            for first in range(0, len(chunk.batches), here.world):
                number = first + here.rank
                # A process without a batch repeats the last one, since all take part in every pass.
                positions, batch = chunk.batches[min(number, len(chunk.batches) - 1)]
                found = asked(self._embed, batch, device, self.extractor.config.precision).fetched()
                if number < len(chunk.batches):
                    own.update(zip(positions, found, strict=True))
            told: list = [None] * here.world
            distributed.all_gather_object(told, (own, self._should_stop()))
            self.stopped = any(stop for _, stop in told)
            yield chunk, {position: found for results, _ in told for position, found in results.items()}

    def _embed(self, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Weights are gathered into the tensors that are there, which inference tensors forbid.
        with torch.inference_mode(False), torch.no_grad():
            return self._engine(**batch)

    def free(self) -> None:
        """Wait for the others, and release the memory of the weights."""
        self._engine.empty_partition_cache()
        distributed.barrier()
        self._engine.destroy()
        del self._engine, self.extractor
        accelerator.forget_models()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Embedding(nn.Module):
    """What ZeRO-3 sees as the forward pass of an extractor."""

    def __init__(self, extractor: Extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.extractor.embed(**batch)
