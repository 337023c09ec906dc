"""Work is split as a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.dist.partition import NOBODY, epoch_order, global_batches, micro_batches, shares


def test_every_shard_has_exactly_one_rank_and_clips_are_balanced():
    sizes = {0: 80, 1: 80, 2: 80, 3: 17, 4: 1}
    for world in (1, 2, 3, 8):
        parts = shares(sizes, world)
        assert sorted(shard for part in parts for shard in part) == [0, 1, 2, 3, 4]
    load = [sum(sizes[shard] for shard in part) for part in shares(sizes, 2)]
    assert abs(load[0] - load[1]) <= 80


def test_an_epoch_is_a_permutation_that_changes_with_epoch_and_seed():
    assert sorted(epoch_order(50, 0, 1)) == list(range(50))
    assert list(epoch_order(50, 0, 1)) == list(epoch_order(50, 0, 1))
    assert list(epoch_order(50, 0, 1)) != list(epoch_order(50, 0, 2))
    assert list(epoch_order(50, 0, 1)) != list(epoch_order(50, 1, 1))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batches_exactly_once(world, micro):
    order = epoch_order(37, 0, 1)
    batches = global_batches(order, 8)
    assert np.concatenate(batches)[:37].tolist() == order.tolist()
    for batch in batches:
        parts = [micro_batches(batch, micro, rank, world) for rank in range(world)]
        # Collective operations hang unless every rank takes the same number of steps.
        assert len({len(part) for part in parts}) == 1
        seen = [place for part in parts for mine in part for place in mine if place != NOBODY]
        assert sorted(seen) == sorted(place for place in batch if place != NOBODY)
