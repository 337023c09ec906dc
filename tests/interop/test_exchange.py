"""Features in the challenge baseline's layout, in and out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mer_dist.core.errors import UserError
from mer_dist.core.log import setup
from mer_dist.features import store
from mer_dist.interop.npy import export_npy, import_npy, import_sets
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


def write(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def test_vectors_come_back_as_they_went_in(run, tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"c{row}": random.normal(size=4).astype(np.float16) for row in range(5)}
    import_npy(run, "face", "video", write(tmp_path / "in", **arrays))
    export_npy(run, "face", tmp_path / "out", "UTT")
    found = {path.stem: np.load(path) for path in (tmp_path / "out" / "face-UTT").iterdir()}
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert store.description(run.features("face"))["imported"] is True
    with pytest.raises(UserError, match="no frame level"):
        export_npy(run, "face", tmp_path / "out", "FRA")


def test_sequences_keep_their_frames_and_give_their_mean(run, tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"c{row}": random.normal(size=(row + 1, 4)).astype(np.float32) for row in range(4)}
    import_npy(run, "voice", "audio", write(tmp_path / "in", **arrays))
    found = store.load(run.features("voice"))
    values, _ = found.utterances(list(arrays))
    assert np.allclose(values, [array.mean(0) for array in arrays.values()], atol=1e-6)
    export_npy(run, "voice", tmp_path / "out", "FRA")
    for name, array in arrays.items():
        assert np.array_equal(np.load(tmp_path / "out" / "voice-FRA" / f"{name}.npy"), array)


def test_a_file_that_cannot_be_used_costs_its_clip_and_says_why(run, tmp_path):
    good = {f"c{row}": np.full(3, row + 1.0) for row in range(3)}
    folder = write(
        tmp_path / "in",
        **good,
        nan=np.array([1.0, np.nan, 2]),
        wide=np.ones(4),
        zero=np.zeros(3),
        cube=np.ones((2, 2, 3)),
        point=np.float32(1),
        none=np.ones((0, 3)),
        thing=np.array([{"a": 1}], dtype=object),
        word=np.array(["a", "b", "c"]),
        wider=np.ones(3, np.longdouble),
        day=np.array([1, 2, 3], "M8[s]"),
        record=np.array([(1.0, 2.0, 3.0)], dtype="f4,f4,f4"),
    )
    (folder / "torn.npy").write_bytes((folder / "c0.npy").read_bytes()[:90])
    (folder / "empty.npy").touch()
    good["two.dots"], good["-x07"] = good["c0"], good["c1"]
    (folder / "two.dots.npy").write_bytes((folder / "c0.npy").read_bytes())
    (folder / "-x07.mp4.npy").write_bytes((folder / "c1.npy").read_bytes())
    (folder / ".hidden.npy").write_bytes((folder / "c1.npy").read_bytes())
    Path(os.fsdecode(bytes(folder) + b"/no-\xff-text.npy")).write_bytes((folder / "c1.npy").read_bytes())
    import_npy(run, "line", "text", folder)
    why = {row.name: row.reason for row in quarantine.read(run.quarantine)}
    assert why.keys() == {
        "nan",
        "wide",
        "zero",
        "cube",
        "none",
        "thing",
        "word",
        "wider",
        "day",
        "record",
        "torn",
        "empty",
        "point",
        ".hidden",
        "no-\\udcff-text",
    }
    assert all((row.stage, row.lost) == ("import", "text") for row in quarantine.read(run.quarantine))
    assert "1 values are NaN" in why["nan"] and "most files have 3" in why["wide"]
    assert "all zeros" in why["zero"] and "save it as float32 or float64" in why["wider"]
    found = store.load(run.features("line"))
    assert set(found.names) == set(good) and found.missing.keys() == why.keys()


def test_problems_of_one_set_stay_when_another_is_imported(run, tmp_path):
    for name in ("a", "b"):
        folder = write(tmp_path / name, ok=np.ones(2), bad=np.array([np.inf, 1]))
        import_npy(run, name, "audio", folder)
    assert len(quarantine.read(run.quarantine)) == 2
    import_npy(run, "a", "audio", write(tmp_path / "c", ok=np.ones(2)))
    assert [(row.part, row.reason.split(":")[0]) for row in quarantine.read(run.quarantine)] == [
        ("b", "features b")
    ]


def test_the_same_files_give_the_same_fingerprint_and_other_values_another(run, tmp_path):
    folder = write(tmp_path / "in", a=np.ones(2), b=np.ones(2))
    shard = run.features("x") / "00000.safetensors"
    seen = []
    for value in (1, 1, 2):
        write(folder, b=np.full(2, value))
        import_npy(run, "x", "text", folder)
        seen.append(store.stored_fingerprint(shard))
    assert seen[0] == seen[1] != seen[2]


def test_a_folder_or_name_that_cannot_be_used_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="no .npy file"):
        import_npy(run, "x", "text", tmp_path)
    with pytest.raises(UserError, match="a name is letters"):
        import_npy(run, "../x", "text", tmp_path)
    with pytest.raises(UserError, match="audio, video, text"):
        import_npy(run, "x", "smell", tmp_path)
    with pytest.raises(UserError, match="UTT, FRA"):
        export_npy(run, "x", tmp_path, "ALL")


def values(count: int, *shape: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"c{row}": random.normal(size=shape).astype(np.float32) for row in range(count)}


def test_columns_are_the_vectors_that_the_baseline_reads(run, tmp_path):
    columns = values(5, 16, 1)
    import_npy(run, "x", "video", write(tmp_path / "in", **columns, row=np.ones(16, np.float32)))
    found = store.load(run.features("x"))
    assert found.width == 16 and found.frame is None
    assert np.array_equal(found.utterances([*columns])[0], np.stack([*columns.values()])[..., 0])
    # One that is of another length than most is a broken one.
    import_npy(run, "y", "video", write(tmp_path / "other", **columns, short=np.ones((9, 1))))
    assert store.load(run.features("y")).missing == {"short": "9 values a vector, most files have 16"}


def test_columns_of_many_lengths_are_sequences_of_one_value(run, tmp_path):
    pitch = {f"c{row}": np.arange(1, row + 9, dtype=np.float32)[:, None] for row in range(6)}
    import_npy(run, "x", "audio", write(tmp_path / "in", **pitch))
    found = store.load(run.features("x"))
    assert found.width == 1 and not found.missing and np.diff(found.offsets).tolist() == [*range(8, 14)]


@pytest.mark.parametrize(
    ("shape", "frames"), [((1, 7, 4), 7), ((7, 1, 4), 7), ((1, 1, 4), 1), ((1, 7, 1, 4), 7), ((7, 4, 1), 7)]
)
def test_dimensions_of_one_are_dropped(run, tmp_path, shape, frames):
    arrays = values(3, *shape)
    import_npy(run, "x", "text", write(tmp_path / "in", **arrays))
    found = store.load(run.features("x"))
    assert not found.missing and found.frame.shape == (3 * frames, 4)
    expected = [array.reshape(frames, 4) for array in arrays.values()]
    assert np.array_equal(found.frame, np.concatenate(expected))


def test_a_folder_of_one_file_a_frame_is_a_clip(run, tmp_path):
    frames = values(12, 4)
    for clip, count in (("one", 12), ("ep01.s03", 3), ("part", 4), ("none", 2), ("empty", 0)):
        (tmp_path / "in" / clip).mkdir(parents=True, exist_ok=True)
        # 10 comes after 2, as their numbers do.
        write(
            tmp_path / "in" / clip,
            **{f"f{row}": frames[f"c{row}"].reshape(-1, *[1] * (row % 2)) for row in range(count)},
        )
    write(tmp_path / "in" / "part", f1=np.zeros(4), f2=np.full(4, np.nan))
    write(tmp_path / "in" / "none", f0=np.zeros(4), f1=np.zeros(4))
    assert import_npy(run, "x", "video", tmp_path / "in")[0] == 2
    found = store.load(run.features("x"))
    assert set(found.names) == {"one", "ep01.s03", "part"}
    own = {name: found.frame[slice(*found.offsets[row : row + 2])] for row, name in enumerate(found.names)}
    assert np.array_equal(own["one"], np.stack([*frames.values()]))
    assert np.array_equal(own["part"], np.stack([frames["c0"], frames["c3"]]))
    zeros = "all zeros: the baseline's marker of a clip without this modality"
    assert {(row.name, row.lost): row.reason for row in quarantine.read(run.quarantine)} == {
        ("none", "video"): f"features x: no frame of its folder can be used; f0.npy: {zeros}",
        ("empty", "video"): "features x: its folder holds no .npy file",
        ("part", "part of video"): f"features x: 2 faults in its frames, which are left out: f1.npy: {zeros}",
    }


def test_a_whole_folder_of_sets_is_taken_at_once(run, tmp_path, capsys):
    setup("test")
    for set_name, width in (("hubert-UTT", 3), ("bert-UTT", 2), ("clip-FRA", 4)):
        (tmp_path / "features" / set_name).mkdir(parents=True)
        write(tmp_path / "features" / set_name, **values(4, *([5] if "FRA" in set_name else []), width))
    folder = str(tmp_path / "features")
    import_sets(run, [folder], ["hubert-UTT=audio", "clip-FRA=video"])
    found = {path.name: store.load(path) for path in run.features("x").parent.iterdir()}
    assert {name: (told.modality, told.width, len(told.names)) for name, told in found.items()} == {
        "hubert-UTT": ("audio", 3, 4),
        "clip-FRA": ("video", 4, 4),
    }
    assert "not taken, as --modality does not name them: bert-UTT" in capsys.readouterr().err
    for told in (["audio"], ["nowhere=audio"], ["hubert-UTT=audio", "video"]):
        with pytest.raises(UserError, match="--modality bert-UTT=audio; it has sets: bert-UTT, clip-FRA"):
            import_sets(run, [folder], told)
    with pytest.raises(UserError, match="it has no folder in it"):
        import_sets(run, [f"{folder}/bert-UTT"], ["text"])
    # With a name it would be one set, in which every set is a clip.
    with pytest.raises(UserError, match="it holds sets, as bert-UTT, and not clips"):
        import_sets(run, ["x", folder], ["audio"])
    # All is looked at before anything is replaced.
    with pytest.raises(UserError, match="must be one of: audio, video, text"):
        import_sets(run, [folder], ["bert-UTT=text", "clip-FRA=picture"])
    assert not run.features("bert-UTT").exists()
    for source, told, words in (
        (["x", folder], ["audio", "text"], "one modality"),
        (["x", "y", folder], ["audio"], "SET FOLDER"),
    ):
        with pytest.raises(UserError, match=words):
            import_sets(run, source, told)


def test_files_whose_names_are_one_clip_are_refused_with_both(run, tmp_path):
    spelled_twice = {"cafe\u0301": np.ones(3), "caf\u00e9": np.ones(3)}
    folder = write(tmp_path / "in", **spelled_twice)
    with pytest.raises(UserError, match="'caf\u00e9' occurs twice: cafe\u0301.npy and caf\u00e9.npy"):
        import_npy(run, "x", "text", folder)
    (folder / "caf\u00e9.npy").unlink()
    import_npy(run, "x", "text", folder)
    assert store.load(run.features("x")).names == ["caf\u00e9"]


def test_what_macos_leaves_beside_a_file_is_no_clip(run, tmp_path):
    folder = write(tmp_path / "in", a=np.ones(3), b=np.arange(3.0))
    (folder / "._a.npy").write_bytes(b"\0\5\x16\7")
    assert import_npy(run, "x", "audio", folder) == (0, 2)


def test_files_that_are_not_taken_are_named_and_capitals_are_read(run, tmp_path, caplog):
    folder = write(tmp_path / "in", a=np.ones(3), b=np.ones(3))
    (folder / "b.npy").rename(folder / "b.NPY")
    for name in ("c.npz", "d.npz", "e.pt", "README", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    import_npy(run, "x", "text", folder)
    assert store.load(run.features("x")).names == ["a", "b"]
    assert "not imported: 1 without a suffix (as README), 2 .npz (as c.npz), 1 .pt (as e.pt)" in caplog.text
    (folder / "a.npy").unlink()
    (folder / "b.NPY").unlink()
    with pytest.raises(UserError, match=r"no .npy file there can be used; it has .*2 .npz \(as c.npz\)"):
        import_npy(run, "y", "text", folder)


def test_what_may_be_meant_otherwise_is_told(run, tmp_path, caplog):
    import_npy(run, "x", "text", write(tmp_path / "clips", a=np.ones((2, 3)), b=np.ones((4, 3))))
    import_npy(run, "x", "text", write(tmp_path / "vector", a=np.ones(3)))
    assert "is taken as one" not in caplog.text
    import_npy(run, "x", "text", write(tmp_path / "stacked", features=np.ones((9, 3))))
    assert "its only array, features.npy, is taken as one clip of many frames" in caplog.text
    for clip, frames in (("one", ("ann", "bob")), ("two", ("eve",))):
        (tmp_path / "named" / clip).mkdir(parents=True)
        write(tmp_path / "named" / clip, **dict.fromkeys(frames, np.ones(3)))
    import_npy(run, "x", "text", tmp_path / "named")
    assert "each folder in it is taken as one clip" in caplog.text
    for part in ("train", "Test"):
        (tmp_path / "parts" / part).mkdir(parents=True)
        write(tmp_path / "parts" / part, c1=np.ones(3))
    with pytest.raises(UserError, match="Test, train are parts of a corpus and not clips; put the files"):
        import_npy(run, "x", "text", tmp_path / "parts")


def filled(lengths, whole=40, width=6, front=False):
    """Sequences of these lengths, filled up with zeros to one, as tools that stack them leave them."""
    random, arrays = np.random.default_rng(0), {}
    for row, length in enumerate(lengths):
        own = random.normal(size=(length, width)).astype(np.float32)
        own[length // 2] = 0  # a frame without a feature stays where it is
        before = (whole - length) * front
        arrays[f"c{row:02d}"] = np.pad(own, [(before, whole - length - before), (0, 0)])
    return arrays


@pytest.mark.parametrize("front", [False, True])
def test_zeros_that_fill_sequences_up_to_one_length_are_no_frames(run, tmp_path, capsys, front):
    lengths = [5, 40, 12, 30, 7, 21]
    arrays = filled(lengths, front=front)
    setup("import")
    import_npy(run, "voice", "audio", write(tmp_path / "in", **arrays))
    side = "begin" if front else "end"
    said = f"5 of 6 sequences {side} in rows of zeros; these are padding and are left out, 125 of 240 rows in all"
    assert said in capsys.readouterr().err
    found = store.load(run.features("voice"))
    for row, (length, array) in enumerate(zip(lengths, arrays.values(), strict=True)):
        own = array[40 - length :] if front else array[:length]
        assert np.array_equal(found.frames_of(row), own) and len(own) == length
        assert found.utterance[row] == pytest.approx(own.mean(0), abs=1e-6)


def test_a_frame_of_zeros_at_the_end_of_one_clip_is_a_frame(run, tmp_path, capsys):
    setup("import")
    import_npy(run, "voice", "audio", write(tmp_path / "in", **filled([5, 4, 5, 5], 5)))
    assert store.load(run.features("voice")).offsets.tolist() == [0, 5, 10, 15, 20]
    assert "padding" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({f"c{t}": np.ones((13, t)) for t in (40, 52, 61)}, "all have 13 rows, and 40 to 61 columns"),
        (
            {f"c{n}": np.ones((16, 44 + (n % 4 == 0))) for n in range(12)},
            "all have 16 rows, and 44 to 45 columns",
        ),
        (
            {name: array.T for name, array in filled([5, 40, 12, 30, 7]).items()},
            "end in columns of zeros, up to 35 of 40",
        ),
        (
            {name: array.T for name, array in filled([5, 40, 12, 30, 7], front=True).items()},
            "begin in columns of zeros, up to 35 of 40",
        ),
    ],
)
def test_arrays_whose_second_axis_is_time_are_refused(run, tmp_path, words, arrays):
    with pytest.raises(
        UserError, match=rf"in: the arrays of \d+ clips, as c.*, are \(D, T\).*{words}.*array.T"
    ):
        import_npy(run, "voice", "audio", write(tmp_path / "in", **arrays))
    assert not run.features("voice").exists()


def test_features_that_are_nothing_in_some_clips_and_single_odd_files_are_no_other_axis(run, tmp_path):
    """The last muscles of a face may never move in a clip; all clips may be as long, and one of another set."""
    arrays = {name: array + 0 for name, array in filled([20] * 9, 20).items()}
    for row, array in enumerate(arrays.values()):
        array[:, array.shape[1] - row % 3 :] = 0
    assert import_npy(run, "face", "video", write(tmp_path / "in", **arrays, odd=np.ones((20, 7))))[0] == 1
    found = store.load(run.features("face"))
    assert found.width == 6 and len(found.frame) == 9 * 20


def test_clips_that_a_set_loses_when_it_is_imported_again_are_told(run, tmp_path, capsys):
    arrays = {f"c{row:02d}": np.full(3, row + 1.0) for row in range(60)}
    setup("import")
    import_npy(run, "face", "video", write(tmp_path / "all", **arrays))
    import_npy(run, "face", "video", write(tmp_path / "all", **arrays, more=np.ones(3)))
    assert "before" not in capsys.readouterr().err
    few = write(tmp_path / "few", **{name: arrays[name] for name in ("c00", "c01", "c02", "c59")})
    import_npy(run, "face", "video", few)
    told = f"face: 57 of the 61 clips that it had before have no file in {few} and are no longer in it, for example c03"
    assert told in capsys.readouterr().err
    assert len(store.load(run.features("face")).names) == 4


def with_gaps(width=16, used=None, clips=6):
    """Sequences of 50 frames, of which 25 in the middle and the first of one clip have no vector."""
    random, arrays = np.random.default_rng(0), {}
    for row in range(clips):
        own = (random.normal(size=(50, width)) + 3).astype(np.float32)
        own[:, used or width :] = 0
        own[10:35] = 0
        arrays[f"c{row}"] = own
    arrays["c0"][0] = 0
    arrays["whole"] = np.full((50, width), 3, np.float32)
    arrays["whole"][:, used or width :] = 0
    return arrays


def test_frames_without_a_vector_within_a_sequence_are_left_out_and_counted(run, tmp_path, capsys):
    arrays = with_gaps()
    setup("import")
    assert import_npy(run, "face", "video", write(tmp_path / "in", **arrays)) == (0, 7)
    told = "6 of 7 sequences have rows of zeros within; these are frames without a vector and are left out, 151 of 350 rows"
    assert told in capsys.readouterr().err
    found = store.load(run.features("face"))
    for row, array in enumerate(arrays.values()):
        own = array[array.any(1)]
        assert np.array_equal(found.frames_of(row), own)
        assert found.utterance[row] == pytest.approx(own.mean(0), abs=1e-5)
    assert quarantine.read(run.quarantine) == []


def test_padding_and_frames_without_a_vector_are_counted_apart(run, tmp_path, capsys):
    arrays = filled([5, 40, 12, 30, 7, 21], width=16)
    setup("import")
    import_npy(run, "face", "video", write(tmp_path / "in", **arrays, odd=np.ones((3, 2))))
    said = capsys.readouterr().err
    assert "5 of 7 sequences end in rows of zeros; these are padding and are left out, 125 of" in said
    assert (
        "6 of 6 sequences have rows of zeros within; these are frames without a vector and are left out, 6 of"
        in said
    )
    found = store.load(run.features("face"))
    assert np.diff(found.offsets).tolist() == [4, 39, 11, 29, 6, 20]


@pytest.mark.parametrize(("width", "used"), [(17, 3), (7, 7)])
def test_zeros_that_may_be_measured_stay_and_are_told(run, tmp_path, capsys, width, used):
    """As intensities of muscles that rest, one-hot rows, or a pitch beside an energy."""
    arrays = with_gaps(width, used)
    setup("import")
    import_npy(run, "face", "video", write(tmp_path / "in", **arrays))
    assert "6 of 7 sequences have rows of zeros within; these are kept as frames" in capsys.readouterr().err
    found = store.load(run.features("face"))
    assert len(found.frame) == 350
    assert found.utterance[1] == pytest.approx(arrays["c1"].mean(0), abs=1e-5)


def test_contours_without_an_axis_for_their_one_value_are_refused_with_what_to_write(tmp_path):
    run, pitch = Run(tmp_path / "run"), {f"c{row}": np.arange(1.0, 21 + row) for row in range(24)}
    with pytest.raises(UserError, match="24 widths, .* sequences of one value, .* as \\(T, 1\\)"):
        import_npy(run, "f0", "audio", write(tmp_path / "in", **pitch))
    assert not run.features("f0").exists() and not run.quarantine.exists()
    told = write(tmp_path / "told", **{name: array[:, None] for name, array in pitch.items()})
    assert import_npy(run, "f0", "audio", told) == (0, 24)
    # Clips of a few lengths, one of which most have.
    some = {name: array[: 20 + max(0, row - 18)] for row, (name, array) in enumerate(pitch.items())}
    assert import_npy(run, "x", "audio", write(tmp_path / "some", **some)) == (5, 24)
    reasons = {problem.name: problem.reason for problem in quarantine.read(run.quarantine)}
    assert "(T, 1)" in reasons["c19"] and "most files have 20" in reasons["c19"]
    # One file of another width is no sequence, nor are widths that differ in arrays of two axes.
    import_npy(run, "x", "audio", write(tmp_path / "odd", a=np.ones(3), b=np.ones(3), c=np.ones(4)))
    assert [problem.reason for problem in quarantine.read(run.quarantine)] == [
        "features x: 4 values a vector, most files have 3"
    ]
    wide = {f"c{row}": np.ones((2 + row % 3, 3 + row)) for row in range(5)}
    with pytest.raises(UserError, match="5 widths, .*: the last axis of each has to be the vector"):
        import_npy(run, "y", "audio", write(tmp_path / "wide", **wide))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (
            (np.linspace(-2, 3, 32, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16),
            "bits of bfloat16",
        ),
        (
            (np.linspace(-2, 3, 32, dtype=np.float32).view(np.int32) >> 16).astype(np.int16),
            "bits of bfloat16",
        ),
        (np.linspace(-2, 3, 32, dtype=np.float16).view(np.int16), "bits of float16"),
        (np.linspace(-2, 3, 32, dtype=np.float32).view(np.uint32), "bits of float32"),
        (np.random.default_rng(0).integers(-3000, 3000, 32).astype(np.int16), ""),
        (np.random.default_rng(0).integers(0, 65536, 32).astype(np.uint16), ""),
        (np.random.default_rng(0).integers(-(2**31), 2**31, 32).astype(np.int32), ""),
        (1e8 + np.random.default_rng(0).normal(size=32), "cannot tell apart"),
        (np.linspace(1e38, 9e38, 32), "too large for float32"),
        (np.full(32, 1e-60), "cannot tell apart"),
        (np.arange(32, dtype=np.uint16), ""),
        (np.arange(40_000, 40_032, dtype=np.uint16), ""),
        (np.append(np.random.default_rng(0).normal(size=31), 1.6e9), ""),
        (np.linspace(1e-30, 1e30, 32), ""),
    ],
)
def test_numbers_that_are_no_values_or_none_of_float32_cost_their_clip(run, tmp_path, array, why):
    write(tmp_path / "in", a=array, good=np.arange(32.0))
    assert import_npy(run, "x", "audio", tmp_path / "in") == (int(bool(why)), 2)
    assert [why in row.reason for row in quarantine.read(run.quarantine)] == [True] * bool(why)


def coefficients(count: int) -> dict[str, np.ndarray]:
    """As librosa makes them, (D, T): the first is great and negative, and each has a level of its own."""
    random, level = np.random.default_rng(0), np.array([-300, 120, 20, 40, 5, 10, -5, 3.0])
    return {
        f"c{row}": (level[:, None] + 0.1 * np.abs(level[:, None]) * random.normal(size=(8, 44))).astype(
            np.float32
        )
        for row in range(count)
    }


@pytest.mark.parametrize("turn", [False, True])
def test_arrays_of_one_shape_whose_rows_differ_as_dimensions_do_are_doubted(run, tmp_path, capsys, turn):
    arrays = {name: array.T if turn else array for name, array in coefficients(6).items()}
    setup("import-features")
    import_npy(run, "mfcc", "audio", write(tmp_path / "in", **arrays))
    told = "look like (D, T), not (T, D)" in capsys.readouterr().err
    assert told != turn and store.load(run.features("mfcc")).utterance.shape == (6, 8 if turn else 44)


def test_tokens_of_a_picture_are_not_doubted(run, tmp_path, capsys):
    """197 rows, of which the first is of another kind."""
    random = np.random.default_rng(0)
    level = random.normal(size=64)
    arrays = {f"c{row}": level + random.normal(size=(197, 64)) for row in range(6)}
    for array in arrays.values():
        array[0] += 3
    setup("import-features")
    import_npy(
        run, "vit", "video", write(tmp_path / "in", **{n: a.astype(np.float32) for n, a in arrays.items()})
    )
    assert "look like" not in capsys.readouterr().err


@pytest.mark.parametrize("pad", [-9.0, np.linspace(-1, 1, 16), None])
@pytest.mark.parametrize("side", ["begin", "end"])
def test_padding_that_is_not_zeros_is_told(run, tmp_path, capsys, pad, side):
    random, arrays = np.random.default_rng(0), {}
    for row in range(24):
        array = random.normal(size=(20 + row % 8, 16)) + 0.5
        edge = array[-1] if side == "end" else array[0]
        filled = np.tile(edge if pad is None else np.broadcast_to(pad, 16), (28 - len(array), 1))
        arrays[f"c{row}"] = np.concatenate([array, filled] if side == "end" else [filled, array])
    setup("import-features")
    import_npy(run, "x", "audio", write(tmp_path / "in", **arrays))
    said = capsys.readouterr().err
    assert f"of 24 sequences {side} in copies of one row, up to " in said and "look like (D, T)" not in said
    import_npy(
        run, "x", "audio", write(tmp_path / "plain", **{name: random.normal(size=(9, 16)) for name in arrays})
    )
    assert "copies" not in capsys.readouterr().err


def test_folders_of_layers_are_told(run, tmp_path, capsys):
    for clip in ("a", "b"):
        (tmp_path / "in" / clip).mkdir(parents=True)
        write(tmp_path / "in" / clip, **{f"layer_{number}": np.ones(3) for number in range(13)})
    setup("import-features")
    import_npy(run, "x", "audio", tmp_path / "in")
    said = capsys.readouterr().err
    assert (
        "each of its 2 folders is taken as one clip, and their files as its frames, as a: layer_0.npy" in said
    )
    assert "seem to be layers of a model" in said


@pytest.mark.parametrize("size", [8, 400_000])
def test_a_second_array_in_a_file_costs_its_clip(run, tmp_path, size):
    write(tmp_path / "in", a=np.ones(size), b=np.ones(size))
    with open(tmp_path / "in" / "a.npy", "ab") as file:
        np.save(file, np.zeros(size))
    assert import_npy(run, "x", "audio", tmp_path / "in") == (1, 2)
    (row,) = quarantine.read(run.quarantine)
    assert f"{8 * size + 128} bytes follow its array; if several were written into one file" in row.reason


def test_the_rows_of_a_set_are_known_whatever_their_reason_says(run, tmp_path):
    for name in ("a", "b"):
        import_npy(run, name, "audio", write(tmp_path / name, ok=np.ones(2), bad=np.full(2, np.nan)))
    reworded = [replace(row, reason="told in other words") for row in quarantine.read(run.quarantine)]
    assert [(row.name, row.part) for row in reworded] == [("bad", "a"), ("bad", "b")]
    quarantine.replace(run.quarantine, "import", reworded)
    import_npy(run, "a", "audio", write(tmp_path / "again", ok=np.ones(2)))
    assert quarantine.read(run.quarantine) == reworded[1:]
