"""What DeepSpeed compiles has a place, also where HOME cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from mer_dist.dist import caches


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
    caches.settle(tmp_path / "run" / "caches")
    assert not {"TORCH_EXTENSIONS_DIR", "TRITON_HOME", "TRITON_CACHE_DIR"} & os.environ.keys()
    assert compiled_to().is_relative_to(tmp_path / "home")
    assert not (tmp_path / "run").exists()


def test_in_the_place_of_a_home_that_cannot_be_written_a_folder_of_the_run_is_used(monkeypatch, tmp_path):
    no_home(monkeypatch, tmp_path)
    with pytest.raises(OSError):
        compiled_to()
    caches.settle(tmp_path / "run" / "caches")
    assert compiled_to().is_relative_to(tmp_path / "run" / "caches") and compiled_to().is_dir()
    for name in ("TRITON_HOME", "TRITON_CACHE_DIR"):
        assert Path(os.environ[name]).parent == tmp_path / "run" / "caches"


def test_the_lock_of_a_compiler_that_was_killed_is_taken_away_before_ranks_wait_for_it(monkeypatch, tmp_path):
    no_home(monkeypatch, tmp_path)
    instead = tmp_path / "run" / "caches"
    caches.unlock(instead)
    caches.settle(instead)
    baton = FileBaton(str(compiled_to() / "lock"))
    assert baton.try_acquire() and not baton.try_acquire()
    (compiled_to() / "made.so").touch()
    caches.unlock(instead)
    assert baton.try_acquire() and (compiled_to() / "made.so").exists()


def test_without_any_home_nothing_is_written_to_a_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    caches.settle(tmp_path / "run" / "caches")
    assert compiled_to().is_relative_to(tmp_path / "run" / "caches") and not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"])
def test_a_place_that_was_named_is_kept_if_it_can_be_written_and_only_then(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path / "own"))
    caches.settle(tmp_path / "run" / "caches")
    assert os.environ[name] == str(tmp_path / "own")
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "own"))
    caches.settle(tmp_path / "run" / "caches")
    assert Path(os.environ[name]).parent == tmp_path / "run" / "caches"


def test_a_place_from_which_nothing_can_be_run_is_found(disk, tmp_path):
    disk("size=1m", "noexec")
    assert "noexec" in caches.fault(tmp_path / "run" / "cache")
    assert caches.fault(tmp_path / "cache") == ""
