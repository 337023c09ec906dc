"""shard, extract and fuse: killed at any instant, on any number of processes, to the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import killing
import numpy as np
import pytest
import undisturbed
from conftest import cases
from undisturbed import Whole

from mer_dist.layout import Run

#: Kills in each case; with the numbers of cases below, 54 of extract and 21 each of shard and fuse.
KILLS = 3


job, shard, extract, fuse = undisturbed.job, undisturbed.shard, undisturbed.extract, undisturbed.fuse


def survive(whole: Whole, tmp_path: Path, seed: int, final, worlds=(1,)) -> killing.Disturbed:
    random = np.random.default_rng([seed, len(whole.arguments[0])])
    disturbed = killing.Disturbed(tmp_path, whole.arguments, whole.outputs, final, random, worlds)

    def begin() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole.before / "run", tmp_path / "run")
        for told in ("logs", "status"):
            shutil.rmtree(tmp_path / "run" / told, ignore_errors=True)

    disturbed.survive(KILLS, begin)
    print(f"{whole.arguments[0]}: {dict(disturbed.ways)}")
    return disturbed


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=8))
def test_a_killed_shard_ends_in_the_same_bytes(shard, tmp_path, seed):
    def final(path: str) -> bool:
        # A tar without its facts is no shard yet, and is written again.
        return path.startswith("shards/0") and path.endswith(".parquet")

    assert survive(shard, tmp_path, seed, final).ways.total() == KILLS


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=19))
def test_a_killed_extract_ends_in_the_same_bytes_on_another_number_of_processes(extract, tmp_path, seed):
    def final(path: str) -> bool:
        return path.startswith("features/") and path.endswith(".safetensors")

    disturbed = survive(extract, tmp_path, seed, final, worlds=(1, 2, 3))
    assert disturbed.ways.total() == KILLS and Run(tmp_path / "run").features("clip").is_dir()


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=8))
def test_a_killed_fuse_ends_in_the_same_bytes(fuse, tmp_path, seed):
    def final(path: str) -> bool:
        folder, _, rest = path.partition("/")
        return folder == "probes" and rest.endswith((".parquet", ".safetensors")) or (
            folder in ("rounds", "vote") and not rest.startswith("."))

    assert survive(fuse, tmp_path, seed, final).ways.total() == KILLS
