"""shard, extract and fuse that ran through without a disturbance, as fixtures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fusion_run
import killing
import pytest
import small_job

from mer_dist.core.errors import DONE

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


@cache
def made_job(base: Path) -> Path:
    return small_job.make(base / "job")


@cache
def made_shard(base: Path) -> Whole:
    folder = base / "shard"
    (folder / "run").mkdir(parents=True)
    options = [*FROZEN, "run.folder=run", "shard.clips=3", "shard.workers=2"]
    return whole(folder, ["shard", str(made_job(base)), *options])


@cache
def made_extract(base: Path) -> Whole:
    return whole(base / "shard-done", ["extract", *made_shard(base).arguments[1:]])


@cache
def made_fuse(base: Path) -> Whole:
    config, _ = fusion_run.make(base / "fuse", labeled=30, unlabeled=30, rounds=2)
    Path(config.run.folder, "config.yaml").unlink()
    return whole(base / "fuse", ["fuse", str(base / "fuse" / "job.yaml"), "run.folder=run"])


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where they lie; each is made once, however many modules ask for it."""
    folder = tmp_path_factory.getbasetemp() / "undisturbed"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shard(base) -> Whole:
    return made_shard(base)


@pytest.fixture(scope="session")
def extract(shard, base) -> Whole:
    return made_extract(base)


@pytest.fixture(scope="session")
def fuse(base) -> Whole:
    return made_fuse(base)
