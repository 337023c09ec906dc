"""New clips that come as features."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import fusion_run
import numpy as np
import pytest

from mer_dist import cli
from mer_dist.core.errors import UserError
from mer_dist.features import store
from mer_dist.fusion import predictions
from mer_dist.predict import bundle
from mer_dist.predict.predictor import Predictor
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("features")
    fusion_run.make(folder)
    fuse(config := fusion_run.configure(folder, overrides=("vote.prior=none",)))
    return Run(config.run.folder)


def write(run: Run, folder: Path, name: str, clips: list[str]) -> Path:
    found = store.load(run.features(name))
    (folder / name).mkdir(parents=True)
    for clip in clips:
        np.save(folder / name / f"{clip}.npy", found.utterance[found.names.index(clip)], allow_pickle=False)
    return folder / name


def test_features_of_the_run_get_its_answers_and_a_missing_set_is_masked(run, tmp_path, capsys):
    names = [f"clip_{row:04d}" for row in range(100, 130)]
    folders = {
        name: write(run, tmp_path, name, names[: 20 if name == "line" else 30])
        for name in ("voice", "face", "line")
    }
    words = [f"{name}={folder}" for name, folder in folders.items()]
    out = tmp_path / "out"
    assert cli.main(["predict", str(run.folder), "--out", str(out), "--features", *words]) == 0
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    made = predictions.read(run.vote.predictions)
    for name in names[:20]:
        own = made.probability[made.names.index(name)]
        assert np.abs(own - [float(rows[name][f"p_{label}"]) for label in made.labels]).max() < 1e-4
    assert [rows[name]["missing"] for name in (names[0], names[25])] == ["", "text"]
    assert cli.main(["predict", str(run.folder), "--out", str(out), "--features", words[0]]) == 0
    assert "feature set face is not given, and missing for every clip" in capsys.readouterr().err
    # Of what cannot be used, or lies far from all that was learned from, the clip is answered without it and told.
    odd = tmp_path / "odd"
    odd.mkdir()
    np.save(odd / "nan.npy", np.full(fusion_run.WIDTH, np.nan, np.float32))
    np.save(odd / "far.npy", np.full(fusion_run.WIDTH, 1e9, np.float32))
    np.save(odd / "fine.npy", np.zeros(fusion_run.WIDTH, np.float32) + 0.1)
    out = tmp_path / "odd-out"
    assert cli.main(["predict", str(run.folder), "--out", str(out), "--features", f"voice={odd}"]) == 3
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        missing = {row["name"]: row["missing"] for row in csv.DictReader(file)}
    every = "audio video text"
    assert missing == {"far": every, "fine": "video text", "nan": every}
    reasons = {row.name: row.reason for row in quarantine.read(Run(out).quarantine)}
    assert reasons.keys() == {"far", "nan"} and "standard deviations of training" in reasons["far"]


def test_features_of_another_program_are_told_even_of_one_clip_and_from_a_bundle(run, tmp_path, capsys):
    names = [f"clip_{row:04d}" for row in range(100, 130)]
    good = write(run, tmp_path, "voice", names)
    bundle.write(run.folder, tmp_path / "bundle")

    def told(model: Path, out: str, folder: Path) -> str:
        assert (
            cli.main(["predict", str(model), "--out", str(tmp_path / out), "--features", f"voice={folder}"])
            == 0
        )
        return capsys.readouterr().err

    assert "as if two programs" not in told(run.folder, "plain", good)
    for path in good.iterdir():
        np.save(path, np.load(path) + 50)
    assert f"features voice: the new clips differ from those of training in {fusion_run.WIDTH} of" in told(
        tmp_path / "bundle", "moved", good
    )
    for name in names[1:]:
        (good / f"{name}.npy").unlink()
    assert "as if two programs had made them" in told(run.folder, "one", good)


def test_a_model_of_imported_features_asks_for_them(run, tmp_path):
    with pytest.raises(
        UserError, match="voice, face, line were imported, so new clips must bring theirs: --features"
    ):
        Predictor.load(run.folder)
    predictor = Predictor.load(run.folder, extract=False)
    (one,), _ = predictor.features({"voice": store.load(run.features("voice"))}, ["clip_0100"])
    assert one.missing == ["video", "text"] and one.label in predictor.labels


def test_the_class_prior_of_new_clips_is_estimated_only_if_asked_for_and_as_the_run_does(tmp_path, capsys):
    """The unlabelled clips have other shares than the labelled ones; as new clips they get the run's answers."""
    fusion_run.make(tmp_path, labeled=240, unlabeled=360, shares=(8, 1, 1))
    config = fusion_run.configure(tmp_path, overrides=("fuse.sets=[voice,face]",))
    fuse(config)
    run = Run(config.run.folder)
    assert files.read_json(run.vote.prior)["applied"], "there is something to see"
    names = fusion_run.names(600)[240:]
    words = [f"{name}={write(run, tmp_path, name, names)}" for name in ("voice", "face")]
    made = predictions.read(run.vote.predictions)
    truth = {name: made.labels[row] for name, row in zip(made.names, made.answer, strict=True)}
    probability = dict(zip(made.names, made.probability, strict=True))

    def predicted(model: Path, *options: str) -> dict[str, dict[str, str]]:
        out = tmp_path / "out"
        assert cli.main(["predict", str(model), "--out", str(out), *options, "--features", *words]) == 0
        with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    bundle.write(run.folder, tmp_path / "bundle")
    for model in (run.folder, tmp_path / "bundle"):
        found = predicted(model, "--prior", "estimate")
        assert "prior correction applied" in capsys.readouterr().err
        assert {name: row["label"] for name, row in found.items()} == {name: truth[name] for name in names}
        gap = [
            np.abs(probability[name] - [float(row[f"p_{label}"]) for label in made.labels]).max()
            for name, row in found.items()
        ]
        assert max(gap) < 1e-4 and "fold_predictions" not in found[names[0]]
    plain = predicted(run.folder)
    assert sum(plain[name]["label"] != truth[name] for name in names) > 1
    # Of a few clips nothing is estimated.
    words = [f"{name}={write(run, tmp_path / 'few', name, names[:20])}" for name in ("voice", "face")]
    shutil.rmtree(tmp_path / "out")
    few = predicted(run.folder, "--prior", "estimate")
    assert "no label shares are estimated" in capsys.readouterr().err
    assert all(few[name]["label"] == plain[name]["label"] for name in names[:20])
