"""The folders of three years of the challenge, with real media and faces as distributed, from the first command to the
answer."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import media_files
import numpy as np
import pytest
import small_models
import soundfile
from small_job import mer_dist

from mer_dist.corpus import mer2025
from mer_dist.corpus.paths import openface_array
from mer_dist.inspect.explain import explain, text
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run, ShardFolder

LABELED, UNLABELED, CANDIDATES = 18, 8, 3
JOB = """
run: {{folder: {folder}/run}}
corpus: {{format: {year}, path: {folder}/corpus, language: both}}
shard: {{workers: 1, clips: 9, frames: 4, image_size: 32, faces: openface, openface: {folder}/faces, faceless: {faceless}}}
folds: {{count: 2}}
extractors:
  clip: {{family: clip, path: {folder}/models/clip}}
  hubert: {{family: hubert, path: {folder}/models/hubert}}
  baichuan: {{family: baichuan, path: {folder}/models/baichuan}}
fuse: {{width: 16, heads: 2, seeds: 1, epochs: 2}}
self_train: {{rounds: 1}}
"""


def of_2024(folder: Path) -> list[str]:
    """The corpus as distributed in 2024; returns the clips to be answered."""
    media_files.write_corpus(folder, LABELED, UNLABELED)
    return [f"u{row:03d}" for row in range(UNLABELED)]


def of_year(folder: Path, year: str) -> list[str]:
    """The same clips as distributed later: one folder of videos, one of sound, and some candidates."""
    before = media_files.write_corpus(folder.with_name("2024"), LABELED, UNLABELED)
    (folder / "audio").mkdir(parents=True)
    (folder / "video").mkdir()
    for row, path in enumerate(sorted(before.glob("video-*/*.mp4"))):
        # A corpus may hold other containers than mp4; none of its clips is lost.
        shutil.move(path, folder / "video" / (f"{path.stem}.mkv" if row == 1 else path.name))
        soundfile.write(folder / "audio" / f"{path.stem}.wav", media_files.tone(300 + 20 * row, 0.5), 44_100)
    tables = mer2025.YEARS[year]
    shutil.move(before / "label-disdim.csv", folder / tables.labels)
    shutil.move(before / "label-transcription.csv", folder / mer2025.TRANSCRIPTS)
    asked = [f"u{row:03d}" for row in range(CANDIDATES)]
    media_files.write_csv(folder / tables.candidates, [["name"], *([name] for name in asked)])
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("year", "faceless"),
    [
        pytest.param("mer2024", "frame", marks=pytest.mark.long),
        ("mer2025", "mask"),
        pytest.param("mer2026", "frame", marks=pytest.mark.long),
    ],
)
def test_from_the_folder_as_distributed_to_an_answer_for_exactly_those_who_are_asked_for(
    tmp_path, year, faceless
):
    corpus, run = tmp_path / "corpus", Run(tmp_path / "run")
    asked = of_2024(corpus) if year == "mer2024" else of_year(corpus, year)
    small_models.make(tmp_path / "models", [f"我说第{row}句话" for row in range(LABELED + UNLABELED)])
    random, without = np.random.default_rng(0), "a002"
    for path in sorted(corpus.glob("video*/*.m*")):
        if path.stem != without:
            array = openface_array(tmp_path / "faces", path.stem)
            array.parent.mkdir(parents=True)
            np.save(array, random.integers(1, 256, (7, 112, 112, 3), np.uint8), allow_pickle=False)
    files.write_text(tmp_path / "job.yaml", JOB.format(folder=tmp_path, year=year, faceless=faceless))
    done = mer_dist("run", tmp_path / "job.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    with open(run.answer, newline="", encoding="utf-8") as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == asked
    assert verify(run.folder) == []
    rows = {row.name: row for row in shard_index.read(run.shards)}
    assert len(rows) == LABELED + UNLABELED and rows["a001"].transcript == "我说第1句话 line 1"
    assert {row.split for row in rows.values()} == {"labeled", "unlabeled"}
    # The clip without faces falls back as asked for, and is counted.
    assert rows[without].missing == (["video"] if faceless == "mask" else [])
    assert files.read_json(ShardFolder(run.shards).stats)["faceless"] == 1
    # What the table of labels says beside the emotion is kept.
    assert shard_index.annotations_of(run.shards, "a001") == {"valence": "0.5"}
    assert shard_index.annotations_of(run.shards, "u001") == {}
    assert "valence  0.5" in text(explain(run.folder, "a001"))
