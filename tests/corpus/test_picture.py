"""What is stored of a picture is what a player shows: upright, not mirrored, square pixels, nothing hidden.

The right values are asserted for every file; the program ffmpeg, where it is installed, must show the same.
"""

import gc
import os
import shutil
import struct
import subprocess
from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.sidedata.sidedata import SideDataContainer
from conftest import skip
from media_files import edited, laid_down, ramp, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import media
from mer_dist.corpus.decode import decode
from mer_dist.corpus.picture import ASKEW, LONGEST_SIDE, ODD_PIXELS, Shot, display_matrix, shown

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
STORED = "red green blue white"
#: Display matrix (a, b, c, d) -> the corners of the picture: top left, top right, bottom left, bottom right.
LAID_DOWN = {
    (1, 0, 0, 1): "red green blue white",
    (-1, 0, 0, 1): "green red white blue",
    (1, 0, 0, -1): "blue white red green",
    (-1, 0, 0, -1): "white blue green red",
    (0, 1, -1, 0): "blue red white green",
    (0, -1, 1, 0): "green white red blue",
    (0, 1, 1, 0): "red blue green white",
    (0, -1, -1, 0): "white green blue red",
    # Of twice the size, moved by less than a degree, and one that says nothing.
    (0, 2, -2, 0): "blue red white green",
    (0.005, 1, -1, 0.005): "blue red white green",
    (0, 0, 0, 0): "red green blue white",
}


def quadrants(count: int = 3, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, height, width, 3): red, green, blue and white quarters."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    top, left = slice(height // 2), slice(width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    for (rows, columns), colour in zip(
        ((top, left), (top, right), (bottom, left), (bottom, right)), COLOURS.values(), strict=True
    ):
        frames[:, rows, columns] = colour
    return frames


def corners(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    seen = [
        image[row, column].astype(int)
        for row in (height // 4, height * 3 // 4)
        for column in (width // 4, width * 3 // 4)
    ]
    return " ".join(min(COLOURS, key=lambda name: abs(colour - COLOURS[name]).sum()) for colour in seen)


def greys(frames: list[np.ndarray]) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def played(path) -> list[np.ndarray]:
    """Every frame as the program ffmpeg shows it."""
    told = subprocess.run(
        [
            "ffmpeg",
            "-v",
            "error",
            "-i",
            path,
            "-an",
            "-vf",
            "scale=iw*sar:ih,setsar=1",
            "-fps_mode",
            "passthrough",
            "-f",
            "image2pipe",
            "-c:v",
            "ppm",
            "-",
        ],
        capture_output=True,
        check=True,
    )
    rest, frames = told.stdout, []
    while rest:
        _, size, _, rest = rest.split(b"\n", 3)
        width, height = map(int, size.split())
        frames.append(np.frombuffer(rest, np.uint8, width * height * 3).reshape(height, width, 3))
        rest = rest[width * height * 3 :]
    return frames


def all_frames(path) -> list[np.ndarray]:
    return media.read_video(path, 1000).frames


def assert_as_played(path) -> None:
    if not shutil.which("ffmpeg"):
        skip("the program ffmpeg is not installed")
    stored, shown = all_frames(path), played(path)
    assert len(stored) == len(shown)
    for ours, theirs in zip(stored, shown, strict=True):
        ratios = [image.shape[1] / image.shape[0] for image in (ours, theirs)]
        assert ratios[0] == pytest.approx(ratios[1], rel=0.03)
        ours, theirs = (cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in (ours, theirs))
        assert np.abs(ours.astype(int) - theirs).mean() < 4


def both_ways(path, right: str) -> None:
    video = media.read_video(path, 1)
    assert corners(video.frames[0]) == right and (video.damage, video.remarks) == ("", [])
    assert_as_played(path)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "right"), LAID_DOWN.items())
def test_a_matrix_turns_and_mirrors_a_picture_as_players_do(tmp_path, steps, right):
    both_ways(laid_down(write_mp4(tmp_path / "a.mp4", quadrants()), steps), right)


@pytest.mark.parametrize(
    "steps",
    [(0.866, 0.5, -0.5, 0.866), (0.707, 0.707, 0.707, -0.707), (1, 1, 1, 1), (1, 0, 0, 0), (1, 0, 0.5, 1)],
)
def test_a_matrix_that_lays_a_picture_down_askew_or_flat_is_not_followed_and_that_is_told(tmp_path, steps):
    video = media.read_video(laid_down(write_mp4(tmp_path / "a.mp4", quadrants()), steps), 3)
    assert [corners(frame) for frame in video.frames] == [STORED] * 3
    assert video.remarks == [ASKEW] and video.damage == ""


@pytest.mark.parametrize(
    ("angle", "mirrored", "right"), [(90, False, "green white red blue"), (0, True, "green red white blue")]
)
def test_matroska_turns_and_mirrors_by_its_projection(tmp_path, angle, mirrored, right):
    plain = write_mp4(tmp_path / "a.mp4", quadrants())
    with av.open(str(plain)) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(angle, hflip=mirrored)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    both_ways(tmp_path / "a.mkv", right)


def test_h264_says_itself_how_its_picture_is_to_be_turned(tmp_path):
    plain = write_mp4(tmp_path / "a.mp4", quadrants())
    with av.open(str(plain)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        say = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=90", source.streams.video[0]
        )
        for packet in source.demux(video=0):
            for told in say.filter(packet) if packet.size else []:
                told.stream = stream
                target.mux(told)
    # It holds from there on; the program ffmpeg turns the very frame with which it comes, and no other.
    video = media.read_video(tmp_path / "b.mp4", 3)
    assert [corners(frame) for frame in video.frames] == ["green white red blue"] * 3 and video.damage == ""


@pytest.mark.parametrize(
    ("orientation", "right"),
    [(1, STORED), (2, "green red white blue"), (5, "red blue green white"), (6, "blue red white green")],
)
def test_a_photo_is_turned_by_its_exif(tmp_path, orientation, right):
    photo = cv2.imencode(".jpg", quadrants(1)[0][..., ::-1])[1].tobytes()
    tags = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + bytes(7)
    path = tmp_path / "a.jpg"
    path.write_bytes(photo[:2] + b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags + photo[2:])
    both_ways(path, right)


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("a.mp4", {"ratio": Fraction(16, 15)}, (48, 68)),
        ("a.mp4", {"ratio": Fraction(64, 45)}, (48, 91)),
        ("a.mkv", {"ratio": Fraction(8, 9)}, (48, 57)),
        ("a.ts", {"ratio": Fraction(2)}, (48, 128)),
        ("a.avi", {"ratio": Fraction(1, 2), "codec": "mpeg4"}, (48, 32)),
        # DVD knows the shape of the whole picture alone: 4:3 here.
        ("a.vob", {"ratio": Fraction(1), "codec": "mpeg2video"}, (48, 64)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(tmp_path, name, settings, shape):
    path = write_mp4(tmp_path / name, quadrants(13), **settings)
    assert media.read_video(path, 1).frames[0].shape == (*shape, 3)
    both_ways(path, STORED)


def wide(path, ratio: Fraction):
    """An mp4 with another shape of pixels in its header than in its H.264."""
    content = bytearray(path.read_bytes())
    place = content.index(b"pasp") + 4
    content[place : place + 8] = struct.pack(">II", ratio.numerator, ratio.denominator)
    path.write_bytes(content)
    return path


def test_the_containers_word_on_the_shape_of_pixels_stands_above_the_codecs(tmp_path):
    path = wide(write_mp4(tmp_path / "a.mp4", quadrants(), ratio=Fraction(4, 3)), Fraction(2))
    assert media.read_video(path, 1).frames[0].shape == (48, 128, 3)
    both_ways(path, STORED)


def test_pixels_are_made_square_before_a_picture_is_turned_and_its_size_is_bounded_after(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", quadrants(), ratio=Fraction(2))
    assert media.read_video(laid_down(path, (0, 1, 1, 0)), 1).frames[0].shape == (128, 48, 3)
    both_ways(path, "red blue green white")
    path = write_mp4(tmp_path / "b.mp4", quadrants(1, 600, 800), ratio=Fraction(2))
    assert media.read_video(path, 1).frames[0].shape == (480, LONGEST_SIDE, 3)


@pytest.mark.parametrize("ratio", [Fraction(100), Fraction(1, 100)])
def test_pixels_of_a_shape_beyond_belief_are_taken_as_square_and_that_is_told(tmp_path, ratio):
    video = media.read_video(wide(write_mp4(tmp_path / "a.mp4", quadrants(), ratio=Fraction(2)), ratio), 3)
    assert video.frames[0].shape == (48, 64, 3)
    assert video.remarks == [ODD_PIXELS] and video.damage == ""
    clip = Clip(name="a", video=tmp_path / "a.mp4", audio=None, transcript="x", label=None, split="unlabeled")
    assert decode(clip, ShardConfig(frames=1, image_size=32, faces="none")).remarks == [ODD_PIXELS]


@pytest.mark.parametrize(("ratio", "later"), [(1, 0), (1, 1000), (2, 0)])
def test_of_recordings_joined_in_one_file_every_frame_comes_in_order_and_in_its_shape(tmp_path, ratio, later):
    # In the middle the clock starts anew or leaps ahead, or pixels become twice as wide.
    parts = [
        write_mp4(tmp_path / "a.ts", ramp(25)[:13]),
        write_mp4(
            tmp_path / "b.ts", ramp(25)[13:], ratio=Fraction(ratio), muxer={"output_ts_offset": str(later)}
        ),
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = media.read_video(path, 1000)
    assert len(video.frames) == 25 and (np.diff(greys(video.frames)) > 4).all()
    assert [frame.shape[1] for frame in video.frames] == [64] * 13 + [64 * ratio] * 12
    assert video.seconds == pytest.approx(1.0) and len(media.read_video(path, 10).frames) == 10
    # The filter that is to show the other shape is set up once, by the first frame.
    if ratio == 1:
        assert_as_played(path)


#: Edits (seconds long, from which second) of frames 0 to 24 -> the frames that are left.
EDITS = {
    ((0.6, 0.4),): range(10, 25),
    ((0.6, 0.0),): range(15),
    ((0.2, 0.52),): range(13, 18),
    ((0.4, 0.0), (0.4, 0.6)): (*range(10), *range(15, 25)),
    ((0.4, -1), (1.0, 0.0)): range(25),
    ((0.4, 0.6), (0.4, 0.0)): (*range(15, 25), *range(10)),
    ((0.4, 0.2), (0.4, 0.2)): (*range(5, 15),) * 2,
}


@pytest.mark.parametrize(("edits", "left"), EDITS.items())
def test_what_an_edit_list_hides_is_not_missing(tmp_path, edits, left):
    path = edited(write_mp4(tmp_path / "a.mp4", ramp(25)), *edits)
    video = media.read_video(path, 1000)
    assert greys(video.frames) == pytest.approx(ramp(25)[list(left), 0, 0, 0].tolist(), abs=3)
    assert video.damage == "" and video.seconds == pytest.approx(len(left) / 25, abs=0.03)
    assert_as_played(path)


@pytest.mark.parametrize("edits", [((0.6, 5.0),), ((1.0, -1),)])
def test_an_edit_list_that_hides_everything_is_the_reason_that_is_given(tmp_path, edits):
    path = edited(write_mp4(tmp_path / "a.mp4", ramp(25)), *edits)
    with pytest.raises(media.MediaError, match=r"a\.mp4: its edit list hides every frame"):
        media.read_video(path, 4)


def test_a_file_with_an_edit_list_that_breaks_off_is_damaged_only_if_something_shown_is_lost(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), np.uint8)
    path = edited(write_mp4(tmp_path / "a.mp4", noise, faststart=True), (0.6, 0.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    assert media.read_video(path, 4).damage == ""
    path.write_bytes(whole[: len(whole) * 4 // 10])
    assert "of 15 frames are there" in media.read_video(path, 4).damage


def without_times(path):
    """A program stream whose packets say no more when they are shown or decoded."""
    content, place = bytearray(path.read_bytes()), -1
    while (place := content.find(b"\0\0\1\xe0", place + 1)) >= 0:
        length = {2: 5, 3: 10}.get(content[place + 7] >> 6, 0)
        content[place + 7] &= 0x3F
        content[place + 9 : place + 9 + length] = b"\xff" * length
    path.write_bytes(content)
    return path


#: Of the encoders: two B-frames between others, and few losses.
OPTIONS = {"bf": "2", "b_strategy": "0", "qmin": "1", "qmax": "2", "x265-params": "log-level=none"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.h264", {"codec": "libx264"}),
        ("a.hevc", {"codec": "libx265"}),
        ("a.vob", {"codec": "mpeg2video"}),
        ("a.m4v", {"codec": "mpeg4", "format": "m4v"}),
        ("a.m2v", {"codec": "mpeg2video"}),
        # It has times, but below zero.
        ("a.mkv", {"codec": "libx264", "muxer": {"output_ts_offset": "-3", "avoid_negative_ts": "disabled"}}),
        ("a.mjpeg", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}}),
        ("a.avi", {"codec": "libx264"}),
    ],
)
def test_a_stream_without_times_gives_its_frames_by_their_order(tmp_path, name, settings):
    path = write_mp4(tmp_path / name, ramp(25), **{"options": OPTIONS, **settings})
    if name == "a.vob":
        without_times(path)
    video = media.read_video(path, 5)
    # The middle ones of stretches of five.
    assert greys(video.frames) == pytest.approx(20 + 215 * np.array([2, 7, 12, 17, 22]) / 24, abs=5)
    assert video.seconds == pytest.approx(1.0, abs=0.03) and video.damage == ""
    levels = greys(all_frames(path))
    assert len(levels) == 25 and all(before < after for before, after in pairwise(levels))
    assert_as_played(path)


@pytest.mark.slow
def test_a_picture_is_converted_by_one_thread_and_kept_no_longer_than_it_is_looked_at(tmp_path):
    """Otherwise a worker on a machine of many processors runs out of room for the stacks of threads."""
    write_mp4(tmp_path / "clip.mp4", quadrants(count=6))
    frame = av.VideoFrame.from_ndarray(quadrants(1)[0], format="rgb24").reformat(format="yuv420p", threads=1)
    before = len(os.listdir("/proc/self/task"))
    shown(Shot(frame=frame, time=0.0, ratio=None, matrix=display_matrix(frame)), set())
    assert len(os.listdir("/proc/self/task")) == before
    gc.collect()
    gc.disable()
    try:
        media.read_video(tmp_path / "clip.mp4", 6)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, SideDataContainer)]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.mts", "libx264", {"x264-params": "tff=1"}),
        ("b.mpg", "mpeg2video", {"flags": "+ilme+ildct", "top": "1"}),
        ("c.mkv", "libx264", {"x264-params": "bff=1"}),
    ],
)
def test_of_two_pictures_that_are_woven_into_one_frame_one_is_stored(tmp_path, name, codec, options):
    """A bar that moves twelve pixels from one to the other."""
    path, height, width = tmp_path / name, 96, 128

    def picture(field: int) -> np.ndarray:
        image = np.full((height, width, 3), 20, np.uint8)
        image[:, 8 + 12 * field : 32 + 12 * field] = (220, 40, 40)
        return image

    with av.open(path, "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(4):
            woven = picture(2 * number)
            woven[1::2] = picture(2 * number + 1)[1::2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())
    with av.open(path) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    images = all_frames(path)
    assert len(images) == 4
    for number, image in enumerate(images):
        assert image.shape == (height, width, 3)
        red = image[..., 0].astype(int)
        # All lines show the bar of one moment.
        edges = (red > 120).argmax(axis=1)
        assert set(edges) <= set(range(8 + 24 * number - 3, 8 + 24 * number + 4)), edges
