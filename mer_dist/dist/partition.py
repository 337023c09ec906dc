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


def micro_size(batch: int, micro: int, world: int) -> int:
    """Clips that each rank computes at a time: the most up to ``micro`` that divide its share."""
    share = -(-batch // world)
    return max(size for size in range(1, min(micro, share) + 1) if share % size == 0)


def micro_batches(batch: np.ndarray, size: int, rank: int, world: int) -> list[tuple[int, np.ndarray]]:
    """The micro-batches of one global batch that ``rank`` computes, each with its first place.

    They are cut the same way for any number of ranks, which then take them in turn; every rank gets
    the same number of them, as collective operations need.
    """
    parts = [(place, batch[place : place + size]) for place in range(0, len(batch), size)]
    return parts[rank::world]
