"""shard, extract and fuse: killed at any instant, on any number of processes, to the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import killing
import numpy as np
import pytest
import undisturbed
from long_suite import cases, note_kills
from undisturbed import Whole

#: Kills in a case: in the long suite, with the numbers of cases below, 54 of extract and 21 each of
#: shard and fuse.
FEW, KILLS = 2, 3


base, shard, extract, fuse = undisturbed.base, undisturbed.shard, undisturbed.extract, undisturbed.fuse


def survive(request, whole: Whole, tmp_path: Path, seed: int, final, worlds=(1,)) -> None:
    random = np.random.default_rng([seed, len(whole.arguments[0])])
    disturbed = killing.Disturbed(tmp_path, whole.arguments, whole.outputs, final, random, worlds)

    def begin() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole.before / "run", tmp_path / "run")
        for told in ("logs", "status"):
            shutil.rmtree(tmp_path / "run" / told, ignore_errors=True)

    kills = KILLS if seed else FEW
    disturbed.survive(kills, begin)
    assert disturbed.ways.total() == kills
    note_kills(request, whole.arguments[0], [{"when": way} for way in disturbed.ways.elements()])


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=8))
def test_a_killed_shard_ends_in_the_same_bytes(request, shard, tmp_path, seed):
    def final(path: str) -> bool:
        # A tar without its facts is no shard yet, and is written again.
        return path.startswith("shards/0") and path.endswith(".parquet")

    survive(request, shard, tmp_path, seed, final)


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=19))
def test_a_killed_extract_ends_in_the_same_bytes_on_another_number_of_processes(
    request, extract, tmp_path, seed
):
    def final(path: str) -> bool:
        return path.startswith("features/") and path.endswith(".safetensors")

    survive(request, extract, tmp_path, seed, final, worlds=(1, 2, 3))


@pytest.mark.processes
@pytest.mark.parametrize("seed", cases(short=1, long=8))
def test_a_killed_fuse_ends_in_the_same_bytes(request, fuse, tmp_path, seed):
    def final(path: str) -> bool:
        folder, _, rest = path.partition("/")
        return (
            folder == "linear_probes"
            and rest.endswith((".parquet", ".safetensors"))
            or (folder in ("rounds", "vote") and not rest.startswith("."))
        )

    survive(request, fuse, tmp_path, seed, final)
