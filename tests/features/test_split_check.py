"""Labelled and unlabelled clips whose features are not of one kind."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist.features import split_check

LABELED = np.arange(300) < 120


def features(width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, width)).astype(np.float32) + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 255,
        lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
        lambda x: x + 9,
        lambda x: x * 0.1,
    ],
)
def test_features_of_another_unit_in_one_part_are_told(change):
    x = features()
    x[~LABELED] = change(x[~LABELED])
    (doubt,) = split_check.doubts(x, LABELED, ~LABELED)
    assert doubt.startswith(
        "the labelled and the unlabelled clips differ in 16 of 16 dimensions as if two programs"
    )


def test_a_label_among_the_features_is_told():
    x = features()
    x[:, 5] = np.where(LABELED, np.arange(300) % 3, -1)
    (doubt,) = split_check.doubts(x, LABELED, ~LABELED)
    assert doubt.startswith(
        "column 5 (of 1 such) has one value in all unlabelled clips, and many in the labelled"
    )


def test_what_differs_by_nature_or_by_chance_is_not_told():
    x = features(64)
    x[~LABELED] = 1.5 * x[~LABELED] + 0.7  # another microphone
    x[:, 0] = 0  # nobody has it
    x[:, 1] = np.arange(300) == 7  # one clip has it
    x[:, 2] = np.arange(300) % 40 == 3  # few have it
    assert split_check.doubts(x, LABELED, ~LABELED) == []
    few = np.arange(300) >= 285
    x[few] *= 1000
    assert split_check.doubts(x, LABELED, few) == []
    assert split_check.doubts(x, LABELED, LABELED & False) == []


@pytest.mark.parametrize("code", [-999, 1e20])
def test_a_few_numbers_far_away_in_one_part_are_no_other_program(code):
    x = features()
    x[np.random.default_rng(1).random(x.shape) < 0.08 * LABELED[:, None]] = code
    assert split_check.doubts(x, LABELED, ~LABELED) == []
    x[~LABELED] += 9
    (doubt,) = split_check.doubts(x, LABELED, ~LABELED)
    assert doubt.startswith("the labelled and the unlabelled clips differ in 16 of 16 dimensions")
