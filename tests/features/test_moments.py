"""Features in any unit: their moments, and what fusion learns from them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from mer_dist.features.join import Clips
from mer_dist.features.moments import CACHED, moments
from mer_dist.fusion.batch import FeatureBatch, standardize
from mer_dist.fusion.linear_probe import linear_probe

RANDOM = np.random.default_rng(0)
TRUTH = np.arange(90) % 3
VALUES = (np.eye(3)[TRUTH] * 2 + RANDOM.normal(size=(90, 3))).astype(np.float32)
CLIPS = Clips(
    labels=["a", "b", "c"],
    names=[f"c{row:02}" for row in range(90)],
    truth=TRUTH,
    fold=np.arange(90) // 3 % 5,
    folds=5,
)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e-9, 1e-7, 1.0, 1e8, 1e25])
def test_a_linear_probe_and_fusion_see_the_same_in_every_unit(unit):
    there = np.ones(90, bool)
    plain, scaled = (
        linear_probe([np.float32(VALUES * one)], [there], CLIPS).oof.probability for one in (1, unit)
    )
    assert np.allclose(plain, scaled, atol=1e-4) and (plain.argmax(1) == TRUTH).mean() > 0.7
    plain, scaled = (
        standardize(
            FeatureBatch(
                ["audio"], [torch.from_numpy(np.float32(VALUES * one))[:, None]], [torch.ones(90, 1).bool()]
            )
        )
        for one in (1, unit)
    )
    assert torch.allclose(plain.values[0], scaled.values[0], atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.3, 1e7, -4e20])
def test_a_column_that_is_constant_up_to_rounding_has_no_spread(value):
    values = np.full((1000, 2), value, np.float32)
    values[:, 1] = np.nextafter(values[:, 1], np.float32(np.inf)) if value else values[:, 1]
    values[::2, 1] = value
    mean, std = moments(values)
    assert std.tolist() == [1, 1] and np.allclose(mean, value, rtol=1e-5)
    batch = FeatureBatch(["audio"], [torch.from_numpy(values.copy())[:, None]], [torch.ones(1000, 1).bool()])
    assert standardize(batch).values[0].abs().max() <= 10


def test_ordinary_columns_have_the_moments_of_numpy():
    mean, std = moments(VALUES)
    assert np.array_equal(mean, VALUES.mean(0)) and np.array_equal(std, VALUES.std(0))


@pytest.mark.parametrize("width", [1, 40, 700])
def test_moments_in_blocks_are_those_of_numpy_to_the_bit_and_take_no_memory(width):
    values = np.float32(RANDOM.normal(size=(3 * CACHED // width + 5, width)) * 3 + 1)
    valid = RANDOM.random(len(values)) < 0.7
    tracemalloc.start()
    found = [moments(values), moments(values, valid)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4.5 * 4 * CACHED  # Two blocks and their masks; all values are three.
    for (mean, std), own in zip(found, (values, values[valid]), strict=True):
        if width > 1:  # numpy adds a single column in pairs.
            assert np.array_equal(mean, own.mean(0)) and np.array_equal(std, own.std(0))
        assert np.allclose(mean, own.mean(0), rtol=1e-5) and np.allclose(std, own.std(0), rtol=1e-5)
