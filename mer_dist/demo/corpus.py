"""The embedded demo corpus: generated clips in the MER2024 layout, with the truth kept apart.

::

    <folder>/corpus/      video-labeled/  video-unlabeled/
                          label-disdim.csv  label-transcription.csv
    <folder>/truth.csv    name,discrete of the unlabelled clips; no stage reads it
    <folder>/new/         clips of another day, for ``predict``; new-transcripts.csv

Every clip shows its emotion three times, in the face, the voice and the line, and each of the three
leaves three pairs of emotions hard to tell apart (:data:`PAIRS`); no pair is hard in two of them,
so two modalities together decide what neither decides alone. Besides, in some clips a modality shows
no emotion, or another one. The labelled clips are nearly balanced; the unlabelled ones are not.

Six more clips are damaged (:data:`DAMAGE`): a label outside the set, a truncated mp4, no
transcript (labelled); no video stream, no audio stream, an empty file (unlabelled).
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger, progress
from mer_dist.core.records import EMOTIONS, LABELED, UNLABELED
from mer_dist.demo import face as demo_face
from mer_dist.demo import lines as demo_lines
from mer_dist.demo import voice as demo_voice
from mer_dist.storage import files

FPS = 12
#: The pairs of emotions that a modality tells apart badly.
PAIRS = {
    "video": (("sad", "worried"), ("neutral", "angry"), ("happy", "surprise")),
    "audio": (("angry", "surprise"), ("neutral", "sad"), ("happy", "worried")),
    "text": tuple(demo_lines.SHARED),
}
#: Largest weight of the other emotion of the pair in a face or a voice. Beyond one half a clip
#: looks more like the other one; between ``1 - BLEND`` and ``BLEND`` it is undecidable.
BLEND = 0.6
#: Fraction of the lines with a clause that their pair shares.
SHARED_LINES = 0.45
#: Fractions of the clips in which one modality shows no emotion, and in which it shows another one.
SILENT, MISLEADING = 0.06, 0.04
#: Class prior of the two parts of the corpus, in the order of ``EMOTIONS``.
PRIOR = {LABELED: (0.18, 0.17, 0.17, 0.16, 0.16, 0.16), UNLABELED: (0.40, 0.12, 0.24, 0.04, 0.16, 0.04)}
#: name -> (split, emotion, what is wrong).
DAMAGE = {
    "damaged_label": (LABELED, "angry", "a label outside the set"),
    "damaged_truncated": (LABELED, "happy", "the mp4 ends early"),
    "damaged_transcript": (LABELED, "sad", "no transcript"),
    "damaged_novideo": (UNLABELED, "neutral", "no video stream"),
    "damaged_noaudio": (UNLABELED, "worried", "no audio stream"),
    "damaged_empty": (UNLABELED, "neutral", "an empty file"),
}
OUTSIDE = "contempt"
#: Emotions of the clips of another day.
NEW = ("happy", "angry", "neutral", "worried", "sad")
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What a clip shows, before it is drawn."""

    name: str
    split: str
    emotion: str
    seed: int

    def stream(self, modality: str) -> np.random.Generator:
        """Random numbers of one modality; they depend on seed, name and modality alone."""
        key = zlib.crc32(f"{self.name}/{modality}".encode())
        return np.random.default_rng([self.seed, key])

    @property
    def video(self) -> str:
        return f"video-{self.split}/{self.name}.mp4"


def make(folder: Path, labeled: int = 240, unlabeled: int = 400, seed: int = 0, workers: int = 2) -> None:
    """Generate the corpus in ``folder``, or what is missing of it.

    Args:
        labeled, unlabeled: sound clips of each part; the damaged ones come on top.

    Raises:
        UserError: ``folder/corpus`` exists and is none of ours.
    """
    folder = Path(folder)
    sources = [__file__, demo_face.__file__, demo_voice.__file__, demo_lines.__file__]
    code = [files.digest(Path(str(source))) for source in sources]
    fingerprint = files.fingerprint_of([labeled, unlabeled, seed, code])
    if files.read_marker(folder, fingerprint):
        logger.info("the demo corpus is there: %s", folder)
        return
    _begin(folder, fingerprint)
    sketches = plan(labeled, unlabeled, seed)
    corpus = folder / "corpus"
    absent = [sketch for sketch in sketches if not (corpus / sketch.video).exists()]
    for _ in progress(_filmed(absent, corpus, workers), len(absent), "demo clips"):
        pass
    _write_tables(folder, sketches)
    _film_new(folder / "new", seed)
    files.write_marker(folder, fingerprint, clips=len(sketches))


def _begin(folder: Path, fingerprint: str) -> None:
    """Go on where a call with the same arguments was stopped; otherwise start afresh."""
    corpus, begun = folder / "corpus", folder / PLAN
    if begun.exists():
        if files.read_json(begun) == fingerprint:
            return
        shutil.rmtree(corpus, ignore_errors=True)
    elif corpus.exists():
        raise UserError(f"{corpus} is not a demo corpus; give the demo a folder of its own")
    (folder / files.MARKER).unlink(missing_ok=True)
    files.write_json(begun, fingerprint)


def plan(labeled: int, unlabeled: int, seed: int) -> list[Sketch]:
    """Every clip of the corpus with its true emotion; the counts follow :data:`PRIOR` exactly."""
    sketches = []
    for split, count, prefix in ((LABELED, labeled, "sample"), (UNLABELED, unlabeled, "samplenew")):
        emotions = np.repeat(EMOTIONS, _quota(count, PRIOR[split]))
        order = np.random.default_rng([seed, count, len(prefix)]).permutation(count)
        for number, emotion in enumerate(emotions[order]):
            name = f"{prefix}_{number:08d}"
            sketches.append(Sketch(name=name, split=split, emotion=str(emotion), seed=seed))
    for name, (split, emotion, _) in DAMAGE.items():
        sketches.append(Sketch(name=name, split=split, emotion=emotion, seed=seed))
    return sketches


def _quota(count: int, shares: Iterable[float]) -> np.ndarray:
    """Whole numbers in proportion to ``shares`` that add up to ``count`` (largest remainders)."""
    exact = count * np.array(shares) / sum(shares)
    quota = exact.astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    return quota


def lines(count: int, seed: int = 0) -> list[str]:
    """Transcripts of ``count`` clips that are not in the corpus, to train a tokenizer on."""
    emotions = [EMOTIONS[number % len(EMOTIONS)] for number in range(count)]
    return [
        transcript(Sketch(name=f"line_{number}", split=UNLABELED, emotion=emotion, seed=seed))
        for number, emotion in enumerate(emotions)
    ]


def transcript(sketch: Sketch) -> str:
    rng = sketch.stream("text")
    shown = shown_emotion(rng, sketch.emotion)
    return demo_lines.line(rng, shown, shared=rng.random() < SHARED_LINES)


def shown_emotion(rng: np.random.Generator, emotion: str) -> str | None:
    """The emotion that a modality shows: mostly ``emotion``, sometimes another one, or None."""
    chance = rng.random()
    if chance < SILENT:
        return None
    if chance < SILENT + MISLEADING:
        return str(rng.choice([other for other in EMOTIONS if other != emotion]))
    return emotion


def blend(rng: np.random.Generator, emotion: str, modality: str) -> np.ndarray:
    """(6,) weights of the emotions in a face or a voice.

    A modality without emotion shows the mean of all six, so that it does not look neutral.
    """
    shown = shown_emotion(rng, emotion)
    if shown is None:
        return np.full(len(EMOTIONS), 1 / len(EMOTIONS))
    (pair,) = (pair for pair in PAIRS[modality] if shown in pair)
    other = pair[1 - pair.index(shown)]
    weights = np.zeros(len(EMOTIONS))
    weights[EMOTIONS.index(other)] = rng.uniform(0, BLEND)
    weights[EMOTIONS.index(shown)] = 1 - weights.sum()
    return weights


def seconds(sketch: Sketch) -> float:
    """Length of the clip, 2 to 4 s in whole frames."""
    return int(sketch.stream("length").integers(2 * FPS, 4 * FPS + 1)) / FPS


def face(sketch: Sketch) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB at :data:`FPS`."""
    rng = sketch.stream("video")
    count = round(seconds(sketch) * FPS)
    return demo_face.frames(rng, blend(rng, sketch.emotion, "video"), count, FPS)


def voice(sketch: Sketch) -> np.ndarray:
    """(S,) float32 at 16 kHz."""
    rng = sketch.stream("audio")
    return demo_voice.voice(rng, blend(rng, sketch.emotion, "audio"), seconds(sketch))


def _filmed(sketches: list[Sketch], corpus: Path, workers: int) -> Iterator[None]:
    """Film all clips, in this process or in several; the files do not depend on how many."""
    act = partial(_film, corpus=corpus)
    if workers == 1:
        yield from map(act, sketches)
        return
    # Forked copies of a process with running codec or torch threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(act, sketches, chunksize=4)


def _film(sketch: Sketch, corpus: Path) -> None:
    import cv2

    cv2.setNumThreads(1)
    damage = DAMAGE[sketch.name][2] if sketch.name in DAMAGE else ""
    content = b""
    if damage != "an empty file":
        content = encode(
            None if damage == "no video stream" else face(sketch),
            None if damage == "no audio stream" else voice(sketch),
        )
    if damage == "the mp4 ends early":
        # The index of an mp4 is at its end, so nothing of this one can be decoded.
        content = content[: len(content) * 2 // 3]
    files.write_bytes(corpus / sketch.video, content)


def _film_new(folder: Path, seed: int) -> None:
    sketches = [
        Sketch(name=f"new_{number}", split=UNLABELED, emotion=emotion, seed=seed)
        for number, emotion in enumerate(NEW, start=1)
    ]
    for sketch in sketches:
        files.write_bytes(folder / f"{sketch.name}.mp4", encode(face(sketch), voice(sketch)))
    _write_csv(
        folder.with_name("new-transcripts.csv"),
        ("name", "transcript"),
        [(one.name, transcript(one)) for one in sketches],
    )


def encode(images: np.ndarray | None, sound: np.ndarray | None) -> bytes:
    """H.264 and AAC in an mp4: ``(T, H, W, 3)`` uint8 RGB and ``(S,)`` float32, or one of them."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        packets = []
        if images is not None:
            quality = {"preset": "ultrafast", "crf": "25"}
            video = container.add_stream("libx264", FPS, options=quality)
            video.width, video.height, video.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
            # With several threads the bytes would depend on the machine.
            video.codec_context.thread_count = 1
        if sound is not None:
            audio = container.add_stream("aac", demo_voice.RATE, layout="mono")
            audio.bit_rate = 48_000
        if images is not None:
            pictures = (av.VideoFrame.from_ndarray(image, "rgb24") for image in images)
            packets += [packet for picture in pictures for packet in video.encode(picture)]
            packets += video.encode(None)
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate = demo_voice.RATE
            packets += [*audio.encode(frame), *audio.encode(None)]
        container.mux(packets)
    return buffer.getvalue()


def _write_tables(folder: Path, sketches: list[Sketch]) -> None:
    labels, spoken, truth = [], [], []
    for sketch in sketches:
        if sketch.split == LABELED:
            outside = sketch.name == "damaged_label"
            labels.append((sketch.name, OUTSIDE if outside else sketch.emotion))
        else:
            truth.append((sketch.name, sketch.emotion))
        if sketch.name != "damaged_transcript":
            spoken.append((sketch.name, transcript(sketch)))
    _write_csv(folder / "corpus" / "label-disdim.csv", ("name", "discrete"), labels)
    _write_csv(folder / "corpus" / "label-transcription.csv", ("name", "chinese"), spoken)
    _write_csv(folder / "truth.csv", ("name", "discrete"), truth)


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    files.write_text(path, text.getvalue())
