"""Layers of many models at once: every parameter has a leading dimension of members.

The members of an ensemble (folds × seeds) are trained side by side, so that a step is a few
batched matrix products for any number of them. Members share nothing: each has its own random
stream for weights, order and dropout, so the result is that of training it alone. Shape suffixes:
E members, B clips, Q queries, K keys, W width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mer_dist.fusion.counter_rng import CounterRng


def counts(device: torch.device) -> bool:
    """Whether dropout masks come from a counter: on a GPU, where each draw of a generator is a kernel."""
    return device.type == "cuda"


@dataclass
class DropoutRate:
    """A dropout probability, rounded to 1/256: one for all members or one for each."""

    #: (E,) uint8, in units of 1/256.
    parts: Tensor
    #: Whether any is not 0; known without waiting for the device.
    some: bool


class RngStreams:
    """One random stream per member, so that a member never depends on its neighbours.

    Weights and orders come from a generator per member. So do dropout masks on a CPU; a GPU draws
    them from a counter, see :mod:`mer_dist.fusion.counter_rng`: the same seeds, but other bits.
    """

    def __init__(self, seeds: list[int], device: torch.device, dtype: torch.dtype = torch.float32):
        self.seeds, self.device, self.dtype = seeds, device, dtype
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.counted = CounterRng(seeds, device) if counts(device) else None

    def uniform(self, *shape: int) -> Tensor:
        """(E, *shape) in [0, 1), as floats of the models' precision."""
        draw = [torch.rand(shape, generator=own, device=self.device) for own in self.generators]
        return torch.stack(draw).to(self.dtype)

    def step(self) -> AbstractContextManager[None]:
        """Around the forward pass of a training step: a GPU draws all its dropout masks at once."""
        return nullcontext() if self.counted is None else self.counted.step()

    def kept(self, rate: DropoutRate, *shape: int) -> Tensor:
        """(E, *shape) bool, False with the member's dropout rate.

        A decision takes one byte, so a random word gives eight of them.
        """
        count = math.prod(shape)
        drawn = self._words(-(-count // 8)).view(torch.uint8)[:, :count]
        return (drawn >= rate.parts[:, None]).unflatten(1, shape)

    def _words(self, count: int) -> Tensor:
        """(E, count) int64, all bits random."""
        if self.counted is not None:
            return self.counted.take(count)
        words = torch.empty(len(self.generators), count, dtype=torch.int64, device=self.device)
        for own, row in zip(self.generators, words, strict=True):
            row.random_(-(2**63), None, generator=own)
        return words

    def rate(self, rates: float | list[float]) -> DropoutRate:
        """A rate for :meth:`kept` from one number for all members or one for each."""
        each = [rates] * len(self.generators) if isinstance(rates, float) else rates
        parts = [min(round(256 * rate), 255) for rate in each]
        return DropoutRate(torch.tensor(parts, dtype=torch.uint8, device=self.device), any(parts))

    def order(self, member: int, count: int, length: int) -> Tensor:
        """``length`` of the integers below ``count``: each once in random order, then repeated."""
        own = self.generators[member]
        rounds = -(-length // count)
        draw = [torch.randperm(count, generator=own, device=self.device) for _ in range(rounds)]
        return torch.cat(draw)[:length]


class Linear(nn.Module):
    """A linear layer per member: ``(E, ..., in)`` to ``(E, ..., out)``."""

    def __init__(self, streams: RngStreams, inputs: int, outputs: int):
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter((2 * streams.uniform(inputs, outputs) - 1) * bound)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])


class Dropout(nn.Module):
    """Inverted dropout, its rate rounded to 1/256: one for all members or one for each."""

    def __init__(self, streams: RngStreams, rates: float | list[float]):
        super().__init__()
        self.streams, self.rate = streams, streams.rate(rates)
        self.scale = 1 / (1 - self.rate.parts.to(streams.dtype) / 256)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate.some:
            return x
        keep = self.streams.kept(self.rate, *x.shape[1:])
        # x times the mask first: mask times scale would make a second float tensor.
        return (x * keep).mul_(self.scale.view(-1, *[1] * (x.dim() - 1)))


def norm(x: Tensor) -> Tensor:
    """Layer normalisation; the next linear layer would absorb gain and offset."""
    return F.layer_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Multi-head attention as plain matrix products: over so few tokens nothing is faster."""

    def __init__(self, streams: RngStreams, width: int, heads: int, dropout: list[float]):
        super().__init__()
        self.heads = heads
        self.query = Linear(streams, width, width)
        self.key = Linear(streams, width, width)
        self.value = Linear(streams, width, width)
        self.out = Linear(streams, width, width)
        self.dropout = Dropout(streams, dropout)

    def forward(self, x_EBQW: Tensor, y_EBKW: Tensor, mask_EBK: Tensor) -> Tensor:
        value = self.value(y_EBKW)
        if y_EBKW.shape[2] == 1:  # all attention goes to the only key, whatever the query
            return self.dropout(self.out(value)).expand(-1, -1, x_EBQW.shape[2], -1)
        query, key, value = map(self._split, (self.query(x_EBQW), self.key(y_EBKW), value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        # Finite, so that a clip without any key has finite output; its channel gets no gate.
        scores = scores.masked_fill(~mask_EBK[..., None, None, :], torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
        return self.dropout(self.out(mixed))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class FeedForward(nn.Sequential):
    """Two linear layers, wider in between."""

    def __init__(self, streams: RngStreams, width: int, dropout: list[float]):
        super().__init__(
            Linear(streams, width, 2 * width),
            nn.GELU(),
            Dropout(streams, dropout),
            Linear(streams, 2 * width, width),
            Dropout(streams, dropout),
        )


def masked_mean(x_EBTW: Tensor, mask_EBT: Tensor) -> Tensor:
    """Mean over the tokens that are present: ``(E, B, W)``, 0 where there is none."""
    if x_EBTW.shape[-2] == 1:
        return x_EBTW.squeeze(-2) * mask_EBT.to(x_EBTW.dtype)
    weight = mask_EBT[..., None].to(x_EBTW.dtype)
    return (x_EBTW * weight).sum(-2) / weight.sum(-2).clamp(min=1)
