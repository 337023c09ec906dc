"""Imported features that are those of another clip: one recording under several names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mer_dist.cli import main
from mer_dist.inspect.verify import verify
from mer_dist.storage.run_folder import Run

JOB = """
run: {{folder: {folder}/run}}
corpus: {{labels: [happy, sad]}}
fuse: {{labels: {folder}/labels.csv, sets: [a, t], epochs: 1, model: linear, seeds: 1, dropout: [0.1]}}
self_train: {{rounds: 0}}
"""


def write(folder, name: str, arrays: dict[str, np.ndarray]) -> None:
    (folder / name).mkdir()
    for clip, array in arrays.items():
        np.save(folder / name / f"{clip}.npy", array.astype(np.float32))


@pytest.fixture
def job(tmp_path):
    """20 recordings of noise, each under two names; the text of half of the others is one line."""
    random, audio, text = np.random.default_rng(0), {}, {}
    rows = ["name,label"]
    line = random.normal(size=8)
    for number in range(40):
        sound, words = random.normal(size=8), random.normal(size=8)
        label = ("happy", "sad")[number % 2] if number < 30 else ""
        for name in [f"r{number:02}", f"r{number:02}b"][: 1 + (number < 20)]:
            audio[name], text[name] = sound, line if number >= 30 else words
            rows.append(f"{name},{label}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, ""]))
    (tmp_path / "job.yaml").write_text(JOB.format(folder=tmp_path))
    write(tmp_path, "a-in", audio)
    write(tmp_path, "t-in", text)
    return tmp_path


def take(job, name: str, modality: str) -> None:
    assert (
        main(["import-features", str(job / "run"), name, str(job / f"{name}-in"), "--modality", modality])
        == 0
    )


@pytest.mark.slow
def test_two_names_of_one_recording_share_a_fold_and_equal_words_do_not_count(job, capsys):
    run = Run(job / "run")
    take(job, "t", "text")
    assert not run.twins.exists()
    take(job, "a", "audio")
    assert "40 clips have the very features of another clip" in capsys.readouterr().err
    assert json.loads(run.twins.read_text()) == [[f"r{number:02}", f"r{number:02}b"] for number in range(20)]
    assert main(["fuse", str(job / "job.yaml")]) == 0
    folds = json.loads(run.folds.read_text())["folds"]
    assert len(folds) == 50 and all(folds[name] == folds[name[:3]] for name in folds)
    assert len({*folds.values()}) == 5 and verify(run.folder) == []


def test_one_sound_under_two_pictures_is_two_recordings(job):
    random = np.random.default_rng(1)
    names = [path.stem for path in (job / "a-in").iterdir()]
    write(job, "v-in", {name: random.normal(size=4) for name in names})
    take(job, "a", "audio")
    assert len(json.loads(Run(job / "run").twins.read_text())) == 20
    take(job, "v", "video")
    assert not Run(job / "run").twins.exists()


def test_what_an_encoder_gives_for_silence_is_told_and_joins_nobody(job, capsys):
    for number in range(12):
        np.save(job / "a-in" / f"r{number:02}.npy", np.ones(8, np.float32))
    take(job, "a", "audio")
    assert (
        "features a: 12 clips, as r00, r01, r02, have one and the same embedding" in capsys.readouterr().err
    )
    assert len(json.loads(Run(job / "run").twins.read_text())) == 8


def copies(job, change: float) -> dict[str, np.ndarray]:
    """Vectors of 24 clips, four names a recording; the copies differ by a part of the spread."""
    random = np.random.default_rng(2)
    base = random.normal(size=(6, 16))
    return {f"c{number:02}": base[number // 4] + change * random.normal(size=16) for number in range(24)} | {
        f"d{number}": random.normal(size=16) for number in range(40)
    }


@pytest.mark.parametrize("change", [0, 1e-4, 3e-3])
def test_a_recording_that_was_rounded_or_coded_anew_is_one_recording(job, capsys, change):
    write(job, "n-in", copies(job, change))
    take(job, "n", "audio")
    assert "24 clips have the very features of another clip, or nearly" in capsys.readouterr().err
    groups = json.loads(Run(job / "run").twins.read_text())
    assert groups == [[f"c{4 * number + copy:02}" for copy in range(4)] for number in range(6)]


def test_clips_that_are_only_alike_and_sets_of_few_numbers_join_nobody(job):
    write(job, "n-in", copies(job, 0.3))
    take(job, "n", "audio")
    assert not Run(job / "run").twins.exists()
    random = np.random.default_rng(3)
    write(job, "p-in", {f"c{number:03}": random.normal(size=3) for number in range(500)})
    take(job, "p", "video")
    assert not Run(job / "run").twins.exists()


def test_clips_that_share_their_text_are_told(job, capsys):
    take(job, "t", "text")
    said = capsys.readouterr().err
    assert (
        "features t: 50 of 60 clips have the text of another clip, as r00 and r00b, and may be in other"
        in said
    )
    take(job, "a", "audio")
    assert (
        "features t: 10 of 60 clips have the text of another clip, as r30 and r31" in capsys.readouterr().err
    )


def test_a_folder_that_is_imported_as_two_sets_is_told(job, capsys):
    take(job, "a", "audio")
    assert "imported twice" not in capsys.readouterr().err
    (job / "a-in").rename(job / "b-in")
    take(job, "b", "text")
    said = capsys.readouterr().err
    assert (
        "features a (audio) and b (text) are the same for 60 of 60 clips: was one folder imported twice?"
        in said
    )


@pytest.mark.parametrize("code", [-999, 1e20])
def test_clips_that_share_codes_for_missing_values_join_nobody_and_duplicates_among_them_do(
    job, code, capsys
):
    random = np.random.default_rng(4)
    values = random.normal(size=(200, 16))
    values[random.random((200, 16)) < 0.1] = code
    values[7] = np.where(values[190] == code, code, values[190] * (1 + 1e-5))
    write(job, "m-in", {f"c{row:03}": values[row] for row in range(200)})
    take(job, "m", "audio")
    assert f"features m: {code:g} stands in {(values == code).sum()} cells of" in capsys.readouterr().err
    assert json.loads(Run(job / "run").twins.read_text()) == [["c007", "c190"]]
