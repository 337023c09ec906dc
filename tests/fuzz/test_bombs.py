"""Small files that claim or unpack to a great deal: refused by a line, in bounded memory.

The sandbox may take 4 GiB of private memory; each of these asks for more, or is measured.
"""

from __future__ import annotations

import io
import resource
import struct
import wave
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import ramp, tone, write_mp4

from mer_dist.config import config as configuration
from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip
from mer_dist.corpus import media, mertools, openface, table
from mer_dist.corpus.decode import decode
from mer_dist.corpus.paths import openface_folder
from mer_dist.shards.reader import Reader, Sample
from mer_dist.shards.workers import MEMORY, in_order
from mer_dist.storage.run_folder import ShardFolder

#: Bytes of resident memory that reading a bomb may add.
ALLOWED = 400 << 20


def measured(function, *arguments) -> tuple[object, int]:
    """In the sandbox: the result or refusal, and by how many bytes the peak of memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = function(*arguments)
    except (UserError, ValueError, media.MediaError) as error:
        result = str(error)
    return result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


@pytest.fixture
def tried(sandbox):
    def run(function, *arguments, allowed=ALLOWED):
        result, grown = sandbox.call(measured, function, *arguments, seconds=120)
        assert grown < allowed, f"{grown >> 20} MiB"
        return result

    return run


def decoded(video: Path | None, audio: Path | None, **settings) -> list[str]:
    clip = Clip(name="a", video=video, audio=audio, transcript="x", label=None, split="unlabeled")
    found = decode(clip, ShardConfig(frames=4, image_size=32, **{"faces": "none", **settings}))
    return [f"{problem.lost}: {problem.reason}" for problem in found.problems]


def png(width: int, height: int) -> bytes:
    """Black, and true to its header: 9000 x 9000 pixels take 0.2 MB here and 243 MB in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A small picture whose frame header claims another size."""
    import cv2

    content = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("make", [png, jpeg])
def test_a_picture_of_huge_sides_is_not_decoded(tmp_path, tried, make):
    content = make(9000, 9000) if make is png else make(30_000, 30_000)
    folder = openface_folder(tmp_path / "faces", "a")
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(content)
    images, _ = tried(openface.crops, tmp_path / "faces", "a", 4, 32)
    assert images == []
    sample = Sample(
        name="a",
        label=None,
        split="",
        transcript=None,
        missing=[],
        duration=0,
        jpegs=[content],
        flac=None,
        location="00000.tar, clip a",
    )
    assert tried(sample.images).startswith("00000.tar, clip a: its pictures cannot be decoded")


@pytest.mark.slow
def test_a_video_of_huge_frames_is_refused_by_its_header_and_by_its_stream(tmp_path, tried):
    path = write_mp4(tmp_path / "a.mp4", np.zeros((2, 6000, 8000, 3), np.uint8), codec="mpeg4")
    assert "video: a.mp4: its frames of 8000 x 6000 pixels are too large" in tried(decoded, path, None)
    # The header tells a lie, the stream does not.
    content = path.read_bytes()
    wide, small = struct.pack(">HH", 8000, 6000), struct.pack(">HH", 80, 60)
    assert wide in content
    path.write_bytes(content.replace(wide, small))
    lost = tried(decoded, path, None)
    assert any(line.startswith("video: a.mp4") for line in lost), lost


@pytest.mark.slow
def test_a_video_that_claims_billions_of_frames_is_masked_and_costs_no_memory(tmp_path, tried):
    path = write_mp4(tmp_path / "a.mp4", ramp(8))
    content = bytearray(path.read_bytes())
    for box in (b"stsz", b"stts", b"stsc", b"stco"):
        count = content.index(box) + (12 if box == b"stsz" else 8)
        content[count : count + 4] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(content)
    assert any("video" in line for line in tried(decoded, path, None))


@pytest.mark.slow
def test_a_wav_that_claims_hours_gives_what_is_there_and_one_of_hours_is_refused(tmp_path, tried):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(300, 0.5, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    size = content.index(b"data") + 4
    content[size : size + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    assert not any(line.startswith("audio") for line in tried(decoded, None, path))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2))
    with open(path, "r+b") as file:  # sparse: three hours that take no disk
        file.truncate(3 * 3600 * 32_000)
        file.seek(4)
        file.write(struct.pack("<I", 3 * 3600 * 32_000 - 8))
        file.seek(40)
        file.write(struct.pack("<I", 3 * 3600 * 32_000 - 44))
    assert "audio: a.wav: its sound is longer than 3600 s" in tried(decoded, None, path)


def greedy(gibibytes: int) -> str:
    return f"{len(bytearray(gibibytes << 30))} bytes"


def ask_for(gibibytes: int) -> str:
    try:
        return greedy(gibibytes)
    except MemoryError:
        return "no memory"


@pytest.mark.slow
def test_a_decoding_process_gets_no_more_memory_than_its_bound():
    assert MEMORY == 4 << 30
    found = list(in_order(ask_for, [1, 8], 1, crashed=lambda item: "died"))
    assert found == [f"{1 << 30} bytes", "no memory"]


@pytest.mark.slow
def test_an_npy_header_that_claims_terabytes_takes_no_memory(tmp_path, tried):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        np.lib.format.write_array_header_1_0(file, head)
        file.write(bytes(64))
    assert tried(mertools.read_feature, path).startswith(
        "cut off: it has fewer values than its header states"
    )


@pytest.mark.slow
def test_a_label_file_that_unpacks_to_gigabytes_or_claims_objects_without_end_is_refused(tmp_path, tried):
    path = tmp_path / "label.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_corpus.npy", "w") as file:
            for _ in range(512):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    assert "it unpacks to more than 128 MiB" in tried(mertools.read_labels, path)
    for planted in (
        b"\x80\x04]r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"(" * 10_000 + b".",
        b"]" + b"2" * 100 + b".",
    ):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_corpus.npy", stream.getvalue() + planted)
        assert "not a label file of plain values" in tried(mertools.read_labels, path)


LAUGHS = "run: {folder: &a0 [x, x]}\n" + "".join(
    f"k{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 10)}]\n" for row in range(1, 12)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases (*name) are not read"),
        ("run: {folder: !!python/object/apply:os.system ['touch ran']}", "could not determine a constructor"),
        ("run: {folder: !!python/name:os.system }", "could not determine a constructor"),
        ("run: " + "[" * 20_000, "not readable as YAML"),
        ("run: {processes: " + "9" * 6000 + "}", "not readable as YAML"),
        ("run: {folder: [" + "x, " * 5_000 + "]}", "it must be text"),
        ("run: {folder: '${run.folder}${run.folder}'}", "job.yaml"),
    ],
)
def test_yaml_that_grows_calls_or_nests_is_refused_in_one_line(tmp_path, tried, monkeypatch, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    line = tried(configuration.load, path)
    assert words in line and line.startswith(str(path)) and "\n" not in line and len(line) < 1000
    assert not list(tmp_path.glob("ran")) and not Path("ran").exists()


@pytest.mark.slow
def test_a_csv_of_huge_fields_nuls_and_endless_quotes_costs_its_rows(tmp_path, tried):
    path = tmp_path / "a.csv"
    rows = [b"a,happy", b"b," + b"x" * 10_000_000, b'c,"never closed', b"d,sa\0d", b"e,\xff\xfe", b"f,sad"]
    path.write_bytes(b"name,label\n" + b"\n".join(rows) + b"\n")
    found = tried(table.read, path, ("name", "label"))
    assert {"a", "f"} <= found.rows.keys() and {"b", "c", "e"} <= found.bad.keys()
    assert found.rows["a"]["label"] == "happy" and all(map(str.isprintable, found.bad.values()))


@pytest.mark.slow
def test_an_index_that_points_beyond_its_tar_takes_no_memory(tmp_path, tried):
    from mer_dist.shards import shard_index

    (tmp_path / "00000.tar").write_bytes(bytes(10_240))
    for span in ((0, 1 << 60), (1 << 62, 10), (-512, 100), (512, -1000)):
        row = shard_index.Row(
            name="a",
            shard=0,
            split="unlabeled",
            label=None,
            transcript="x",
            duration=1.0,
            missing=[],
            frames=1,
            samples=0,
            checksum="",
            members={"00.jpg": span},
        )
        shard_index.write_rows(ShardFolder(tmp_path).index, [row])
        line = tried(first_clip, tmp_path)
        assert line.startswith(f"{tmp_path}/00000.tar, clip a: the tar ends too early")


def first_clip(folder: Path):
    reader = Reader(folder)
    return reader.read(reader.rows[0])
