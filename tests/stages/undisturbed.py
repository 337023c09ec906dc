"""shard, extract and fuse that ran through without a disturbance, as fixtures of a module."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import fusion_run
import killing
import pytest
import small_job

from mer_dist.errors import DONE

FROZEN = ("extractors.clip.finetune=null", "extractors.baichuan.finetune=null")


@dataclass
class Whole:
    """An undisturbed run of a command."""

    #: The folder that holds ``run``, ready for the command.
    before: Path
    arguments: list[str]
    outputs: dict[str, str]


def whole(folder: Path, arguments: list[str]) -> Whole:
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
    return whole(folder, ["shard", str(job), *options])


@pytest.fixture(scope="module")
def extract(shard) -> Whole:
    return whole(shard.before.with_name("work-done"), ["extract", *shard.arguments[1:]])


@pytest.fixture(scope="module")
def fuse(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("fuse") / "work"
    config, _ = fusion_run.make(folder, labeled=30, unlabeled=30, rounds=2)
    Path(config.run.folder, "config.yaml").unlink()
    return whole(folder, ["fuse", str(folder / "job.yaml"), "run.folder=run"])
