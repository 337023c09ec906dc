"""The generated corpus: complete, readable, the same everywhere, and honest about its truth."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from mer_dist.config.sections import CorpusConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import EMOTIONS, LABELED, UNLABELED
from mer_dist.corpus import clips as clips_of
from mer_dist.corpus.faces import cascade
from mer_dist.demo import corpus, face, voice
from mer_dist.storage import files

pytestmark = pytest.mark.slow

COUNT = 12


def rows(path: Path) -> dict[str, str]:
    with open(path, encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the marker, which tells the time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != files.MARKER
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    corpus.make(folder, COUNT, COUNT, seed=3, workers=2)
    return folder


def test_the_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path):
    corpus.make(tmp_path, COUNT, COUNT, seed=3, workers=1)
    assert contents(tmp_path) == contents(made)
    assert len(contents(made)) == 2 * COUNT + len(corpus.DAMAGE) + 4 + len(corpus.NEW) + 1


def test_another_seed_draws_and_says_something_else():
    here, there = (corpus.Sketch(name="a", split=LABELED, emotion="sad", seed=seed) for seed in (0, 1))
    assert not np.array_equal(corpus.face(here)[0], corpus.face(there)[0])
    assert not np.array_equal(corpus.voice(here)[:16_000], corpus.voice(there)[:16_000])


def test_a_second_call_does_nothing_and_a_stopped_one_goes_on(made):
    before = contents(made)
    lost = made / "corpus" / "video-labeled" / "sample_00000003.mp4"
    kept = made / "corpus" / "video-labeled" / "sample_00000004.mp4"
    size_and_mtime = files.size_and_mtime(kept)
    lost.unlink()
    corpus.make(made, COUNT, COUNT, seed=3, workers=1)
    assert not lost.exists()
    (made / files.MARKER).unlink()
    corpus.make(made, COUNT, COUNT, seed=3, workers=1)
    assert contents(made) == before
    assert files.size_and_mtime(kept) == size_and_mtime


def test_a_corpus_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="folder of its own"):
        corpus.make(tmp_path, 1, 1)
    assert (tmp_path / "corpus" / "mine.mp4").read_bytes() == b"mine"


def test_every_clip_has_a_file_a_label_or_truth_and_a_line(made):
    clips = {path.stem for path in (made / "corpus").rglob("*.mp4")}
    labels, truth = rows(made / "corpus" / "label-disdim.csv"), rows(made / "truth.csv")
    spoken = rows(made / "corpus" / "label-transcription.csv")
    assert len(clips) == 2 * COUNT + len(corpus.DAMAGE)
    assert clips == labels.keys() | truth.keys() and not labels.keys() & truth.keys()
    assert clips - spoken.keys() == {"damaged_transcript"}
    assert {labels.pop("damaged_label")} == {corpus.OUTSIDE}
    assert set(labels.values()) | set(truth.values()) <= set(EMOTIONS)


def test_no_truth_lies_in_the_corpus_folder(made):
    truth = rows(made / "truth.csv")
    tables = [path for path in (made / "corpus").rglob("*") if path.suffix == ".csv"]
    assert {path.name for path in tables} == {"label-disdim.csv", "label-transcription.csv"}
    assert not truth.keys() & rows(made / "corpus" / "label-disdim.csv").keys()


def test_the_corpus_reader_takes_all_but_the_label_outside_the_set(made):
    clips, problems = clips_of(CorpusConfig(path=str(made / "corpus")))
    assert len(clips) == 2 * COUNT + len(corpus.DAMAGE) - 1
    assert sorted((problem.name, problem.lost) for problem in problems) == [
        ("damaged_label", "clip"),
        ("damaged_transcript", "text"),
    ]


def test_streams_are_h264_and_aac_of_two_to_four_seconds(made):
    for name in ("sample_00000000", "sample_00000001"):
        with av.open(str(made / "corpus" / "video-labeled" / f"{name}.mp4")) as container:
            (video,), (audio,) = container.streams.video, container.streams.audio
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.pix_fmt) == (160, 160, "yuv420p")
            assert (audio.rate, audio.layout.name) == (16_000, "mono")
            assert video.frames == round(float(video.duration * video.time_base) * corpus.FPS)
            assert 2 <= float(video.duration * video.time_base) <= 4
            assert 2 <= float(audio.duration * audio.time_base) <= 4.2


def test_each_damage_is_there(made):
    def streams(name: str) -> tuple[int, int]:
        split = corpus.DAMAGE[name][0]
        with av.open(str(made / "corpus" / f"video-{split}" / f"{name}.mp4")) as container:
            return len(container.streams.video), len(container.streams.audio)

    assert streams("damaged_novideo") == (0, 1)
    assert streams("damaged_noaudio") == (1, 0)
    assert streams("damaged_transcript") == streams("damaged_label") == (1, 1)
    for name in ("damaged_truncated", "damaged_empty"):
        with pytest.raises(av.FFmpegError):
            streams(name)


def test_the_two_parts_have_the_promised_priors():
    counts = {
        split: Counter(
            sketch.emotion
            for sketch in corpus.plan(240, 400, 0)
            if sketch.split == split and sketch.name not in corpus.DAMAGE
        )
        for split in (LABELED, UNLABELED)
    }
    labeled, unlabeled = (
        np.array([counts[split][emotion] for emotion in EMOTIONS]) for split in (LABELED, UNLABELED)
    )
    assert labeled.sum() == 240 and unlabeled.sum() == 400
    assert labeled.min() >= 36 and labeled.max() <= 45
    # Total variation distance: what a prior correction has to work with.
    assert 0.5 * np.abs(labeled / 240 - unlabeled / 400).sum() > 0.2


def test_each_pair_of_emotions_is_hard_in_one_modality_at_most():
    pairs = [frozenset(pair) for modality in corpus.PAIRS.values() for pair in modality]
    assert len(pairs) == len(set(pairs)) == 9
    for modality in corpus.PAIRS.values():
        assert sorted(emotion for pair in modality for emotion in pair) == sorted(EMOTIONS)


@pytest.mark.parametrize("table", [face.EXPRESSIONS, voice.MANNERS])
def test_every_emotion_looks_and_sounds_different_in_the_same_person(table):
    assert tuple(table) == EMOTIONS
    results = []
    for row in range(len(EMOTIONS)):
        rng, blend = np.random.default_rng(0), np.eye(len(EMOTIONS))[row]
        if table is face.EXPRESSIONS:
            results.append(face.frames(rng, blend, 1, corpus.FPS)[0].astype(float))
        else:
            results.append(_spectrum(voice.voice(rng, blend, 2.0)))
    apart = [np.abs(one - two).max() for row, one in enumerate(results) for two in results[:row]]
    assert min(apart) > (60 if table is face.EXPRESSIONS else 0.2)


def _spectrum(wave: np.ndarray) -> np.ndarray:
    """Mean level in octave bands, log10."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / voice.RATE)
    edges = frequency.searchsorted([60, 125, 250, 500, 1000, 2000, 4000])
    return np.log10([part.mean() for part in np.split(power, edges)[1:-1]])


def test_the_cascade_finds_most_of_the_drawn_faces():
    found = 0
    sketches = corpus.plan(18, 0, 0)[:18]
    for sketch in sketches:
        images = corpus.face(sketch)
        found += cascade([images[len(images) // 4], images[-1]], 64)[1]
    assert found >= 0.8 * len(sketches)


def test_lines_are_many_different_ones_of_every_emotion():
    lines = corpus.lines(600)
    assert len(set(lines)) > 500
    assert lines == corpus.lines(600)
    assert lines != corpus.lines(600, seed=1)
    shared = corpus.demo_lines.SHARED["angry", "sad"]
    for emotion in ("angry", "sad"):
        spoken = [
            corpus.transcript(corpus.Sketch(name=str(n), split=LABELED, emotion=emotion, seed=0))
            for n in range(60)
        ]
        assert sum(any(clause in line for clause in shared) for line in spoken) > 12
