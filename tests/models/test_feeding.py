"""Clips on their way to a GPU: in threads, a pass ahead, and the same to the last bit."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
import torch

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models import feeding
from mer_dist.models.classifier import load_extractor
from mer_dist.models.family import NOT_IN_SHARD
from mer_dist.models.feeding import Pace, clip_embeddings, pace

#: As beside a GPU, but for the memory that only a GPU has.
AS_ON_A_GPU = Pace(decoding=4, chunks=2, pinned=False, ahead=True)
EMPTY, ABSENT = "c05", "c11"


class Lines:
    """A reader of transcripts; notes who reads."""

    def __init__(self, several: bool = False):
        """``several``: a clip is read once a second thread has come to read."""
        self.threads: set[int] = set()
        self.come = threading.Event()
        self.wait = 30 if several else 0

    def read(self, row, modality):
        self.threads.add(threading.get_ident())
        if len(self.threads) > 1:
            self.come.set()
        self.come.wait(self.wait)
        return SimpleNamespace(name=row.name, transcript=row.transcript)


def row(number: int) -> SimpleNamespace:
    name = f"c{number:02d}"
    transcript = "" if name == EMPTY else "你好" * (1 + number % 7)
    made = SimpleNamespace(name=name, transcript=transcript, missing=["text"] if name == ABSENT else [])
    made.of_view = lambda view: made
    return made


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    folder = small_models.make(tmp_path_factory.mktemp("models"), ["你好", "今天真好"])
    return load_extractor(ExtractorConfig(family="baichuan", path=str(folder / "baichuan"), batch_budget=24))


SHARDS = {3: [row(number) for number in range(12)], 5: [row(5)], 8: [row(number) for number in range(12, 40)]}


def test_a_pass_ahead_in_many_threads_gives_the_same_bits_shard_by_shard(extractor, monkeypatch):
    plain = list(clip_embeddings(extractor, Lines(), SHARDS))
    reader = Lines(several=True)
    monkeypatch.setattr(feeding, "pace", lambda device: AS_ON_A_GPU)
    ahead = list(clip_embeddings(extractor, reader, SHARDS))
    assert [found[:2] for found in ahead] == [found[:2] for found in plain]
    assert [found[0] for found in ahead] == [3] * 12 + [5] + [8] * 28
    refused = {name: found for _, name, found in ahead if isinstance(found, str)}
    assert refused == {EMPTY: "the transcript has no token", ABSENT: NOT_IN_SHARD}
    for (_, name, one), (_, _, other) in zip(plain, ahead, strict=True):
        assert isinstance(one, str) or np.array_equal(one, other), name
    assert len(reader.threads) > 1


@pytest.mark.parametrize("ahead", [False, True])
def test_results_are_fetched_when_the_next_pass_is_asked_for(extractor, monkeypatch, ahead):
    """So a GPU has work while the host takes what it has found."""
    told = []

    class Fetched(feeding.Asked):
        def fetched(self):
            told.append("fetched")
            return super().fetched()

    def asked(*arguments):
        told.append("asked")
        return Fetched(**vars(feeding_asked(*arguments)))

    feeding_asked = feeding.asked
    monkeypatch.setattr(feeding, "asked", asked)
    monkeypatch.setattr(feeding, "pace", lambda device: Pace(decoding=1, chunks=1, pinned=False, ahead=ahead))
    for _ in clip_embeddings(extractor, Lines(), {3: SHARDS[3], 8: SHARDS[8]}):
        pass
    passes = told.count("asked")
    assert passes > 3 and told.count("fetched") == passes
    expected = ["asked", "fetched"] * passes
    if ahead:
        expected = ["asked", *["asked", "fetched"] * (passes - 1), "fetched"]
    assert told == expected


def test_a_fault_while_reading_ends_it_and_names_itself(extractor, monkeypatch):
    class Damaged(Lines):
        def read(self, row, modality):
            if row.name == "c20":
                raise OSError("damaged")
            return super().read(row, modality)

    monkeypatch.setattr(feeding, "pace", lambda device: AS_ON_A_GPU)
    before = threading.active_count()
    with pytest.raises(OSError, match="damaged"):
        list(clip_embeddings(extractor, Damaged(), SHARDS))
    assert threading.active_count() == before


def test_whoever_stops_in_the_middle_leaves_no_thread(extractor, monkeypatch):
    monkeypatch.setattr(feeding, "pace", lambda device: AS_ON_A_GPU)
    before = threading.active_count()
    found = clip_embeddings(extractor, Lines(), SHARDS)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("cores", "gpus", "threads"), [(2, 1, 4), (16, 1, 16), (16, 8, 4), (96, 8, 12), (64, 1, 16)]
)
def test_decoding_threads_follow_the_processors_of_this_process(monkeypatch, cores, gpus, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pace(torch.device("cuda")).decoding == threads
    assert pace(torch.device("cpu")) == Pace(decoding=1, chunks=1, pinned=False, ahead=False)
