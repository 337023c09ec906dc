import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from modes import as_umask, rights
from safetensors.numpy import save_file

from mer_dist.core.errors import UserError, mending
from mer_dist.storage import files

WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from mer_dist.storage import files
target, ready = Path(sys.argv[1]), Path(sys.argv[2])
writer = files.atomic_folder if sys.argv[3] == "folder" else files.atomic
with writer(target) as temporary:
    part = temporary / "part" if sys.argv[3] == "folder" else temporary
    part.write_text("half of the new")
    ready.touch()
    time.sleep(60)
"""


def kill_in_the_middle(target, tmp_path, kind: str) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_HANG, target, ready, kind])
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_an_exception_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(KeyError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    kill_in_the_middle(path, tmp_path, "file")
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_kill_in_the_middle_leaves_the_old_folder_and_the_next_try_replaces_it(tmp_path):
    folder = tmp_path / "made"
    with files.atomic_folder(folder) as temporary:
        (temporary / "part").write_text("old")
        (temporary / "gone").write_text("only in the old one")
    kill_in_the_middle(folder, tmp_path, "folder")
    assert (folder / "part").read_text() == "old" and (folder / "gone").exists()
    with files.atomic_folder(folder) as temporary:
        (temporary / "part").write_text("new")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"part": "new"}
    assert sorted(os.listdir(tmp_path)) == ["made", "ready"]


def test_an_old_folder_is_never_removed_in_place(tmp_path, monkeypatch):
    """Removed in place, a kill could leave a part of it beside its mark of completeness."""
    folder = tmp_path / "made"
    with files.atomic_folder(folder) as temporary:
        files.write_marker(temporary, "one")
    removed = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: removed.append(path.name))
    with files.atomic_folder(folder) as temporary:
        (temporary / "x").touch()
    assert "made" not in removed and files.read_marker(folder) is None


@pytest.mark.parametrize(
    ("umask", "of_file", "of_folder"), [(0o002, 0o664, 0o775), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_files_of_libraries_that_make_theirs_private_are_shared_as_the_umask_says(
    tmp_path, umask, of_file, of_folder
):
    own = tmp_path / "own"
    with as_umask(umask):
        with files.atomic_folder(tmp_path / "made") as folder:
            save_file({"a": np.zeros(2)}, folder / "model.safetensors")
            (folder / "inner").mkdir(mode=0o700)
            save_file({"a": np.zeros(2)}, folder / "inner" / "b.safetensors")
            shutil.copyfile(folder / "model.safetensors", own)
            own.chmod(0o400)
            shutil.copy2(own, folder / "copied")
            (folder / "linked").symlink_to(own)
            (folder / "plain").write_text("x")
        with files.atomic(tmp_path / "alone") as temporary:
            save_file({"a": np.zeros(2)}, temporary)
        files.write_text(tmp_path / "text", "x")
    assert rights(tmp_path / "made") == {
        "model.safetensors": of_file,
        "inner": of_folder,
        "inner/b.safetensors": of_file,
        "copied": of_file,
        "linked": 0o400,
        "plain": of_file,
    }
    assert {rights(tmp_path)[name] for name in ("alone", "text")} == {of_file}
    assert rights(tmp_path)["made"] == of_folder and rights(tmp_path)["own"] == 0o400


def test_files_of_somebody_else_keep_their_rights(tmp_path, monkeypatch):
    """Whoever goes on with a run of another of the group may read them, and cannot change their rights."""
    monkeypatch.setattr(files.os, "geteuid", lambda: os.getuid() + 1)
    with as_umask(0o002), files.atomic_folder(tmp_path / "made") as folder:
        save_file({"a": np.zeros(2)}, folder / "model.safetensors")
    assert rights(tmp_path / "made") == {"model.safetensors": 0o600}


def test_a_mark_counts_only_for_the_fingerprint_it_was_made_from(tmp_path):
    assert files.read_marker(tmp_path) is None
    files.write_marker(tmp_path, "abc", clips=3)
    assert files.read_marker(tmp_path, "abc")["clips"] == 3
    assert files.read_marker(tmp_path)["fingerprint"] == "abc"
    assert files.read_marker(tmp_path, "abd") is None
    for truncated in ("", '{"made_from": "abc"', "[]", "3"):
        (tmp_path / files.MARKER).write_text(truncated)
        assert files.read_marker(tmp_path, "abc") is None and files.read_marker(tmp_path) is None


def test_the_mark_of_a_complete_folder_is_there_or_the_error_says_that_it_went(tmp_path):
    files.write_marker(tmp_path, "abc", clips=3)
    assert files.required_marker(tmp_path)["clips"] == 3
    (tmp_path / files.MARKER).unlink()
    with pytest.raises(UserError, match=f"{tmp_path}: complete a moment ago, and now without its"):
        files.required_marker(tmp_path)


def test_equal_values_have_equal_fingerprints_in_every_process():
    code = (
        "from pathlib import Path; from mer_dist.storage.files import fingerprint_of;"
        "print(fingerprint_of({'b': [1, '怒'], 'a': {'x', 'y', 'z', 'w'}, 'p': Path('q')}))"
    )
    seen = set()
    for hash_seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        seen.add(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    assert len(seen) == 1
    assert files.fingerprint_of({"a": 1, "b": 2}) == files.fingerprint_of({"b": 2, "a": 1})
    different = [1, "1", True, None, [1], 1.5, {}]
    assert len({files.fingerprint_of(value) for value in different}) == len(different)


def test_a_folder_fingerprint_sees_every_changed_file(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("1")
    before = files.folder_fingerprint(tmp_path)
    assert files.folder_fingerprint(tmp_path) == before
    (tmp_path / "in" / "a").write_text("12")
    grown = files.folder_fingerprint(tmp_path)
    (tmp_path / "in" / "a").rename(tmp_path / "in" / "b")
    assert len({before, grown, files.folder_fingerprint(tmp_path)}) == 3
    assert files.size_and_mtime(None) is None and files.size_and_mtime(tmp_path / "absent") is None


def test_a_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_stays(tmp_path):
    for kind, name in (("folder", "b"), ("file", "a.txt")):
        (tmp_path / kind).mkdir()
        kill_in_the_middle(tmp_path / name, tmp_path / kind, kind)
    retired = tmp_path / ".b.old"
    retired.mkdir()
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    with files.atomic(tmp_path / "c.txt") as temporary:
        temporary.write_text("whole")
        elsewhere = tmp_path / ".d.txt.0badcafe-1.tmp"
        elsewhere.touch()
        files.remove_stale(tmp_path)
        assert temporary.exists() and elsewhere.exists() and not retired.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [elsewhere.name, "c.txt", "file", "folder"]
    os.utime(elsewhere, (0, 0))
    files.remove_stale(tmp_path)
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_not_the_temporary_one(tmp_path, error):
    with pytest.raises(OSError) as told, files.atomic(tmp_path / "a.json"):
        raise error
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "a.json"))
    assert mending(told.value).startswith(f"{tmp_path}/a.json: No space left on device; free some space")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as told, files.atomic(tmp_path / "a.json"):
        (tmp_path / "clip.mp4").read_bytes()
    assert told.value.filename == str(tmp_path / "clip.mp4")


def test_a_marker_that_was_changed_or_has_no_checksum_is_none(tmp_path):
    files.write_marker(tmp_path, "a", numbers={3: 0.1, 12: (1, None)})
    facts = {"fingerprint": "a", "numbers": {"3": 0.1, "12": [1, None]}}
    assert files.read_marker(tmp_path) == files.read_marker(tmp_path, "a") == facts
    path = tmp_path / files.MARKER
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert files.read_marker(tmp_path) is None
    files.write_json(path, facts)
    assert files.read_marker(tmp_path) is None


def test_files_are_compared_with_what_was_written_byte_for_byte(tmp_path):
    paths = [tmp_path / name for name in "abcd"]
    for path in paths:
        path.write_bytes(bytes(3 << 20))
    told = files.contents(paths)
    assert files.damaged(tmp_path, told) == []
    with open(paths[0], "r+b") as file:
        file.seek(2 << 20)
        file.write(b"\1")
    paths[1].write_bytes(b"short")
    paths[2].unlink()
    assert files.damaged(tmp_path, told) == [
        "a holds other bytes than were written",
        f"b has 5 bytes instead of {3 << 20}",
        "c is gone",
    ]
