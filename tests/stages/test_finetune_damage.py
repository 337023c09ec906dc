"""What lies there when a training goes on, and is damaged or gone: another is taken, or one line says why."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import underway

from mer_dist.cli import main
from mer_dist.config import config as configuration
from mer_dist.core.errors import DONE, USAGE, UserError
from mer_dist.core.log import logger
from mer_dist.crossfit import adapters
from mer_dist.interop.export_model import export
from mer_dist.stages import finetune
from mer_dist.stages.extract import extract
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training.checkpoint import Checkpoints, whole


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return underway.make(tmp_path_factory.mktemp("underway"))


@pytest.fixture
def run(job, tmp_path) -> Run:
    """A copy of the run folder in which the training stopped."""
    shutil.copytree(Run(underway.load(job).run.folder).folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory) -> Run:
    """The same training, gone on with to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(Run(underway.load(job).run.folder).folder, folder)
    finetune.finetune(underway.load(job, f"run.folder={folder}"))
    return Run(folder)


@pytest.fixture
def call(job, run, capsys) -> Iterator[Callable[[], tuple[int, list[str]]]]:
    """``mer-dist finetune``: exit code, and the lines of errors."""

    def act() -> tuple[int, list[str]]:
        code = main(["finetune", str(job), *underway.OPTIONS, f"run.folder={run.folder}"])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, [line for line in said.splitlines() if " E " in line]

    yield act
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be a link
    path.write_bytes(content)


def same_weights(one: Path, other: Path) -> bool:
    names = ("adapter_model.safetensors", "head.safetensors", "history.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_a_step_and_not_a_bit_of_the_result(call, run, undisturbed):
    older, newest = whole(underway.checkpoints(run))
    flip(newest / "alone.pt")
    assert call() == (DONE, [])
    log = run.log("finetune", 0).read_text()
    assert f"{newest} is damaged (alone.pt holds other bytes" in log and f"going on from {older}" in log
    assert same_weights(underway.adapter(run), underway.adapter(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "gone", "without its mark"])
def test_weights_of_the_best_epoch_that_are_damaged_or_gone_are_learned_again(call, run, undisturbed, how):
    """Both checkpoints go back to the same ones, so the copy starts again."""
    (best,) = underway.checkpoints(run).glob("best-*")
    if how == "flipped":
        flip(best / "head.safetensors")
    elif how == "gone":
        shutil.rmtree(best)
    else:
        (best / files.MARKER).unlink()
    assert call() == (DONE, [])
    log = run.log("finetune", 0).read_text()
    assert log.count(f"is damaged ({best.name}: ") == 2 and "this training starts again" in log
    assert same_weights(underway.adapter(run), underway.adapter(undisturbed))


@pytest.mark.slow
def test_weights_of_the_best_epoch_that_are_damaged_during_the_training_are_not_kept(job, run, monkeypatch):
    check, seen = Checkpoints.faults_of_best, []

    def spoiling(checkpoints, epoch):
        if seen:
            flip(checkpoints.best(epoch) / "head.safetensors")
        seen.append(epoch)
        return check(checkpoints, epoch)

    monkeypatch.setattr(Checkpoints, "faults_of_best", spoiling)
    with pytest.raises(UserError, match="head.safetensors holds other bytes"):
        finetune.finetune(underway.load(job, f"run.folder={run.folder}"))
    assert len(seen) == 2 and not underway.adapter(run).exists()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_not_taken_for_damaged(call, run, monkeypatch):
    """As of a network file system that hiccups; one that is passed over would go with the next save."""
    before, read = whole(underway.checkpoints(run)), files._crc32

    def failing(path):
        if path.name == "alone.pt":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(files, "_crc32", failing)
    code, (line,) = call()
    assert code == USAGE and str(before[-1] / "alone.pt") in line
    assert whole(underway.checkpoints(run)) == before and not underway.adapter(run).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors", "adapter_config.json"])
def test_a_flipped_bit_in_a_finished_copy_is_seen_before_it_makes_features(job, undisturbed, tmp_path, name):
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    config = underway.load(job, f"run.folder={run.folder}")
    configuration.save(config, run.config)
    flip(underway.adapter(run) / name)
    wanted = f"clip/all: {name} holds other bytes than were written; delete this folder and run finetune"
    with pytest.raises(UserError, match=wanted):
        extract(config)
    with pytest.raises(UserError, match=wanted):
        export(run, "clip@all", tmp_path / "model")
    assert not (tmp_path / "model").exists() and not run.features("clip@all").exists()


@pytest.mark.slow
def test_the_mark_of_a_finished_copy_tells_of_every_file(undisturbed):
    folder = underway.adapter(undisturbed)
    names = {path.name for path in folder.iterdir()} - {files.MARKER}
    assert files.read_marker(folder)["content"].keys() == names and "history.json" in names
    adapters.check_whole(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "cut short", "no file"])
def test_a_shard_that_is_lost_between_two_starts_is_named_and_the_checkpoint_stays(call, run, how):
    tar = run.shards / "00000.tar"
    content = tar.read_bytes()
    tar.unlink()
    if how == "cut short":
        tar.write_bytes(content[: len(content) // 3])
    elif how == "no file":
        tar.mkdir()
    before = whole(underway.checkpoints(run))
    code, (line,) = call()
    assert code == USAGE and str(tar) in line and "run shard" in line
    assert whole(underway.checkpoints(run)) == before and not underway.adapter(run).exists()
    if how == "no file":
        tar.rmdir()
    tar.write_bytes(content)
    assert call()[0] == DONE
