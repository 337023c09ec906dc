"""Random words of many members by counting, all those of a training step in one draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Of SplitMix64: by how much its state grows, and two rounds of shift and factor, as int64.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
LAST = 31


class CounterRng:
    """Member by member the outputs of SplitMix64 (Steele, Lea & Flood 2014), found by their number.

    Output ``2^32 * step + place`` depends on nothing but the member's seed, so no member depends
    on its neighbours, a step can be drawn whole for all of them, and a recorded step, which
    counts on when it is replayed, draws anew. A generator per member would take a kernel for each
    of them wherever something is dropped.
    """

    def __init__(self, seeds: list[int], device: torch.device):
        # Mixed, since the sequences of neighbouring numbers would be neighbours.
        self.start_E = mix(torch.tensor(seeds, dtype=torch.int64, device=device) + GAMMA)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.none = torch.empty(len(seeds), 0, dtype=torch.int64, device=device)
        self.drawn, self.used = self.none, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it, words come from one draw of as many as the step before took."""
        self.steps.add_(1)
        self.drawn, self.used = self._draw(0, self.used), 0
        try:
            yield
        finally:
            self.drawn = self.none

    def take(self, count: int) -> Tensor:
        """The next ``count`` words of each member, (E, count) int64."""
        first, self.used = self.used, self.used + count
        if self.used <= self.drawn.shape[1]:
            return self.drawn[:, first : self.used]
        return self._draw(first, count)

    def _draw(self, first: int, count: int) -> Tensor:
        positions = torch.arange(first, first + count, device=self.start_E.device)
        return mix((positions + (self.steps << 32)) * GAMMA + self.start_E[:, None])


def mix(x: Tensor) -> Tensor:
    """What SplitMix64 makes of its state, in place; all of it modulo 2^64."""
    for shift, factor in ROUNDS:
        x.bitwise_xor_(_shifted(x, shift)).mul_(factor)
    return x.bitwise_xor_(_shifted(x, LAST))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Zeros come in from the left, where int64's own shift repeats the sign."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
