"""Two commands never work in one run folder, and a killed one locks nobody out."""

import errno
import signal
import subprocess
import sys

import pytest

from mer_dist import lock
from mer_dist.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from mer_dist.lock import held
with held(Path(sys.argv[1]), "fuse"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_command_is_told_who_is_at_work_and_a_kill_frees_the_folder(tmp_path):
    path = tmp_path / "status" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"mer-dist fuse \(process {process.pid} on "):
        with lock.held(path, "shard"):
            raise AssertionError("the lock is held by another process")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock.held(path, "shard"):
        assert "mer-dist shard" in path.read_text() and "fuse" not in path.read_text()


def test_a_full_disk_keeps_no_command_from_its_lock(full):
    with lock.held(full / "lock", "shard"), pytest.raises(UserError, match="another command is at work"):
        with lock.held(full / "lock", "fuse"):
            raise AssertionError("the lock is held above")


def test_where_there_are_no_locks_a_warning_takes_their_place(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock.logger, "propagate", True)
    with lock.held(tmp_path / "lock", "shard"):
        pass
    assert "No locks available" in caplog.text
