"""Real media files for the tests: H.264 and AAC in mp4, small and told apart by what they show."""

from __future__ import annotations

import csv
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25


def ramp(count: int = 25, size: int = 64) -> np.ndarray:
    """(count, size, size, 3): grey frames that grow brighter from 20 to 235."""
    levels = np.linspace(20, 235, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, size, size, 3)).copy()


def tone(hertz: float = 440.0, seconds: float = 1.0, rate: int = 44_100) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_mp4(
    path: Path,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    rate: int = 44_100,
    faststart: bool = False,
    **video,
) -> Path:
    """Encode ``frames`` (T, H, W, 3) and a waveform; a part that is None becomes no stream.

    ``video`` may name another ``format`` than the file's name does, ``codec``, ``pix_fmt``, the ``ratio`` of
    a pixel's sides, and options of the encoder (``options``) and of the container (``muxer``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**video.get("muxer", {}), **({"movflags": "faststart"} if faststart else {})}
    with av.open(str(path), "w", format=video.get("format"), options=options) as container:
        streams = []
        if frames is not None:
            stream = container.add_stream(video.get("codec", "libx264"), rate=RATE)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = video.get("pix_fmt", "yuv420p")
            stream.options = {"crf": "10", "preset": "ultrafast", "g": "10", **video.get("options", {})}
            stream.codec_context.sample_aspect_ratio = video.get("ratio", Fraction(1))
            stream.codec_context.thread_count = 1
            streams.append((stream, (av.VideoFrame.from_ndarray(frame) for frame in frames)))
        if sound is not None:
            stream = container.add_stream("aac", rate=rate, layout="mono")
            streams.append((stream, _blocks(sound, rate)))
        for stream, parts in streams:
            for part in parts:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    return path


def _blocks(sound: np.ndarray, rate: int):
    for start in range(0, len(sound), 1024):
        block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], "fltp", "mono")
        block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
        yield block


def remuxed(source, target, change, **options):
    """``source`` with each packet as ``change(packet, number of its stream)`` leaves it; None drops it."""
    counts: dict[int, int] = {}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        streams = {own.index: new.add_stream_from_template(own) for own in old.streams}
        for packet in old.demux():
            if packet.dts is None:
                continue
            own = packet.stream
            number = counts[own.index] = counts.get(own.index, -1) + 1
            if change(packet, number):
                packet.stream = streams[own.index]
                new.mux(packet)
    return target


def laid_down(path: Path, steps: tuple[float, float, float, float]) -> Path:
    """An mp4 whose track header gets the display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(step * (1 << 16)) for step in steps)
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def edited(path: Path, *edits: tuple[float, float]) -> Path:
    """An mp4, its header last, whose edit list becomes ``edits``: seconds long, from this second on.

    From second -1 on nothing is shown.
    One edit takes the place of the one that is there, so that the header may come first.
    """
    content = bytearray(path.read_bytes())
    clock = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)[0]
    film = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)[0]
    place = content.index(b"elst") - 4
    size = struct.unpack_from(">I", content, place)[0]
    rows = [
        struct.pack(">iiI", round(length * film), -1 if start < 0 else round(start * clock), 1 << 16)
        for length, start in edits
    ]
    body = b"elst" + struct.pack(">II", 0, len(rows)) + b"".join(rows)
    content[place : place + size] = struct.pack(">I", len(body) + 4) + body
    for box in (b"moov", b"trak", b"edts"):
        start = content.index(box) - 4
        whole = struct.unpack_from(">I", content, start)[0] + len(body) + 4 - size
        struct.pack_into(">I", content, start, whole)
    path.write_bytes(content)
    return path


def drawn_face(x: int, y: int, radius: int = 60, shape=(240, 426)) -> np.ndarray:
    """A face that the cascade takes for one, on a plain ground."""
    import cv2

    image = np.full((*shape, 3), 150, np.uint8)
    cv2.ellipse(image, (x, y), (int(radius * 0.8), radius), 0, 0, 360, (224, 188, 160), -1)
    for side in (-1, 1):
        eye = (x + side * radius * 32 // 100, y - radius // 5)
        cv2.ellipse(image, eye, (radius // 6, radius // 11), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(image, eye, radius // 13, (30, 20, 20), -1)
        brow = (eye[0], eye[1] - radius // 5)
        cv2.ellipse(image, brow, (radius // 5, radius // 14), 0, 180, 360, (60, 40, 30), 4)
    cv2.line(image, (x, y - radius // 10), (x, y + radius // 5), (190, 150, 125), 4)
    cv2.ellipse(image, (x, y + radius // 2), (radius // 3, radius // 9), 0, 0, 360, (150, 50, 50), -1)
    return cv2.GaussianBlur(image, (5, 5), 0)


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_corpus(folder: Path, labeled: int = 4, unlabeled: int = 3) -> Path:
    """A healthy corpus in the MER2024 layout; clip ``k`` hums at ``300 + 20 k`` Hz."""
    emotions = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    names = [f"a{row:03d}" for row in range(labeled)] + [f"u{row:03d}" for row in range(unlabeled)]
    for row, name in enumerate(names):
        part = "video-labeled" if row < labeled else "video-unlabeled-with-test2noise"
        write_mp4(folder / part / f"{name}.mp4", ramp(12), tone(300 + 20 * row, 0.5))
    labels = [[name, emotions[row % 6], "0.5"] for row, name in enumerate(names[:labeled])]
    write_csv(folder / "label-disdim.csv", [["name", "discrete", "valence"], *labels])
    lines = [[name, f"我说第{row}句话", f"line {row}"] for row, name in enumerate(names)]
    write_csv(folder / "label-transcription.csv", [["name", "chinese", "english"], *lines])
    return folder
