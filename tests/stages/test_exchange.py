"""Features in the challenge baseline's layout, in and out."""

from __future__ import annotations

import numpy as np
import pytest

from mer_dist import features, quarantine
from mer_dist.errors import UserError
from mer_dist.layout import Run
from mer_dist.stages.exchange import export_npy, import_npy


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
    assert features.description(run.features("face"))["imported"] is True
    with pytest.raises(UserError, match="no frame level"):
        export_npy(run, "face", tmp_path / "out", "FRA")


def test_sequences_keep_their_frames_and_give_their_mean(run, tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"c{row}": random.normal(size=(row + 1, 4)).astype(np.float32) for row in range(4)}
    import_npy(run, "voice", "audio", write(tmp_path / "in", **arrays))
    found = features.load(run.features("voice"))
    values, _ = found.utterances(list(arrays))
    assert np.allclose(values, [array.mean(0) for array in arrays.values()], atol=1e-6)
    export_npy(run, "voice", tmp_path / "out", "FRA")
    for name, array in arrays.items():
        assert np.array_equal(np.load(tmp_path / "out" / "voice-FRA" / f"{name}.npy"), array)


def test_a_file_that_cannot_be_used_costs_its_clip_and_says_why(run, tmp_path):
    good = {f"c{row}": np.full(3, row + 1.0) for row in range(3)}
    folder = write(
        tmp_path / "in", **good, nan=np.array([1.0, np.nan, 2]), wide=np.ones(4),
        zero=np.zeros(3), cube=np.ones((2, 2, 3)), none=np.ones((0, 3)),
        thing=np.array([{"a": 1}], dtype=object), word=np.array(["a", "b", "c"]),
    )
    (folder / "torn.npy").write_bytes((folder / "c0.npy").read_bytes()[:90])
    (folder / "empty.npy").touch()
    (folder / "two.dots.npy").write_bytes((folder / "c0.npy").read_bytes())
    import_npy(run, "line", "text", folder)
    why = {row.name: row.reason for row in quarantine.read(run.quarantine)}
    assert why.keys() == {"nan", "wide", "zero", "cube", "none", "thing", "word", "torn", "empty", "two.dots"}
    assert all((row.stage, row.lost) == ("import", "text") for row in quarantine.read(run.quarantine))
    assert "1 values are NaN" in why["nan"] and "most files have 3" in why["wide"]
    assert "all zeros" in why["zero"]
    found = features.load(run.features("line"))
    assert set(found.names) == set(good) and found.missing.keys() == why.keys()


def test_problems_of_one_set_stay_when_another_is_imported(run, tmp_path):
    for name in ("a", "b"):
        folder = write(tmp_path / name, ok=np.ones(2), bad=np.array([np.inf, 1]))
        import_npy(run, name, "audio", folder)
    assert len(quarantine.read(run.quarantine)) == 2
    import_npy(run, "a", "audio", write(tmp_path / "c", ok=np.ones(2)))
    assert [row.reason.split(":")[0] for row in quarantine.read(run.quarantine)] == ["features b"]


def test_the_same_files_give_the_same_fingerprint_and_other_values_another(run, tmp_path):
    folder = write(tmp_path / "in", a=np.ones(2), b=np.ones(2))
    shard = run.features("x") / "00000.safetensors"
    seen = []
    for value in (1, 1, 2):
        write(folder, b=np.full(2, value))
        import_npy(run, "x", "text", folder)
        seen.append(features.shard_made_from(shard))
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
