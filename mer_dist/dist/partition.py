"""Who does what, as pure functions of seed and position, so any number of processes may do it."""

from __future__ import annotations

import numpy as np

#: A place in a padded batch that holds no clip.
NOBODY = -1


def shares(sizes: dict[int, int], world: int) -> list[list[int]]:
    """Split shards over ``world`` ranks so that clips are balanced; some ranks may get none.

    Args:
        sizes: shard -> its clips, done or not, so that ranks that start at different times agree.
    """
    parts: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for shard in sorted(sizes, key=lambda shard: (-sizes[shard], shard)):
        rank = load.index(min(load))
        parts[rank].append(shard)
        load[rank] += sizes[shard]
    return [sorted(part) for part in parts]


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(count)``: every clip exactly once in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def global_batches(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut ``order`` into global batches; the last one is filled up with :data:`NOBODY`."""
    padding = -len(order) % batch
    return list(np.append(order, np.full(padding, NOBODY, order.dtype)).reshape(-1, batch))


def per_rank_sizes(batch: int, micro: int, world: int) -> tuple[int, int]:
    """Places of a global batch that each rank has, and how many it computes at a time."""
    per_rank = -(-batch // world)
    return per_rank, min(micro, per_rank)


def micro_batches(batch: np.ndarray, micro: int, rank: int, world: int) -> list[np.ndarray]:
    """The part of one global batch that ``rank`` computes, in micro-batches of equal size.

    Places go round the ranks, so a short last batch is spread evenly; every rank gets the same
    number of micro-batches, as collective operations need.
    """
    per_rank, micro = per_rank_sizes(len(batch), micro, world)
    mine = np.full(per_rank, NOBODY, batch.dtype)
    taken = batch[rank::world]
    mine[: len(taken)] = taken
    padding = -per_rank % micro
    return list(np.append(mine, np.full(padding, NOBODY, batch.dtype)).reshape(-1, micro))
