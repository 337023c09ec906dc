"""Numbers that stand for a missing value, and extreme ones that do not."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.features.codes import Codes
from mer_dist.features.store import FeatureSet


def found(*shards: np.ndarray | list[np.ndarray]) -> Codes:
    """The codes of shards of vectors, or of sequences."""
    codes = Codes()
    for number, shard in enumerate(shards):
        frame = offsets = None
        utterance = np.stack([one.mean(0) if one.ndim == 2 else one for one in shard])
        if shard[0].ndim == 2:
            frame, offsets = np.concatenate(shard), np.cumsum([0, *map(len, shard)])
        names = [f"s{number}c{row}" for row in range(len(shard))]
        codes.add(
            FeatureSet(modality="audio", names=names, utterance=utterance, frame=frame, offsets=offsets)
        )
    return codes


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("code", [-999.0, -9999.0, 99999.0, float(np.float32(1e20))])
def test_a_code_in_single_cells_is_told_with_its_cells_and_clips_over_all_shards(code):
    one, other = normal(80, 6), normal(90, 6)
    one[3, 1] = one[3, 4] = one[70, 2] = other[5, 1] = code
    (line,) = found(one, other).lines()
    assert line.startswith(
        f"{code:g} stands in 4 cells of 3 clips, as s0c3, s0c70, s1c5, far from every other value"
    )


def test_two_codes_and_a_column_that_mostly_lacks_its_value():
    x = normal(200, 4)
    x[:120, 0] = -999
    x[::7, 1], x[::9, 1] = -99999, 99999
    assert found(x).cells == {-999: 120, -99999: sum(row % 9 > 0 for row in range(0, 200, 7)), 99999: 23}


def test_a_code_in_frames_is_told_by_the_clips_that_hold_it():
    clips = [normal(20 + row, 5) for row in range(12)]
    clips[4][3, 2] = clips[4][8, 1] = clips[9][-1, 0] = clips[11][0, 4] = -999
    codes = found(clips)
    assert codes.cells == {-999: 4} and codes.clips == {-999: ["s0c4", "s0c9", "s0c11"]}


def test_what_is_measured_is_not_told():
    x = normal(400, 12)
    x[5, 0] = 1e6  # an outlier by itself
    x[:, 1] = x[:, 1] > 1.5  # a flag
    x[:, 2] = np.arange(400) % 7 * (np.arange(400) % 3 == 0)  # a count
    x[:, 3] = 1  # a constant
    x[:, 4] = np.exp(3 * x[:, 4])  # power
    x[:, 5] = np.maximum(x[:, 5], 0)  # a muscle at rest
    x[:, 6] = np.clip(x[:, 6], -1, 1)  # full scale
    x[:, 7] = np.round(-1500 + x[:, 7])  # a large dimension of a model, in half precision
    x[:, 8] = np.where(np.arange(400) % 9, 5 * x[:, 8] - 40, -80)  # silence, at the floor of decibels
    x[:, 9] = np.where(np.arange(400) % 50, 0, 7)  # seldom anything
    x[:, 10] = np.where(np.arange(400) % 3, 200 + x[:, 10], 0)  # the pitch of one voice
    assert found(x).lines() == []
    assert found(x[:5]).lines() == []
