"""Two commands never work in one run folder, and a killed one locks nobody out."""

import errno
import signal
import subprocess
import sys
import threading
import time

import pytest

from mer_dist.core.errors import UserError
from mer_dist.storage import lock

HOLD = """
import sys, time
from pathlib import Path
from mer_dist.storage.lock import held
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
    told = []
    monkeypatch.setattr(lock.logger, "warning", lambda *words: told.append(words))
    with lock.shared(tmp_path / "lock", "extract", "job", 1):
        # Who is at work then, cannot be known.
        assert len(told) == 1
        assert lock.at_work(tmp_path / "lock", [0, 1]) is None


RANK = """
import sys, time
from pathlib import Path
from mer_dist.storage.lock import Busy, shared
path, job, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with shared(path, "extract", job, rank):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def rank(tmp_path):
    """Starts a rank of a job that holds its part of the lock at ``tmp_path/lock``."""
    started = []

    def start(job: str, number: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path / "lock", job, str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_ranks_of_a_job_share_the_lock_until_the_last_of_them_is_killed(tmp_path, rank):
    path = tmp_path / "lock"
    first, second = rank("job", 0), rank("job", 1)
    with lock.shared(path, "extract", "job", 2):
        assert lock.at_work(path, range(4)) == {0, 1, 2}
    for process, left in ((first, {1}), (second, set())):
        # A command, the ranks of another job, and a second job that is the same to the letter.
        for other in (
            lock.held(path, "fuse"),
            lock.shared(path, "extract", "other", 3),
            lock.shared(path, "extract", "job", 1),
        ):
            with pytest.raises(lock.Busy, match=r"mer-dist extract \(process \d+ on .* is at work"), other:
                raise AssertionError("ranks hold the lock")
        process.kill()
        process.wait()
        assert lock.at_work(path, range(4)) == left
    with lock.shared(path, "extract", "other", 0):
        pass
    with lock.held(path, "fuse"), pytest.raises(lock.Busy, match="mer-dist fuse"):
        with lock.shared(path, "extract", "job", 0):
            raise AssertionError("a command holds the lock")


@pytest.mark.slow
def test_a_rank_waits_for_the_last_of_another_job(tmp_path, rank):
    path, last = tmp_path / "lock", rank("before", 3)
    threading.Timer(0.7, last.kill).start()
    started = time.monotonic()
    with lock.shared(path, "extract", "now", 0, patience=30):
        assert 0.5 < time.monotonic() - started < 20
        assert lock.at_work(path, [0, 3]) == {0}


def test_a_full_disk_keeps_no_rank_from_the_lock_of_its_job(full):
    with lock.shared(full / "lock", "extract", "job", 0), lock.shared(full / "lock", "extract", "job", 1):
        with pytest.raises(lock.Busy), lock.held(full / "lock", "fuse"):
            raise AssertionError("ranks hold the lock")
