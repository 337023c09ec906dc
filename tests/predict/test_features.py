"""New clips that come as features."""

from __future__ import annotations

import csv
from pathlib import Path

import fusion_run
import numpy as np
import pytest

from mer_dist import cli
from mer_dist.core.errors import UserError
from mer_dist.features import store
from mer_dist.fusion import predictions
from mer_dist.predict.predictor import Predictor
from mer_dist.stages.fuse import fuse
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


def test_a_model_of_imported_features_asks_for_them(run, tmp_path):
    with pytest.raises(
        UserError, match="voice, face, line were imported, so new clips must bring theirs: --features"
    ):
        Predictor.load(run.folder)
    predictor = Predictor.load(run.folder, extract=False)
    one = predictor.features({"voice": store.load(run.features("voice"))}, ["clip_0100"])[0]
    assert one.missing == ["video", "text"] and one.label in predictor.labels
