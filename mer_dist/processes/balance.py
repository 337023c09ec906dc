"""Which shards a process takes, as a pure function of their sizes, so that any number of processes may do it."""

from __future__ import annotations


def balanced(sizes: dict[int, int], world: int) -> list[list[int]]:
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
