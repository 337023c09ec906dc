"""What the doctor says of a corpus: nothing is fine that a run would find missing."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import cv2
import pytest
from media_files import write_corpus, write_csv

from mer_dist.config.config import Config
from mer_dist.config.section import with_values
from mer_dist.config.sections import (
    CorpusConfig,
    ExtractorConfig,
    FoldConfig,
    FuseConfig,
    RunConfig,
    ShardConfig,
)
from mer_dist.core.errors import UserError
from mer_dist.core.records import Problem
from mer_dist.planning import doctor_corpus
from mer_dist.stages.shard import shard

HEADER = ["name", "video", "audio", "transcript", "label", "split"]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Clips a000 to a011, two of each label, and u000."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), labeled=12, unlabeled=1)


@pytest.fixture
def corpus(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "corpus")


def config_of(path, **sections) -> Config:
    given = "manifest" if str(path).endswith(".csv") else "mer2024"
    sections = {
        "run": RunConfig(folder=f"{path}/run"),
        "corpus": CorpusConfig(path=str(path), format=given),
        "shard": ShardConfig(frames=4, image_size=32, faces="none"),
        "folds": FoldConfig(count=2),
    }
    return Config(**sections)


def found(config, *names) -> dict[str, tuple[bool, str]]:
    """Name of a check -> whether it is fine, and what it says; all of them, or those that are named."""
    told = {}
    for name, check in doctor_corpus.checks(config):
        try:
            told[name] = (True, check(config)) if not names or name in names else (True, "")
        except UserError as error:
            told[name] = (False, str(error))
    return told


@pytest.mark.slow
def test_a_healthy_corpus_is_counted_by_label_and_three_clips_are_decoded(healthy):
    told = found(config_of(healthy))
    assert all(fine for fine, _ in told.values())
    assert {name: text for name, (_, text) in told.items()} == {
        "corpus": "13 clips, 12 of them labelled, 0 problems",
        "labels": "neutral 2, angry 2, happy 2, sad 2, worried 2, surprise 2",
        "media": "the files of 13 clips are there",
        "decoding": "a002 4 frames, 0.5 s of sound, a006 4 frames, 0.5 s of sound, "
        "a010 4 frames, 0.5 s of sound",
    }


def test_paths_that_lead_nowhere_are_found_and_one_of_many_is_told(corpus, tmp_path):
    rows = [[f"c{row}", f"clips/c{row}.mp4", "", "x", "happy" if row % 2 else "sad", ""] for row in range(8)]
    told = found(config_of(write_csv(tmp_path / "all.csv", [HEADER, *rows])))
    fine, text = told["media"]
    assert not fine and text.startswith("8 of 8 clips lack a file (8 x file: *.mp4: no such file); for ex")
    assert f"{tmp_path}/clips/c0.mp4: no such file" in text and "relative to its folder" in text
    assert told["corpus"][0] and not told["decoding"][0]
    (corpus / "video-labeled" / "a003.mp4").write_bytes(b"")
    fine, text = found(config_of(corpus), "media")["media"]
    assert fine and text.startswith("1 of 13 clips lack a file (1 x file: *.mp4: the file is empty)")


def test_a_modality_that_no_clip_names_and_an_extractor_needs_must_be_mended(tmp_path):
    rows = [[f"c{row}", f"he says {row}", "happy" if row % 2 else "sad"] for row in range(8)]
    path = write_csv(tmp_path / "said.csv", [["name", "transcript", "label"], *rows])
    for family, fine in (("text", True), ("hubert", False), ("clip", False)):
        config = config_of(path)
        config = replace(config, extractors={"own": ExtractorConfig(family=family, path="models/own")})
        well, told = found(config, "corpus")["corpus"]
        assert well == fine and (fine or "none of its 8 clips names any" in told)
        assert fine or "of which extractors.own makes features" in told
    # Sound may be that of the video.
    rows = [[f"c{row}", f"c{row}.mp4", "", "", "happy" if row % 2 else "sad", ""] for row in range(8)]
    config = config_of(write_csv(tmp_path / "seen.csv", [HEADER, *rows]))
    sound = replace(config, extractors={"own": ExtractorConfig(family="hubert", path="models/own")})
    assert found(sound, "corpus")["corpus"][0]


def test_what_is_there_and_no_file_is_counted_and_named(corpus, monkeypatch):
    for name in ("u000", "a003"):
        next(corpus.glob(f"*/{name}.mp4")).unlink()
    os.mkfifo(corpus / "video-labeled" / "a003.mp4")
    (corpus / "video-unlabeled-with-test2noise" / "u000.mp4").symlink_to("u000.mp4")
    monkeypatch.setattr(doctor_corpus, "MANY", 1)
    fine, text = found(config_of(corpus), "media")["media"]
    assert fine and text.startswith(
        "2 of 13 clips lack a file (1 x file: *.mp4: a link that leads back to itself; "
        "1 x file: *.mp4: a named pipe, not a file); for example "
    )
    assert text.endswith("; in all a003, u000")
    monkeypatch.setattr(doctor_corpus, "NAMED", 1)
    assert found(config_of(corpus), "media")["media"][1].endswith("; in all a003 and 1 more")


def test_a_large_corpus_is_looked_at_in_a_sample(corpus, monkeypatch):
    monkeypatch.setattr(doctor_corpus.survey, "LOOKED_AT", 5)
    assert found(config_of(corpus), "media")["media"] == (
        True,
        "the files of 5 clips, a sample of 13, are there",
    )


def test_files_are_looked_for_once(corpus, monkeypatch):
    looked, real = [], doctor_corpus.survey.look
    monkeypatch.setattr(doctor_corpus.survey, "look", lambda *given: looked.append(1) or real(*given))
    monkeypatch.setattr(doctor_corpus, "TRIED", 0)
    assert {"media", "decoding"} <= found(config_of(corpus), "media", "decoding").keys()
    assert len(looked) == 1


@pytest.mark.slow
def test_files_that_are_there_and_do_not_decode_are_found(corpus):
    for path in corpus.rglob("*.mp4"):
        path.write_text("<html>log in first</html>")
    told = found(config_of(corpus), "media", "decoding")
    assert told["media"][0] and not told["decoding"][0]
    assert told["decoding"][1].startswith("3 of 3 clips do not decode (3 x audio: *.mp4: not readable: ")


def test_a_part_that_no_clip_gives_is_found_though_the_others_are_whole(healthy, monkeypatch):
    def decoding(lost: str, reason: str) -> tuple[bool, str]:
        def told(_, clips, *__, **___):
            return [
                (0, 1.0, [Problem(stage="doctor", name=clip.name, lost=lost, reason=reason)])
                for clip in clips
            ]

        monkeypatch.setattr(doctor_corpus.workers, "in_order", told)
        return found(config_of(healthy), "decoding")["decoding"]

    assert decoding("audio", "a.mp4: no audio stream")[0] and decoding("part of video", "a.mp4: a gap")[0]
    fine, text = decoding("video", "no room")
    assert not fine and text == "the video of all 3 clips that were tried is lost (3 x video: no room)"


@pytest.mark.slow
def test_a_release_of_opencv_without_the_cascade_is_refused_before_the_first_clip(healthy, monkeypatch):
    config = config_of(healthy)
    config = with_values(config, **{"shard.faces": "cascade"})
    monkeypatch.delattr(cv2, "CascadeClassifier")
    fine, text = found(config)["corpus"]
    assert not fine and "opencv-python-headless<5" in text and "shard.faces" in text
    with pytest.raises(UserError, match="opencv-python-headless<5"):
        shard(config)
    config = with_values(config, **{"shard.faces": "none"})
    assert found(config, "corpus")["corpus"][0]


def test_a_corpus_without_a_labelled_clip_or_with_too_few_is_never_fine(corpus, tmp_path):
    rows = [["a", "", "", "x", "", ""], ["b", "", "", "y", "", ""]]
    config = config_of(write_csv(tmp_path / "all.csv", [HEADER, *rows]))
    told = found(config)
    assert told["corpus"] == (True, "2 clips, 0 of them labelled, 0 problems")
    assert not told["labels"][0] and "no clip has one of the labels neutral, angry" in told["labels"][1]
    assert told["media"] == (True, "no clip names a file; transcripts alone")
    assert told["decoding"] == (True, "no clip names a file")
    few = with_values(config_of(corpus), **{"folds.count": 3})
    assert "folds.count is 3, but these labels have fewer clips" in found(few, "labels")["labels"][1]
    # As where corpus.labels are in another language than the table.
    few = with_values(few, **{"corpus.labels": ["froh", "traurig"]})
    fine, text = found(few, "corpus")["corpus"]
    assert not fine and "1 of its clips can be used, 12 cannot" in text
    assert "2 x clip: label-disdim.csv: label" in text


def test_a_corpus_that_cannot_be_listed_is_one_line_and_a_label_file_is_counted_alone(tmp_path):
    told = found(config_of(tmp_path / "none"))
    assert list(told) == ["corpus"] and not told["corpus"][0]
    assert "no folder video-labeled" in told["corpus"][1]
    labels = write_csv(
        tmp_path / "labels.csv",
        [["name", "label"], *([f"a{row}", ("happy", "sad")[row % 2]] for row in range(4)), ["u", ""]],
    )
    config = config_of("")
    config = with_values(config, fuse=FuseConfig(labels=str(labels)))
    told = found(config)
    assert list(told) == ["labels"] and told["labels"][0]
    assert "happy 2, sad 2" in told["labels"][1] and "5 clips, 0 problems" in told["labels"][1]
    write_csv(labels, [["name", "label"], ["u", ""]])
    assert not found(config)["labels"][0]


def test_what_a_run_that_is_there_would_lose_is_known(corpus, monkeypatch):
    config = config_of(corpus)
    stored = {f"old{row}": doctor_corpus.replaced.Stored(label=None, parts=frozenset()) for row in range(3)}
    monkeypatch.setattr(doctor_corpus.replaced, "stored", lambda folder: stored)
    fine, text = found(config, "corpus")["corpus"]
    assert not fine and text.startswith("3 of 3 clips in the shards of") and "shard.remove=true" in text


def test_one_recording_under_several_names_is_told_and_counts_as_one_for_the_folds(tmp_path):
    rows = [["name", "video", "transcript", "label"]]
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number, 1]))
        rows.append([f"c{number}", f"{number}.mp4", "x", ("happy", "sad")[number % 2]])
    path = tmp_path / "all.csv"
    write_csv(path, [*rows, ["again", "0.mp4", "x", "sad"]])
    shutil.copy(tmp_path / "1.mp4", tmp_path / "copy.mp4")
    config = config_of(path)
    fine, told = found(config, "corpus")["corpus"]
    assert fine and told.endswith(
        "; 2 clips are 1 recording under several names, 1 of them with different labels, as again (sad) and "
        "c0 (happy)"
    )
    write_csv(path, [*rows, ["again", "copy.mp4", "x", "sad"]])
    assert "as again (sad) and c1 (sad)" in found(config, "corpus")["corpus"][1]
    write_csv(path, [rows[0], *([name, "0.mp4", text, label] for name, _, text, label in rows[1:])])
    fine, told = found(config, "labels")["labels"]
    assert not fine and "the labelled clips are of 1 recording, each" in told
