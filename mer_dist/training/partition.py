"""Which clips belong to an optimizer step and to each process, as pure functions of seed and position, so
that any number of processes may train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mer_dist.config.sections import FinetuneConfig

#: An empty position of a padded batch.
PAD_INDEX = -1


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(count)``: every clip exactly once in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def global_batches(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut ``order`` into global batches; the last one is padded with :data:`PAD_INDEX`."""
    padding = -len(order) % batch
    return list(np.append(order, np.full(padding, PAD_INDEX, order.dtype)).reshape(-1, batch))


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a global batch is cut into forward and backward passes.

    By length if there is a budget: clips of similar length share a pass. Otherwise by number: the batch
    is cut as it is, with its empty positions.
    """

    #: (N,) of each clip: number of segments, and length of the longest. A pass costs the number of its
    #: segments times the longest of them, padding included.
    segments: np.ndarray
    longest: np.ndarray
    #: largest cost of a pass of several clips; 0: passes are cut by number.
    budget: float
    #: largest number of clips in a pass; 0: no limit.
    clips: int

    @classmethod
    def of(cls, config: FinetuneConfig, segments: np.ndarray, longest: np.ndarray, budget: float) -> Passes:
        """The passes of these settings.

        Args:
            budget: of the device, used if the settings have none.
        """
        by_number = config.micro_batch and not config.batch_budget
        chosen = 0 if by_number else config.batch_budget or budget
        return cls(segments=segments, longest=longest, budget=chosen, clips=config.micro_batch)

    def cut(self, batch: np.ndarray, world: int) -> list[tuple[int, np.ndarray]]:
        """The passes of all ranks, each with its first position in the order in which the batch is cut.

        Every round has a pass for every rank, as collective operations need. By length, a pass is empty only
        if there are fewer clips than ranks; by number, if the batch has empty positions. The passes are
        the same on all ranks, and for every number of ranks that divides the number of passes.
        """
        if self.budget:
            batch = batch[batch != PAD_INDEX]
            batch = batch[np.lexsort((self.segments[batch], self.longest[batch]))]
            edges = _edges(self.segments[batch], self.longest[batch], self.budget, self.clips, world)
        else:
            ones = np.ones(len(batch))
            edges = _edges(ones, ones, self.clips, 0, world)
        parts = [(start, batch[start:end]) for start, end in pairwise(edges)]
        empty = np.array([PAD_INDEX], batch.dtype)
        return parts + [(len(batch) + more, empty) for more in range(-len(parts) % world)]

    def most(self, batch: int, world: int) -> int:
        """How many of the longest clips cost as much as the costliest possible pass of a batch."""
        share = math.ceil(batch / world)
        if self.clips:
            share = min(share, self.clips)
        if not self.budget:
            passes = world * math.ceil(math.ceil(batch / self.clips) / world)
            return math.ceil(batch / passes)
        each = float(self.segments.max() * self.longest.max())
        return min(share, max(1, math.ceil(self.budget / each)))


def _edges(segments: np.ndarray, longest: np.ndarray, budget: float, clips: int, world: int) -> list[int]:
    """Where to cut sorted clips: as few rounds of ``world`` passes as the budget allows, with the costliest
    pass as cheap as possible."""
    before = np.concatenate([[0], np.cumsum(segments)])

    def cut(limit: float) -> list[int]:
        """The fewest passes within ``limit``: greedy, from the longest clip on."""
        edges = [len(segments)]
        while end := edges[-1]:
            start = int(np.searchsorted(before, before[end] - limit / longest[end - 1]))
            edges.append(min(end - 1, max(start, end - clips if clips else 0)))
        return edges[::-1]

    edges = cut(budget)
    passes = world * math.ceil((len(edges) - 1) / world)
    low, high = 0.0, min(budget, float(before[-1] * longest[-1]))
    for _ in range(40):
        middle = (low + high) / 2
        tried = cut(middle)
        if len(tried) - 1 <= passes:
            edges, high = tried, middle
        else:
            low = middle
    # For ranks without a pass, the costliest passes of several clips are halved.
    while len(edges) - 1 < min(passes, len(segments)):
        costs = [
            (before[end] - before[start]) * longest[end - 1] if end - start > 1 else 0
            for start, end in pairwise(edges)
        ]
        costliest = int(np.argmax(costs))
        edges.insert(costliest + 1, (edges[costliest] + edges[costliest + 1] + 1) // 2)
    return edges
