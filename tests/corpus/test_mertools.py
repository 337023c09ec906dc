"""The challenge baseline's label files, read without running what they hold."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from mer_dist.core.errors import UserError
from mer_dist.corpus import mertools


def test_labels_of_the_baseline_are_read(tmp_path):
    train = {"a": {"emo": "happy", "val": -1.5}, "样本": {"emo": "sad", "val": np.float32(0.5)}}
    test = {"b": {"emo": np.int64(3), "val": -10}}
    np.savez(tmp_path / "label.npz", train_corpus=train, test1_corpus=test, other=np.ones(2))
    found = mertools.read_labels(tmp_path / "label.npz")
    assert found == {"train_corpus": train, "test1_corpus": test}
    assert type(found["test1_corpus"]["b"]["emo"]) is int


def test_a_published_label_file_is_read(shared):
    found = mertools.read_labels(shared / "data" / "meld" / "label.npz")
    assert sum(map(len, found.values())) == 13708
    every = [entry for corpus in found.values() for entry in corpus.values()]
    assert {entry["emo"] for entry in every} == set(range(7)) and {entry["val"] for entry in every} == {-10}
    assert set(found) == {"train_corpus", "val_corpus", "test_corpus"}


class _Command:
    def __reduce__(self):
        return os.system, ("touch was-run",)


class _Class:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("planted", [_Command(), _Class(), print, pickle.PickleBuffer])
def test_code_in_a_label_file_is_refused_and_not_run(tmp_path, monkeypatch, planted):
    monkeypatch.chdir(tmp_path)
    np.savez("label.npz", train_corpus=np.array({"a": {"emo": planted}}, dtype=object))
    with pytest.raises(UserError, match="not a plain value"):
        mertools.read_labels(tmp_path / "label.npz")
    assert os.listdir(tmp_path) == ["label.npz"]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "plain.npz", train_corpus=np.ones(3))
    for name in ("text.npz", "plain.npz", "absent.npz"):
        with pytest.raises(UserError, match=name):
            mertools.read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html>", "this is no .npy file: it begins with '<!DOCTYPE html>'"),
        (b"404: Not Found", "this is no .npy file: it begins with '404: Not Found'"),
        (b"\x80\x04\x95", "this is no .npy file, but a pickle, which can run code and is not loaded"),
        (b"PK\x03\x04", "this is no .npy file, but a zip archive, as .npz"),
        (b"\xff\xd8\xff\xe0", "this is no .npy file: it begins with b'\\xff\\xd8\\xff\\xe0'"),
        (b"", "this is no .npy file: it is empty"),
    ],
)
def test_what_is_no_npy_file_is_told_by_how_it_begins_and_never_as_something_to_unpickle(
    tmp_path, content, words
):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError) as error:
        mertools.read_feature(tmp_path / "a.npy")
    assert words in str(error.value) and "allow_pickle" not in str(error.value)


def test_arrays_of_objects_and_files_that_break_off_say_what_to_do(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.0, None], object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects .*, not numbers; save it again as float32"):
        mertools.read_feature(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.ones(100))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="cut off"):
        mertools.read_feature(tmp_path / "b.npy")


@pytest.mark.parametrize(
    "names",
    [
        [f"{round(row / 30, 3)}" for row in range(45)],
        [f"{row / 4:g}" for row in range(12)],
        [f"t{row / 2}s" for row in range(25)],
        [f"clip7.{row}" for row in range(1, 13)],
        [f"frame_{row}" for row in range(1, 13)],
        [f"v1.2_{row}" for row in range(1, 13)],
        [f"{row:04d}.{row % 2:02d}" for row in range(12)],
    ],
    ids=lambda names: names[1],
)
def test_frames_come_by_their_number_or_their_time(tmp_path, names):
    for row, name in enumerate(names):
        np.save(tmp_path / f"{name}.npy", np.full(3, row + 1, np.float32))
    frames, faults = mertools.read_frames(tmp_path)
    assert frames[:, 0].tolist() == list(range(1, len(names) + 1)) and not faults
