import signal
import subprocess
import sys

import numpy as np
import pytest

from mer_dist.core.errors import UserError
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.storage import files


def make(names, width=3, lengths=None, seed=0, **facts) -> FeatureSet:
    random = np.random.default_rng(seed)
    frame = offsets = None
    if lengths is not None:
        offsets = np.cumsum([0, *lengths])
        frame = random.normal(size=(offsets[-1], width)).astype(np.float32)
    return FeatureSet(
        modality="video",
        names=list(names),
        frame=frame,
        offsets=offsets,
        utterance=random.normal(size=(len(names), width)).astype(np.float32),
        **facts,
    )


def test_a_set_of_several_shards_comes_back_whole(tmp_path):
    first = make(["b", "怒"], lengths=[2, 5], missing={"x": "no face"})
    second = make(["a"], lengths=[1], seed=1)
    store.write_shard(tmp_path / "00000.safetensors", first, fingerprint="f1")
    store.write_shard(tmp_path / "00001.safetensors", second)
    store.describe(tmp_path, modality="video", width=3)
    loaded = store.load(tmp_path)
    assert loaded.names == ["b", "怒", "a"] and loaded.missing == {"x": "no face"}
    np.testing.assert_array_equal(loaded.utterance, [*first.utterance, *second.utterance])
    np.testing.assert_array_equal(loaded.frame, np.concatenate([first.frame, second.frame]))
    assert loaded.offsets.tolist() == [0, 2, 7, 8]
    assert store.stored_fingerprint(tmp_path / "00000.safetensors") == "f1"
    assert store.stored_fingerprint(tmp_path / "00002.safetensors") is None
    assert store.description(tmp_path) == {"modality": "video", "width": 3}


def test_the_frames_of_one_clip_are_its_stretch_and_a_set_without_frames_says_so():
    both = make(["a", "b"], lengths=[2, 5])
    np.testing.assert_array_equal(both.frames_of(1), both.frame[2:7])
    for call in (make(["a"]).ragged, lambda: make(["a"]).frames_of(0)):
        with pytest.raises(UserError, match="no frame level; extract with frame_level: true"):
            call()


def test_a_set_comes_in_the_order_it_is_asked_for_and_the_other_clips_after(tmp_path):
    write = store.write_shard
    write(tmp_path / "00000.safetensors", make(["d", "b"], lengths=[2, 5]))
    write(tmp_path / "00001.safetensors", make([], lengths=[]))
    write(tmp_path / "00002.safetensors", make(["c", "x", "a"], lengths=[1, 0, 3], seed=1))
    store.describe(tmp_path, modality="video", width=3)
    plain, loaded = store.load(tmp_path), store.load(tmp_path, order=["a", "b", "nobody", "c", "d"])
    assert plain.names == ["d", "b", "c", "x", "a"] and loaded.names == ["a", "b", "c", "d", "x"]
    np.testing.assert_array_equal(loaded.utterance, plain.utterances(loaded.names)[0])
    for name in plain.names:
        spans = [
            of_set.frame[slice(*of_set.offsets[of_set.names.index(name) :][:2])] for of_set in (plain, loaded)
        ]
        np.testing.assert_array_equal(*spans)
    assert store.load(tmp_path, frames=False, order=["a"]).frame is None
    ordered, valid = loaded.utterances(["a", "b", "c"])
    assert valid.all() and np.shares_memory(ordered, loaded.utterance)
    values, valid = loaded.utterances(["a", "nobody", "b"])
    assert valid.tolist() == [True, False, True] and not values[1].any()
    np.testing.assert_array_equal(values[[0, 2]], loaded.utterance[:2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_loaded_has_the_type_it_was_stored_in_and_is_free_of_the_file(tmp_path, dtype):
    made = make(["a", "b"], lengths=[2, 1])
    made.utterance, made.frame = made.utterance.astype(dtype), made.frame.astype(dtype)
    path = tmp_path / "00000.safetensors"
    store.write_shard(path, made)
    loaded = store.join([store.StoredShard.open(path)])
    path.write_bytes(b"")
    loaded.utterance[0] += 0
    np.testing.assert_array_equal(loaded.utterance, made.utterance)
    np.testing.assert_array_equal(loaded.frame, made.frame)
    assert loaded.utterance.dtype == loaded.frame.dtype == dtype
    assert loaded.utterances(["a"])[0].dtype == loaded.tokens(["a"], 1)[0].dtype == np.float32


def test_vectors_are_joined_by_name_and_a_missing_clip_is_a_mask():
    made = make(["b", "a", "c"])
    values, valid = made.utterances(["a", "nobody", "c"])
    assert valid.tolist() == [True, False, True]
    np.testing.assert_array_equal(values[[0, 2]], made.utterance[[1, 2]])


def test_a_clip_of_zeros_is_present_while_a_missing_one_is_not():
    made = make(["zeros"])
    made.utterance[:] = 0
    assert made.utterances(["zeros", "missing"])[1].tolist() == [True, False]


@pytest.mark.parametrize("length", [0, 1, 3, 7, 8, 49, 100, 101])
def test_ragged_frames_are_pooled_to_means_of_equal_stretches(length):
    made = make(["before", "clip"], lengths=[5, length])
    values, mask = made.tokens(["clip", "nobody"], 7)
    assert values.shape == (2, 7, 3) and values.dtype == np.float32
    assert mask.sum(1).tolist() == [min(length, 7), 0]
    assert np.isfinite(values).all()
    frames = made.frame[5:]
    if length <= 7:
        np.testing.assert_array_equal(values[0, :length], frames)
    if length in (7, 49):
        wanted = frames.reshape(7, -1, 3).mean(1)
        np.testing.assert_allclose(values[0], wanted, atol=1e-6)
    if length == 101:
        np.testing.assert_allclose(values[0, 0], frames[:14].mean(0), atol=1e-6)
        np.testing.assert_allclose(values[0, 6], frames[86:].mean(0), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_pooling_all_clips_at_once_gives_the_bits_of_each_clip_alone(dtype):
    random = np.random.default_rng(3)
    lengths = random.integers(0, 40, 60)
    names = [f"clip{row}" for row in range(60)]
    made = make(names, lengths=lengths)
    made.frame = made.frame.astype(dtype)
    wanted = [*random.permutation(names)[:50].tolist(), "nobody"]
    values, mask = made.tokens(wanted, 6)
    for row, name in enumerate(wanted[:50]):
        start, stop = made.offsets[names.index(name) :][:2]
        parts = min(6, stop - start)
        edges = np.linspace(start, stop, parts + 1).astype(int)
        for token in range(parts):
            stretch = made.frame[edges[token] : edges[token + 1]].astype(np.float32)
            np.testing.assert_array_equal(values[row, token], stretch.mean(0))
        assert mask[row].tolist() == [True] * parts + [False] * (6 - parts)
        assert not values[row, parts:].any()
    assert not mask[50].any()


def test_frame_level_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="frame_level: true"):
        make(["a"]).tokens(["a"], 4)


def test_a_clip_that_is_there_twice_is_refused():
    with pytest.raises(UserError, match="twice, for example b"):
        store.join([make(["a", "b"]), make(["b", "c"])])


def test_parts_of_another_width_and_no_parts_are_refused():
    with pytest.raises(UserError, match="width 3; video of width 4"):
        store.join([make(["a"]), make(["b"], width=4)])
    with pytest.raises(UserError, match="run extract first"):
        store.join([])


def test_a_part_of_a_set_keeps_the_frames_of_its_clips():
    made = make(["a", "b", "c"], lengths=[2, 3, 4], missing={"x": "torn", "y": "torn"})
    part = made.only({"c", "a", "x"})
    assert part.names == ["a", "c"] and part.missing == {"x": "torn"}
    np.testing.assert_array_equal(part.frame, np.concatenate([made.frame[:2], made.frame[5:]]))
    assert part.offsets.tolist() == [0, 2, 6]
    assert made.only(set()).frame.shape == (0, 3)


def test_mapping_shifts_then_scales_both_levels():
    made = make(["a", "b"], lengths=[1, 2])
    mapped = made.mapped(np.array([1.0, 2, 3]), np.array([2.0, 2, 2]))
    np.testing.assert_allclose(mapped.utterance * 2 + [1, 2, 3], made.utterance, atol=1e-6)
    np.testing.assert_allclose(mapped.frame * 2 + [1, 2, 3], made.frame, atol=1e-6)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named_with_what_to_do(tmp_path, keep):
    path = tmp_path / "00000.safetensors"
    store.write_shard(path, make(["a", "b"], lengths=[2, 5]), fingerprint="f")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="00000.safetensors: not readable"):
        store.StoredShard.open(path)
    assert store.stored_fingerprint(path) is None


def test_a_kill_while_a_shard_is_written_leaves_nothing_that_is_not_swept(tmp_path):
    """The system ends the process in the middle of the write, at the limit of a file's size."""
    script = (
        "import pathlib, resource, signal, sys; import numpy as np; from mer_dist.features import store as features\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "shard = features.FeatureSet(modality='text', names=['a'], utterance=np.ones((1, 999), np.float32))\n"
        "features.write_shard(pathlib.Path(sys.argv[1]), shard)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "00000.safetensors"], check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert len(list(tmp_path.iterdir())) == 1
    files.remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_short_while_it_is_read_is_named_too(tmp_path):
    path = tmp_path / "00000.safetensors"
    store.write_shard(path, make(["a", "b"], lengths=[2, 5]))
    opened = store.StoredShard.open(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="00000.safetensors: not readable"):
        _ = opened.utterance


def test_a_folder_without_a_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="no feature set there"):
        store.load(tmp_path)
