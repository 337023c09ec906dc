"""What DeepSpeed compiles has a place, also where HOME cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from mer_dist.training import caches


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Nothing set but a HOME of its own; what a test has set is gone after it."""
    for name in ("TORCH_EXTENSIONS_DIR", "TRITON_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        # Set first, so that what is set meanwhile is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def no_home(monkeypatch, tmp_path) -> None:
    """One that nobody can write to, not even root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))


def compiled_to() -> Path:
    """Where torch itself compiles an extension to, and makes the folder."""
    return Path(cpp_extension._get_build_directory("some_op", verbose=False))


def test_a_home_that_can_be_written_is_used_as_ever(tmp_path):
    caches.use_writable(tmp_path / "run" / "caches")
    assert not {"TORCH_EXTENSIONS_DIR", "TRITON_HOME", "TRITON_CACHE_DIR"} & os.environ.keys()
    assert compiled_to().is_relative_to(tmp_path / "home")
    assert not (tmp_path / "run").exists()


def test_in_the_place_of_a_home_that_cannot_be_written_a_folder_of_the_run_is_used(monkeypatch, tmp_path):
    no_home(monkeypatch, tmp_path)
    with pytest.raises(OSError):
        compiled_to()
    caches.use_writable(tmp_path / "run" / "caches")
    assert compiled_to().is_relative_to(tmp_path / "run" / "caches") and compiled_to().is_dir()
    for name in ("TRITON_HOME", "TRITON_CACHE_DIR"):
        assert Path(os.environ[name]).parent == tmp_path / "run" / "caches"


def killed_while_compiling(root: Path, by_us: bool) -> FileBaton:
    """A process that is killed while torch's mark lies there, in a turn of ours or of another program."""
    folder = root / "some_op"
    folder.mkdir(parents=True)
    mark = f"open({str(folder / 'lock')!r}, 'x'); os.kill(os.getpid(), 9)"
    turn = f"with caches._turn(Path({str(root)!r}), 'some_op'): {mark}" if by_us else mark
    source = f"import os; from pathlib import Path; from mer_dist.training import caches\n{turn}"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == -9
    return FileBaton(str(folder / "lock"))


def test_who_comes_after_a_compiler_that_was_killed_does_not_wait_for_it(tmp_path):
    baton = killed_while_compiling(tmp_path, by_us=True)
    assert not baton.try_acquire()
    for _ in range(2):  # and the turn after it was finished
        with caches._turn(tmp_path, "some_op"):
            assert baton.try_acquire()
            baton.release()


@pytest.mark.slow
def test_another_program_that_compiles_is_waited_for_until_it_must_have_been_killed(tmp_path, monkeypatch):
    baton = killed_while_compiling(tmp_path, by_us=False)
    monkeypatch.setattr(caches, "LONGEST", 1.0)
    begin = time.time() - baton_age(baton)
    with caches._turn(tmp_path, "some_op"):
        assert time.time() - begin >= 1 and baton.try_acquire()


def baton_age(baton: FileBaton) -> float:
    return time.time() - os.stat(baton.lock_file_path).st_mtime


def test_deepspeed_compiles_its_communication_in_a_turn(tmp_path, monkeypatch):
    """What is loaded there is what DeepSpeed takes when it joins the ranks."""
    turns = []

    @contextmanager
    def turn(root, name):
        turns.append((root, name))
        yield
        turns.append("left")

    def load(self, verbose):
        turns.append("loaded")

    monkeypatch.setattr(caches, "_turn", turn)
    monkeypatch.setattr("deepspeed.ops.op_builder.builder.OpBuilder.load", load)
    caches.compile_communication()
    root = caches.folders()["TORCH_EXTENSIONS_DIR"]
    assert turns == [(root, "deepspeed_shm_comm"), "loaded", "left"]


def test_without_any_home_nothing_is_written_to_a_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    caches.use_writable(tmp_path / "run" / "caches")
    assert compiled_to().is_relative_to(tmp_path / "run" / "caches") and not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"])
def test_a_place_that_was_named_is_kept_if_it_can_be_written_and_only_then(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path / "own"))
    caches.use_writable(tmp_path / "run" / "caches")
    assert os.environ[name] == str(tmp_path / "own")
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "own"))
    caches.use_writable(tmp_path / "run" / "caches")
    assert Path(os.environ[name]).parent == tmp_path / "run" / "caches"


def test_a_place_from_which_nothing_can_be_run_is_found(disk, tmp_path):
    disk("size=1m", "noexec")
    assert "noexec" in caches.fault(tmp_path / "run" / "cache")
    assert caches.fault(tmp_path / "cache") == ""
