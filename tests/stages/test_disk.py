"""A full disk, a read-only folder, a shard that is gone: one line, code 2, and a relaunch that completes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import killing
import pytest
import undisturbed
from undisturbed import Whole

from mer_dist.cli import main
from mer_dist.core.errors import DONE, USAGE
from mer_dist.core.log import logger

base, shard, extract, fuse = undisturbed.base, undisturbed.shard, undisturbed.extract, undisturbed.fuse


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Iterator[Callable[[Whole], tuple[int, str]]]:
    """The command in ``tmp_path``: exit code and what was said."""
    monkeypatch.chdir(tmp_path)

    def act(whole: Whole) -> tuple[int, str]:
        code = main(whole.arguments)
        return code, capsys.readouterr().err

    yield act
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()


def errors(said: str) -> list[str]:
    """The lines of errors; nothing else may look like one."""
    assert "Traceback" not in said and "Logging error" not in said, said
    return [line for line in said.splitlines() if " E " in line]


def fill(whole: Whole, folder: Path) -> int:
    """Make ``folder`` as it is before the command; returns the bytes that the command adds to it."""
    shutil.copytree(whole.before / "run", folder, dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    done = whole.before.with_name(f"{whole.before.name}-done") / "run"
    return sum(path.stat().st_size for path in done.rglob("*") if path.is_file()) - size


def used(folder: Path) -> int:
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_bsize


@pytest.mark.parametrize("stage", ["shard", "extract", "fuse"])
def test_a_full_disk_is_told_in_one_line_and_more_room_is_enough(stage, disk, call, tmp_path, request):
    whole, folder = request.getfixturevalue(stage), tmp_path / "run"
    disk("size=64m")
    added = fill(whole, folder)
    disk(f"size={used(folder) + added // 2 >> 10}k")
    code, said = call(whole)
    (line,) = errors(said)
    assert code == USAGE and "No space left" in line and f"run{os.sep}" in line and "free some space" in line
    kept = killing.outputs(folder)
    made = {path for path in kept.keys() & whole.outputs.keys() if kept[path] == whole.outputs[path]}
    assert made and not any(path.endswith(".tmp") for path in kept)
    disk("size=64m")
    assert call(whole)[0] == DONE and killing.outputs(folder) == whole.outputs


@pytest.mark.parametrize("stage", ["shard", "extract", "fuse"])
def test_a_folder_that_cannot_be_written_is_told_in_one_line(stage, disk, call, tmp_path, request):
    whole, folder = request.getfixturevalue(stage), tmp_path / "run"
    disk("size=64m")
    fill(whole, folder)
    disk("ro")
    code, said = call(whole)
    assert code == USAGE and "Read-only file system" in said and "Traceback" not in said
    assert len(said.strip().splitlines()) == 1 and "run" in said
    disk("rw")
    assert call(whole)[0] == DONE and killing.outputs(folder) == whole.outputs


@pytest.mark.processes
def test_a_full_disk_under_a_launcher_ends_with_code_2(extract, disk, tmp_path):
    folder = tmp_path / "run"
    disk("size=64m")
    added = fill(extract, folder)
    disk(f"size={used(folder) + added // 2 >> 10}k")
    arguments = ["run", *extract.arguments[1:], "run.processes=2"]
    (code,) = killing.ends(killing.start(tmp_path, arguments))
    said = (tmp_path / "said.0").read_text(encoding="utf-8")
    assert code == USAGE and "Traceback" not in said, said
    assert "run/features/" in said and "No space left" in said


def test_extraction_without_one_of_its_shards_names_it_and_keeps_the_others(extract, shard, call, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(extract.before / "run", folder)
    (folder / "shards/00005.tar").unlink()
    code, said = call(extract)
    (line,) = errors(said)
    assert code == USAGE and "00005.tar" in line and "run shard" in line
    assert len(list(folder.glob("features/clip/*.safetensors"))) >= 4
    assert call(shard)[0] == DONE
    assert call(extract)[0] == DONE and killing.outputs(folder) == extract.outputs


def test_fusion_without_a_shard_of_features_names_it(fuse, call, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(fuse.before / "run", folder)
    gone = folder / "features/voice/00000.safetensors"
    content = gone.read_bytes()
    gone.unlink()
    code, said = call(fuse)
    (line,) = errors(said)
    assert code == USAGE and "voice/00000.safetensors" in line and "run extract" in line
    gone.write_bytes(content)
    assert call(fuse)[0] == DONE and killing.outputs(folder) == fuse.outputs
