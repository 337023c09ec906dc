"""Work is split as a pure function of seed and position."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import UserError
from mer_dist.processes.balance import balanced
from mer_dist.training.partition import PAD_INDEX, Passes, epoch_order, global_batches
from mer_dist.training.supported import check_batches


def test_every_shard_has_exactly_one_rank_and_clips_are_balanced():
    sizes = {0: 80, 1: 80, 2: 80, 3: 17, 4: 1}
    for world in (1, 2, 3, 8):
        parts = balanced(sizes, world)
        assert sorted(shard for part in parts for shard in part) == [0, 1, 2, 3, 4]
    load = [sum(sizes[shard] for shard in part) for part in balanced(sizes, 2)]
    assert abs(load[0] - load[1]) <= 80


def test_an_epoch_is_a_permutation_that_changes_with_epoch_and_seed():
    assert sorted(epoch_order(50, 0, 1)) == list(range(50))
    assert list(epoch_order(50, 0, 1)) == list(epoch_order(50, 0, 1))
    assert list(epoch_order(50, 0, 1)) != list(epoch_order(50, 0, 2))
    assert list(epoch_order(50, 0, 1)) != list(epoch_order(50, 1, 1))


def by_number(micro: int, count: int = 100) -> Passes:
    ones = np.ones(count)
    return Passes.of(FinetuneConfig(micro_batch=micro), ones, ones, budget=1e9)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batches_exactly_once(world, micro):
    order = epoch_order(37, 0, 1)
    batches = global_batches(order, 12)
    assert np.concatenate(batches)[:37].tolist() == order.tolist()
    passes = by_number(micro)
    for batch in batches:
        parts = [(place, mine.tolist()) for place, mine in passes.cut(batch, world)]
        # Collective operations hang unless every rank takes the same number of steps.
        assert len(parts) % world == 0
        assert [position for _, mine in parts for position in mine] == batch.tolist()
        assert {len(mine) for _, mine in parts} == {passes.most(12, world)}
        if micro * world <= 12 and 12 % (micro * world) == 0:
            # As one process cuts it, so dropout and padding are the same.
            assert parts == [(place, mine.tolist()) for place, mine in passes.cut(batch, 1)]


def test_a_rank_takes_as_many_clips_at_a_time_as_it_may():
    def sizes(batch: int, micro: int, world: int) -> list[int]:
        return [len(mine) for _, mine in by_number(micro).cut(np.arange(batch), world)]

    assert [by_number(8).most(16, world) for world in (1, 2, 4, 8, 16)] == [8, 8, 4, 2, 1]
    assert sizes(16, 8, 2) == [8, 8]
    assert sizes(12, 4, 2) == [3, 3, 3, 3]  # two passes of three, not one of four and a short one
    assert sizes(7, 4, 1) == [3, 4]
    assert sorted(sizes(12, 2, 8)) == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.slow
def test_passes_by_length_hold_every_clip_once_within_the_budget_and_no_rank_idles():
    """Of random corpora, budgets and numbers of ranks; clips of one piece, of frames, or of windows."""
    draw = np.random.default_rng(0)
    for _ in range(150):
        count, batch, world = (int(draw.integers(1, most)) for most in (80, 40, 9))
        segments, longest = draw.integers(1, 1 + draw.choice([1, 16]), count), draw.uniform(0.1, 30, count)
        budget, most = float(draw.uniform(5, 500)), int(draw.choice([0, 0, 1, 5]))
        passes = Passes.of(FinetuneConfig(batch_budget=budget, micro_batch=most), segments, longest, budget=1)
        seen = []
        for whole in global_batches(epoch_order(count, 0, 1), batch):
            parts = passes.cut(whole, world)
            real = [mine for _, mine in parts if PAD_INDEX not in mine]
            seen += np.concatenate(real).tolist()
            clips = sum(map(len, real))
            assert len(parts) % world == 0 and len({place for place, _ in parts}) == len(parts)
            assert all(mine.tolist() == [PAD_INDEX] for _, mine in parts[len(real) :])
            assert len(real) == min(len(parts), clips)
            costs = [segments[mine].sum() * longest[mine].max() for mine in real]
            for mine, cost in zip(real, costs, strict=True):
                assert len(mine) == 1 or (cost <= budget * (1 + 1e-9) and len(mine) <= (most or batch))
            # Clips of like length together: no pass begins below where the one before it ends.
            lengths = [longest[mine] for mine in real]
            assert all(low.max() <= high.min() for low, high in pairwise(lengths))
            # plan counts them as so many of the longest.
            alike = Passes.of(
                FinetuneConfig(batch_budget=budget, micro_batch=most), segments[:1], longest[:1], 1
            )
            each = segments.max() * longest.max()
            alike = replace(alike, segments=np.array([segments.max()]), longest=np.array([longest.max()]))
            assert max(costs) <= alike.most(batch, world) * each * (1 + 1e-9)
        assert sorted(seen) == list(range(count))


def test_a_batch_of_short_lines_is_one_pass_and_shared_by_ranks_evenly():
    """32 lines of 10 to 41 tokens in 2,048: one pass, not eight, or one for each of eight ranks."""
    ones, longest = np.ones(32, int), np.arange(10, 42)
    passes = Passes.of(FinetuneConfig(), ones, longest, budget=2048)
    (alone,) = passes.cut(np.arange(32), 1)
    assert alone[0] == 0 and sorted(alone[1]) == list(range(32))
    shared = [mine for _, mine in passes.cut(np.arange(32), 8)]
    costs = [len(mine) * longest[mine].max() for mine in shared]
    assert len(shared) == 8 and max(costs) < 1.25 * longest.sum() / 8
    # A step of three clips keeps five ranks company with nobody.
    parts = passes.cut(np.array([4, 9, 2, PAD_INDEX, PAD_INDEX]), 8)
    assert [mine.tolist() for _, mine in parts] == [[2], [4], [9], *[[PAD_INDEX]] * 5]


def test_what_the_settings_leave_open_the_device_decides():
    ones = np.ones(3)

    def chosen(**told) -> tuple[float, int]:
        passes = Passes.of(FinetuneConfig(**told), ones, ones, budget=7)
        return passes.budget, passes.clips

    assert chosen() == (7, 0) and chosen(batch_budget=5) == (5, 0)
    assert chosen(micro_batch=4) == (0, 4) and chosen(micro_batch=4, batch_budget=5) == (5, 4)


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
