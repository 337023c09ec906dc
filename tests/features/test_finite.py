"""Which vectors cannot be kept, and the setting that is named where most of them cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mer_dist.config.sections import ExtractConfig, ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.features import finite

ONES = np.ones((3, 4), np.float32)


def with_value(value: float) -> np.ndarray:
    embeddings = ONES.copy()
    embeddings[1, 2] = value
    return embeddings


def extractor(weight: float = 1.0, **settings):
    backbone = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(backbone.weight, weight)
    config = ExtractorConfig(family="clip", path="models/clip", **settings)
    return SimpleNamespace(config=config, folder=Path("models/clip"), backbone=backbone)


@pytest.mark.parametrize(
    ("embeddings", "storage", "why"),
    [
        (with_value(np.nan), "fp32", finite.COMPUTED),
        (with_value(-np.inf), "fp32", finite.COMPUTED),
        # Each of them a number, and their sum is none.
        (np.full((3, 4), 3e38, np.float32), "fp32", finite.COMPUTED),
        (with_value(70_000), "fp16", finite.TOO_LARGE),
        (1e-9 * ONES, "fp16", finite.TOO_SMALL),
        (with_value(70_000), "fp32", ""),
        (1e-9 * ONES, "fp32", ""),
        (with_value(65_504), "fp16", ""),
        (0 * ONES, "fp16", ""),
    ],
)
def test_vectors_that_are_no_numbers_or_no_longer_the_same_when_stored_are_refused(embeddings, storage, why):
    stored = ExtractConfig(storage=storage)
    kept, refused = finite.keepable(extractor(), "clip@all", {"a": embeddings, "b": ONES}, stored)
    assert (set(kept), set(refused)) == (({"b"}, {"a"}) if why else ({"a", "b"}, set()))
    assert not why or refused["a"].startswith(f"{why}; ")


def test_frames_that_are_not_stored_need_not_fit():
    stored = ExtractConfig(storage="fp16", frame_level=False)
    kept, refused = finite.keepable(extractor(), "clip", {"a": with_value(70_000)}, stored)
    assert set(kept) == {"a"} and not refused


@pytest.mark.parametrize(
    ("settings", "weight", "words"),
    [
        ({"precision": "fp16"}, 1.0, ["extractors.clip.precision is fp16", "65504", "bf16 or fp32"]),
        (
            {"precision": "fp16", "quantize": "nf4"},
            1.0,
            ["extractors.clip.precision is fp16", "bf16 or fp32"],
        ),
        ({"precision": "fp16"}, np.inf, ["extractors.clip.precision is fp16", "damaged: weight"]),
        ({"precision": "bf16"}, np.nan, ["weights are not finite: weight", "models/clip"]),
        ({"precision": "bf16"}, 1.0, ["set extractors.clip.precision to fp32"]),
        ({"precision": "bf16", "quantize": "nf4"}, 1.0, ["clip.precision to fp32", "quantize to none"]),
        ({"precision": "bf16", "quantize": "int8"}, 1.0, ["int8 computes in half precision", "nf4 or none"]),
        ({"precision": "fp32"}, 1.0, ["fp32 already", "models/clip"]),
    ],
)
def test_the_remedy_names_the_setting_that_is_at_fault(settings, weight, words):
    told = finite.remedy(extractor(weight, **settings), "clip", finite.COMPUTED)
    assert all(word in told for word in words)


def test_the_remedy_for_what_cannot_be_stored_is_another_storage():
    assert finite.remedy(extractor(), "clip", finite.TOO_LARGE) == "set extract.storage: fp32"


@pytest.mark.parametrize(
    ("shards", "whole", "stops"),
    [
        ([(9, 9)], False, True),
        ([(9, 5)], False, True),
        ([(9, 4)], True, False),
        # A first shard of one clip says nothing about the others; a set that has no other does.
        ([(1, 1)], False, False),
        ([(1, 1)], True, True),
        ([(1, 1), (9, 0)], True, False),
        ([(1, 1), (1, 1)], False, True),
    ],
)
def test_a_setting_is_blamed_where_most_clips_are_lost_and_one_clip_costs_no_run(shards, whole, stops):
    tally = finite.Tally()
    for clips, refused in shards:
        tally.add(clips, {str(row): f"{finite.COMPUTED}; set this" for row in range(refused)})
    if stops:
        with pytest.raises(UserError, match="features clip.*; set this"):
            tally.check("clip", whole)
    else:
        tally.check("clip", whole)


def test_clips_without_the_modality_are_no_evidence():
    tally = finite.Tally()
    tally.add(9, {str(row): "not in the shard" for row in range(9)})
    tally.check("clip", whole=True)
