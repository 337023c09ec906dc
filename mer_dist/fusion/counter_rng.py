"""Counter-based random words of many members, all those of a training step in one draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: SplitMix64: the increment of its state, and two rounds of shift and factor, as int64.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
LAST = 31


class CounterRng:
    """The outputs of SplitMix64 (Steele, Lea & Flood 2014) for each member, computed by index.

    Output ``2^32 * step + index`` depends only on the member's seed. So no member depends on its
    neighbours, one draw serves a complete step of all members, and a recorded step, whose counter
    increases at each replay, draws new words. A generator per member would need a kernel per
    member for each dropout.
    """

    def __init__(self, seeds: list[int], device: torch.device):
        # Mixed, since the states of neighbouring seeds would be neighbours.
        self.start_E = mix(torch.tensor(seeds, dtype=torch.int64, device=device) + GAMMA)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.none = torch.empty(len(seeds), 0, dtype=torch.int64, device=device)
        self.drawn, self.used = self.none, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it, words come from one draw, as large as the number the previous step took."""
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
    """The output function of SplitMix64, in place, modulo 2^64."""
    for shift, factor in ROUNDS:
        x.bitwise_xor_(_shifted(x, shift)).mul_(factor)
    return x.bitwise_xor_(_shifted(x, LAST))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift: int64's own shift repeats the sign."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
