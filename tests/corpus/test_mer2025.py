"""The folders of MER2025 and MER2026: what is listed, who is asked for, what is put aside, what is refused."""

from __future__ import annotations

import csv

import fusion_run
import numpy as np
import pytest
from media_files import write_csv

from mer_dist import corpus
from mer_dist.config import config as configuration
from mer_dist.config.sections import CorpusConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import EMOTIONS
from mer_dist.corpus import mer2025
from mer_dist.inspect.explain import explain, text
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.stages.fuse import fuse
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

YEARS = tuple(mer2025.YEARS)


def write(folder, year: str, labels, candidates, videos, sounds=None, transcripts=()):
    """Such a folder, whose files are empty: listing looks at no byte of them."""
    for kind, suffix, names in (("video", ".mp4", videos), ("audio", ".wav", sounds or ())):
        if names or kind == "video":
            (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / kind / f"{name}{suffix}").touch()
    tables = mer2025.YEARS[year]
    header = ["name", "discrete", "valence"] if year == "mer2025" else ["name", "discrete"]
    write_csv(folder / tables.labels, [header, *([*row, "0"][: len(header)] for row in labels)])
    write_csv(folder / tables.candidates, [["name"], *([name] for name in candidates)])
    if transcripts:
        write_csv(folder / "subtitle_chieng.csv", [["name", "chinese", "english"], *transcripts])
    return folder


@pytest.fixture(params=YEARS)
def year(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, year):
    """Two labelled clips, two candidates, and one of neither, which is there to learn from."""
    names = ["a1", "a2", "b1", "b2", "c1"]
    return write(
        tmp_path,
        year,
        [("a1", "happy"), ("a2", "sad")],
        ["b2", "b1"],
        names,
        names,
        [
            ["a1", "你好", "hello"],
            ["a2", "", "only english"],
            ["b1", "再见", ""],
            ["b2", "", ""],
            ["c1", "我", "I"],
        ],
    )


def listed(folder, year, **keys):
    return corpus.clips(CorpusConfig(format=year, path=str(folder), **keys))


def test_a_table_says_what_each_clip_is_for_and_sound_is_used_as_it_lies(folder, year):
    clips, problems = listed(folder, year)
    assert problems == []
    assert [(clip.name, clip.split, clip.label, clip.asked, clip.transcript) for clip in clips] == [
        ("a1", "labeled", "happy", False, "你好"),
        ("a2", "labeled", "sad", False, None),
        ("b1", "unlabeled", None, True, "再见"),
        ("b2", "unlabeled", None, True, None),
        ("c1", "unlabeled", None, False, "我"),
    ]
    # The other columns of the labels stay with the labelled clips.
    assert [clip.annotations for clip in clips] == [{"valence": "0"} if year == "mer2025" else {}] * 2 + [
        {}
    ] * 3
    assert clips[0].video == folder / "video" / "a1.mp4" and clips[0].audio == folder / "audio" / "a1.wav"


@pytest.mark.parametrize(
    ("language", "spoken"),
    [
        ("english", ["hello", "only english", None, None, "I"]),
        ("both", ["你好 hello", "only english", "再见", None, "我 I"]),
    ],
)
def test_transcripts_are_of_the_language_that_is_asked_for(folder, year, language, spoken):
    clips, _ = listed(folder, year, language=language)
    assert [clip.transcript for clip in clips] == spoken


def test_a_language_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"corpus\.language"):
        CorpusConfig(language="german")


def test_without_a_folder_of_sound_it_is_that_of_the_videos_and_other_endings_are_clips(folder, year, caplog):
    for path in (folder / "audio").iterdir():
        path.unlink()
    (folder / "audio").rmdir()
    (folder / "video" / "b1.mp4").rename(folder / "video" / "b1.mkv")
    clips, problems = listed(folder, year)
    assert len(clips) == 5 and problems == [] and {clip.audio for clip in clips} == {None}
    assert "sound is that of the videos" in caplog.text and "have no file in audio" not in caplog.text


def test_what_does_not_fit_together_is_told_and_no_candidate_goes_without_an_answer(folder, year, caplog):
    tables = mer2025.YEARS[year]
    (folder / "audio" / "a2.wav").unlink()
    (folder / "video" / "c1.mp4").unlink()
    with open(folder / tables.labels, "a", encoding="utf-8") as file:
        tail = ",0\n" if year == "mer2025" else "\n"
        file.write(f"ghost,sad{tail}b1,angry{tail}c1,bored{tail}")
    with open(folder / tables.candidates, "a", encoding="utf-8") as file:
        file.write("gone\n")
    clips, problems = listed(folder, year)
    found = {clip.name: clip for clip in clips}
    # Of c1 the label is none that is known: it is left out, like any labelled clip.
    assert [*found] == ["a1", "a2", "b1", "b2", "gone"]
    assert found["a2"].audio is None and found["gone"].video is None and found["gone"].asked
    assert found["b1"].label is None and found["b1"].asked
    kinds = {(row.name, row.lost) for row in problems}
    assert kinds == {("ghost", "clip"), ("b1", "label"), ("c1", "clip"), ("gone", "text")}
    assert "1 candidates of" in caplog.text and "gone" in caplog.text
    assert "1 clips have no file in audio" in caplog.text and "1 clips have no video: c1" in caplog.text


@pytest.mark.parametrize("which", ["candidates", "labels"])
def test_a_name_that_occurs_twice_in_a_table_is_refused_with_both_lines(folder, year, which):
    path = folder / getattr(mer2025.YEARS[year], which)
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[1], ""]), "utf-8")
    with pytest.raises(UserError, match=f"occurs twice: {path.name} line 2 and {path.name} line 4"):
        listed(folder, year)


def test_what_is_no_such_folder_is_refused_in_a_line(tmp_path, year):
    with pytest.raises(UserError, match="no folder video; corpus.path is the MER2025 or MER2026 folder"):
        listed(tmp_path, year)
    (tmp_path / "video").mkdir()
    with pytest.raises(UserError, match="no video files in it"):
        listed(tmp_path, year)
    (tmp_path / "video" / "a.mp4").touch()
    with pytest.raises(UserError, match=f"{mer2025.YEARS[year].labels}: cannot be read"):
        listed(tmp_path, year)


def test_candidates_that_name_nobody_are_refused(folder, year):
    (folder / mer2025.YEARS[year].candidates).write_text("name\n")
    with pytest.raises(UserError, match="it names no candidate"):
        listed(folder, year)


JOB = """
run: {{folder: {folder}/run}}
corpus: {{format: {year}, path: {folder}/corpus, labels: [neutral, angry, happy], language: both}}
shard: {{workers: 1, without_media: true}}
folds: {{count: 3}}
fuse: {{sets: [line], width: 8, heads: 2, seeds: 1, epochs: 2, batch: 16, dropout: [0.2]}}
self_train: {{rounds: 1}}
"""


@pytest.mark.slow
def test_the_answer_holds_exactly_the_candidates_and_all_others_are_learned_from(tmp_path, year):
    """Of the clips only the transcripts can be used; one candidate has nothing at all."""
    known = [f"k{row:02d}" for row in range(30)]
    candidates, others = [f"c{row:02d}" for row in range(8)], [f"o{row:02d}" for row in range(12)]
    there = known + candidates + others
    write(
        tmp_path / "corpus",
        year,
        [(name, EMOTIONS[row % 3]) for row, name in enumerate(known)],
        [*candidates, "nothing"],
        there,
        transcripts=[[name, "话", "word"] for name in there],
    )
    files.write_text(tmp_path / "job.yaml", JOB.format(folder=tmp_path, year=year))
    config = configuration.load(tmp_path / "job.yaml")
    run = Run(config.run.folder)
    shard(config)
    assert shard_index.asked(run.shards) == [*candidates, "nothing"]
    assert shard_index.read(run.shards)[0].transcript == "话 word"
    lost = {row.name for row in quarantine.read(run.quarantine) if row.lost == "clip"}
    assert lost == {"nothing"}
    values = np.random.default_rng(0).normal(size=(len(there), fusion_run.WIDTH))
    fusion_run.write_set(run, "line", "text", there, values)
    fuse(config)
    with open(run.answer, newline="", encoding="utf-8") as file:
        answered = [row["name"] for row in csv.DictReader(file)]
    assert sorted(answered) == sorted([*candidates, "nothing"])
    assert verify(run.folder) == []
    assert "since it is no candidate" in text(explain(run.folder, "o00"))
    assert "no candidate" not in text(explain(run.folder, "c00"))
    # Another list of candidates makes the vote again, and no tar.
    before = {path: path.stat().st_mtime_ns for path in run.shards.glob("0*")}
    (tmp_path / "corpus" / mer2025.YEARS[year].candidates).write_text("\n".join(["name", *others, "nothing"]))
    shard(config)
    assert shard_index.asked(run.shards) == ["nothing", *others]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert any("vote" in text for text in verify(run.folder))
    fuse(config)
    with open(run.answer, newline="", encoding="utf-8") as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == ["nothing", *others]
