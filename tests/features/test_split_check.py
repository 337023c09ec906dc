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


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), x.std(0)


@pytest.mark.parametrize("clips", [1, 5, 100])
@pytest.mark.parametrize("change", [lambda x: x + 50, lambda x: 255 * x])
def test_new_clips_of_another_program_are_told_even_one(clips, change):
    x = features()
    why = split_check.foreign(change(x[:clips]), *moments(x), clips)
    assert (
        why.startswith("the new clips differ from those of training in ")
        and "of 16 dimensions as if two" in why
    )
    assert split_check.foreign(x[:clips], *moments(x), clips) == ""


def test_new_clips_that_are_scaled_down_are_told_and_other_rooms_and_codes_are_not():
    x = features()
    x -= 1
    assert split_check.foreign(0.1 * x, *moments(x), 300) != ""
    other = 1.5 * x + 0.7
    other[np.random.default_rng(1).random(x.shape) < 0.08] = -999
    assert split_check.foreign(other, *moments(x), 300) == ""


def test_swapped_sets_are_seen_by_their_means_and_sets_that_are_alike_are_not():
    base = np.random.default_rng(2).normal(size=(2, 16))
    one, other = features() + base[0], features() + base[1]
    assert split_check.swapped(other[:60], moments(one), moments(other), 60)
    assert not split_check.swapped(one[:60], moments(one), moments(other), 60)
    assert not split_check.swapped(other[:60], moments(other + 0.01), moments(other), 60)
    assert not split_check.swapped(other[:60], moments(one), moments(other), 5)
    assert not split_check.swapped(other[:60, :8], moments(one[:, :8]), moments(other), 60)
