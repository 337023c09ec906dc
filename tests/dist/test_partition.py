"""Work is split as a pure function of seed and position."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mer_dist.dist.partition import epoch_order, global_batches, micro_batches, micro_size, shares
from mer_dist.dist.support import check_batches
from mer_dist.errors import UserError
from mer_dist.settings import FinetuneConfig


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


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batches_exactly_once(world, micro):
    order = epoch_order(37, 0, 1)
    batches = global_batches(order, 12)
    assert np.concatenate(batches)[:37].tolist() == order.tolist()
    size = micro_size(12, micro, world)
    assert size <= micro and 12 % (size * world) == 0
    for batch in batches:
        parts = [micro_batches(batch, size, rank, world) for rank in range(world)]
        # Collective operations hang unless every rank takes the same number of steps.
        assert len({len(part) for part in parts}) == 1
        cut = sorted((place, mine.tolist()) for part in parts for place, mine in part)
        assert [position for _, mine in cut for position in mine] == batch.tolist()
        # As one process cuts it, so dropout and padding are the same.
        alone = [(place, mine.tolist()) for place, mine in micro_batches(batch, size, 0, 1)]
        assert cut == alone


def test_a_rank_takes_as_many_clips_at_a_time_as_it_may():
    assert [micro_size(16, 8, world) for world in (1, 2, 4, 8, 16)] == [8, 8, 4, 2, 1]
    assert micro_size(12, 4, 2) == 3  # two micro-batches of three, not one of four and a short one


def test_a_batch_that_the_processes_cannot_share_is_refused_and_the_message_says_what_fits():
    tuned = SimpleNamespace(finetune=FinetuneConfig(batch=12))
    config = SimpleNamespace(extractors={"clip": tuned, "hubert": SimpleNamespace(finetune=None)})
    for processes in (1, 2, 3, 4, 6, 12):
        check_batches(config, processes)
    with pytest.raises(
        UserError,
        match="clip.finetune.batch is 12, which 5 processes cannot share evenly; "
        "start one of 1, 2, 3, 4, 6, 12 processes, or take a multiple of 5",
    ):
        check_batches(config, 5)
