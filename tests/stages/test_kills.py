"""shard, extract and fuse: killed at any instant, on any number of processes, to the same bytes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import fusion_run
import killing
import numpy as np
import pytest
import small_job
from conftest import cases

from mer_dist.errors import DONE
from mer_dist.layout import Run

FROZEN = ("extractors.clip.finetune=null", "extractors.baichuan.finetune=null")
#: Kills in each case; with the numbers of cases below, 54 of extract and 21 each of shard and fuse.
KILLS = 3


@dataclass
class Whole:
    """An undisturbed run of a command."""

    #: The folder that holds ``run``, ready for the command.
    before: Path
    arguments: list[str]
    outputs: dict[str, str]


def undisturbed(folder: Path, arguments: list[str], worlds: tuple[int, ...] = (1,)) -> Whole:
    """Run the command in a copy of ``folder`` and keep what it made."""
    done = shutil.copytree(folder, folder.with_name(f"{folder.name}-done"))
    assert killing.ends(killing.start(done, arguments)) == [DONE], (done / "said.0").read_text()
    return Whole(folder, arguments, killing.outputs(done / "run"))


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return small_job.make(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def shard(job, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("shard") / "work"
    (folder / "run").mkdir(parents=True)
    options = [*FROZEN, "run.folder=run", "shard.clips=3", "shard.workers=2"]
    return undisturbed(folder, ["shard", str(job), *options])


@pytest.fixture(scope="module")
def extract(shard) -> Whole:
    return undisturbed(shard.before.with_name("work-done"), ["extract", *shard.arguments[1:]])


@pytest.fixture(scope="module")
def fuse(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("fuse") / "work"
    config, _ = fusion_run.make(folder, labeled=30, unlabeled=30, rounds=2)
    Path(config.run.folder, "config.yaml").unlink()
    return undisturbed(folder, ["fuse", str(folder / "job.yaml"), "run.folder=run"])


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
        return path.startswith("shards/0") and path.endswith((".tar", ".parquet"))

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
