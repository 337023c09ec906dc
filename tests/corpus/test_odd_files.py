"""Files whose clock, colours, end or structure are odd: what is there is used, and what is not is said."""

import struct
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import ramp, remuxed, tone, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import decode as decoding
from mer_dist.corpus import media, picture, structure
from mer_dist.corpus.clock import UNLIKELY, trust
from mer_dist.corpus.decode import APART, CUT_AWAY, decode
from mer_dist.corpus.media import MediaError, read_video
from mer_dist.corpus.sound import read_sound
from mer_dist.shards.encode import jpeg


def late(kind, seconds, first=0):
    def change(packet, number):
        if packet.stream.type == kind and number >= first:
            packet.pts += round(seconds / packet.time_base)
            packet.dts += round(seconds / packet.time_base)
        return True

    return change


def decoded(path, **settings):
    clip = Clip(name="a", video=path, audio=None, transcript="x", label=None, split="labeled")
    return decode(clip, ShardConfig(**settings))


@pytest.mark.parametrize("name", ["b.mkv", "b.mp4"])
@pytest.mark.parametrize("first", [1, 37, 74])
def test_a_leap_of_the_clock_costs_no_frame(tmp_path, name, first):
    source = write_mp4(tmp_path / "a.mkv", ramp(75), options={"bf": "0"})
    video = read_video(remuxed(source, tmp_path / name, late("video", 3600, first)), 75)
    assert len(video.frames) == 75 and video.seconds == pytest.approx(3, abs=0.05)
    assert [frame.mean() for frame in video.frames] == pytest.approx(np.linspace(20, 235, 75), abs=4)
    assert video.remarks == [UNLIKELY] and video.damage == ""


def test_times_that_are_all_the_same_cost_no_frame(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for frame in ramp(75):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame)):
                packet.pts = packet.dts = 0
                container.mux(packet)
    video = read_video(tmp_path / "a.mkv", 16)
    assert len(video.frames) == 16 and video.seconds == pytest.approx(3, abs=0.05)
    assert video.remarks == [UNLIKELY]


def test_a_pause_that_the_sound_fills_is_meant(tmp_path):
    """A slide that stands for 20 seconds while somebody speaks; pictures may as well have been lost."""
    source = write_mp4(tmp_path / "a.mkv", ramp(25), tone(seconds=21), options={"bf": "0"})
    video = read_video(remuxed(source, tmp_path / "b.mkv", late("video", 20, 20)), 16)
    assert video.remarks == [media.HOLE] and video.seconds == pytest.approx(21, abs=0.1)
    assert len(video.frames) < 16


@pytest.mark.parametrize(
    "times", [range(0, 600, 10), [0], [0, 100], [0, 1, 2, 30, 31, 60, 61], np.repeat(np.arange(100), 2)]
)
def test_slow_and_uneven_times_are_believed(times):
    """A time-lapse, one frame, two, a screen that changes seldom, whole milliseconds of a fast camera."""
    assert trust(1.0 if max(times) > 99 else 0.1, list(times), lambda: 0.0).whole


def test_what_comes_before_the_first_key_frame_is_missed_and_the_rest_is_spread_evenly(tmp_path):
    source = write_mp4(tmp_path / "a.mkv", ramp(75), options={"bf": "0", "g": "50", "sc_threshold": "0"})
    path = remuxed(source, tmp_path / "b.mkv", lambda packet, number: number >= 20)
    video = read_video(path, 5)
    assert video.damage.startswith("25 of 55 frames are there")
    assert len(video.frames) == 5 and video.seconds == pytest.approx(1, abs=0.02)
    right = [20 + 215 * (50 + place) / 74 for place in (2, 7, 12, 17, 22)]
    assert [frame.mean() for frame in video.frames] == pytest.approx(right, abs=4)


def cut(path, part, zeros=False):
    content = path.read_bytes()
    there = int(len(content) * part)
    path.write_bytes(content[:there] + bytes(len(content) - there) * zeros)
    return path


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("name", "muxer"),
    [
        ("a.mkv", {}),
        ("a.avi", {}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof+global_sidx"}),
    ],
)
def test_what_a_header_promises_and_the_file_lacks_is_said(tmp_path, name, muxer, zeros):
    noise = np.random.default_rng(0).integers(0, 255, (75, 64, 64, 3), np.uint8)
    options = {"codec": "mpeg4", "options": {"g": "5", "qmin": "5", "qmax": "5"}, "muxer": muxer}
    path = write_mp4(tmp_path / name, noise, tone(seconds=3), **options)
    assert decoded(path).problems == []
    told = {problem.lost: problem.reason for problem in decoded(cut(path, 0.5, zeros)).problems}
    for part in ("video", "audio"):
        # "37 of 75 frames are there", "1.5 of 3.0 s are there".
        there, _, promised, unit = told[f"part of {part}"].split(": ")[1].split()[:4]
        assert float(promised) == pytest.approx(75 if unit == "frames" else 3, rel=0.04)
        assert float(there) == pytest.approx(float(promised) / 2, rel=0.15)


def test_sound_that_starts_late_is_told(tmp_path):
    source = write_mp4(tmp_path / "a.mkv", ramp(25), tone())
    assert APART not in decoded(source).remarks
    for seconds, kind in ((2, "audio"), (1, "video")):
        path = remuxed(source, tmp_path / "b.mkv", late(kind, seconds))
        assert APART in decoded(path).remarks


@pytest.mark.parametrize(
    ("size", "told"), [((60, 160), True), ((160, 60), True), ((64, 64), False), ((60, 80), False)]
)
def test_a_picture_of_which_the_square_loses_much_is_told(tmp_path, size, told):
    frames = np.zeros((5, *size, 3), np.uint8)
    frames[:, :10] = 255
    path = write_mp4(tmp_path / "a.mp4", frames, tone(seconds=0.2))
    for faces in ("cascade", "none"):
        assert (CUT_AWAY in decoded(path, faces=faces).remarks) == told


def test_a_face_that_was_found_is_cut_out_without_a_remark(tmp_path, monkeypatch):
    crops = [np.zeros((224, 224, 3), np.uint8)]
    monkeypatch.setattr(decoding.faces, "cascade", lambda frames, size: (crops, True))
    path = write_mp4(tmp_path / "a.mp4", np.zeros((5, 60, 160, 3), np.uint8))
    assert CUT_AWAY not in decoded(path).remarks


def test_a_clip_of_one_shade_is_told(tmp_path):
    assert (
        picture.NEARLY_EMPTY
        in decoded(write_mp4(tmp_path / "a.mp4", np.zeros((5, 64, 64, 3), np.uint8))).remarks
    )
    assert picture.NEARLY_EMPTY not in decoded(write_mp4(tmp_path / "b.mp4", ramp(5))).remarks


def coloured(planes, matrix, primaries=2, size=16, limited=True):
    """A shot of one colour, its three planes of these values."""
    values = np.broadcast_to(np.uint8(planes)[:, None, None], (3, size, size))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), "yuv444p")
    frame.colorspace, frame.color_primaries, frame.color_range = matrix, primaries, 1 if limited else 2
    return picture.Shot(frame=frame, time=0, ratio=None, matrix=None)


def test_colours_of_rare_matrices(tmp_path):
    remarks: set[str] = set()
    # Red of 220, 30, 30 by H.273: Y = 30/2 + 220/4 + 30/4, Cg = 30/2 - 220/4 - 30/4, Co = (220 - 30) / 2.
    luma, green, orange = 77.5, -47.5, 95
    limited = [round(16 + luma * 219 / 255), round(128 + green * 224 / 255), round(128 + orange * 224 / 255)]
    whole = [round(luma), round(128 + green), round(128 + orange)]
    for planes, narrow in ((limited, True), (whole, False)):
        pixel = picture.shown(coloured(planes, 8, limited=narrow), remarks)[8, 8]
        assert pixel.tolist() == pytest.approx([220, 30, 30], abs=3)
    assert remarks == set()
    known = picture.shown(coloured([63, 102, 240], 1), remarks)
    assert (picture.shown(coloured([63, 102, 240], 12), remarks) == known).all() and remarks == set()
    nearest = picture.shown(coloured([63, 102, 240], 9), remarks)
    assert (picture.shown(coloured([63, 102, 240], 10, 9), remarks) == nearest).all()
    assert remarks == {picture.OTHER_MATRIX}
    for matrix, name in ((11, "ST 2085"), (14, "ICtCp")):
        with pytest.raises(picture.ColourError, match=f"{name}.*re-encode"):
            picture.shown(coloured([63, 102, 240], matrix), remarks)


def test_untagged_colours_are_those_of_hd_in_an_hd_picture():
    pure = [63, 102, 240]
    for size, matrix in ((1280, 1), (720, 1), (576, 5)):
        right, untagged = (
            picture.shown(coloured(pure, number, size=size), set())[8, 8].tolist() for number in (matrix, 2)
        )
        assert untagged == pytest.approx(right, abs=1)


def test_what_is_transparent_lies_on_black():
    image = np.full((16, 16, 4), 200, np.uint8)
    image[:, :8, 3], image[:, 8:, 3] = 0, 255
    remarks: set[str] = set()
    shot = picture.Shot(frame=av.VideoFrame.from_ndarray(image, "rgba"), time=0, ratio=None, matrix=None)
    shown = picture.shown(shot, remarks)
    assert (shown[:, :8] == 0).all() and (shown[:, 8:] == 200).all() and remarks == {picture.TRANSPARENT}


@pytest.mark.parametrize("name", ["a.mp4", "a.flv", "a.wmv", "a.mkv"])
def test_a_second_recording_that_is_not_read_is_told(tmp_path, name):
    codec = {"codec": "flv1" if name == "a.flv" else "mpeg4"}
    path = write_mp4(tmp_path / name, ramp(25), tone(), **codec)
    assert not structure.followed(path)
    path.write_bytes(path.read_bytes() * 2)
    unread = structure.FOLLOWED in read_video(path, 4).remarks
    assert unread == (read_video(path, 4).seconds < 1.5)


def test_a_second_wav_that_is_not_read_is_told(tmp_path):
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + 32_000)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    )
    wave = (tone(rate=16_000) * 2**15).astype("<i2").tobytes()
    (tmp_path / "a.wav").write_bytes((header + b"data" + struct.pack("<I", 32_000) + wave) * 2)
    assert structure.FOLLOWED in read_sound(tmp_path / "a.wav").remarks


@pytest.mark.parametrize("stated", [16_000, 48_000])
@pytest.mark.parametrize(
    "behind",
    [b"", b"LIST" + struct.pack("<I", 20_000) + bytes(20_000), bytes(40_000), b"ID3" + b"x" * 40_000],
)
def test_sound_behind_what_an_old_header_states_is_told(tmp_path, stated, behind):
    """A recorder that is interrupted leaves the lengths that it wrote first."""
    path, samples = tmp_path / "a.wav", (tone(seconds=2, rate=16_000) * 2**15).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples)
    content = bytearray(path.read_bytes())
    whole = bytes(content) + behind
    content[4:8], content[40:44] = struct.pack("<I", 36 + stated), struct.pack("<I", stated)
    path.write_bytes(content)
    sound = read_sound(path)
    assert len(sound.samples) == stated // 2 and structure.GOES_ON in sound.remarks
    path.write_bytes(whole)
    assert structure.GOES_ON not in read_sound(path).remarks


def test_a_wav_that_was_written_as_a_stream_is_read_whole_and_nothing_is_told(tmp_path):
    path, samples = tmp_path / "a.wav", (tone(seconds=2, rate=16_000) * 2**15).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = bytes(4)
    path.write_bytes(content)
    sound = read_sound(path)
    assert len(sound.samples) == 32_000 and structure.GOES_ON not in sound.remarks


def test_a_thumbnail_does_not_take_the_place_of_the_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width = stream.height = 64
            stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
        for stream, frames in zip(streams, (ramp(1), ramp(25)), strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            container.mux(stream.encode(None))
    video = read_video(tmp_path / "a.mp4", 8)
    assert len(video.frames) == 8 and video.seconds == pytest.approx(1, abs=0.01)


def test_a_file_that_cannot_be_read_says_what_would_help(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", ramp(25), muxer={"movflags": "frag_keyframe+empty_moov"})
    content = path.read_bytes()
    (tmp_path / "segment.mp4").write_bytes(content[content.index(b"moof") - 4 :])
    with pytest.raises(MediaError, match="segment of a stream without its beginning"):
        read_video(tmp_path / "segment.mp4", 4)
    whole = write_mp4(tmp_path / "b.mp4", ramp(25)).read_bytes()
    (tmp_path / "open.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    with pytest.raises(MediaError, match="no moov"):
        read_video(tmp_path / "open.mp4", 4)
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\2" + bytes(9)
    (tmp_path / "a.webp").write_bytes(webp)
    assert "animated WebP" in structure.remedy(tmp_path / "a.webp")


def test_a_video_behind_a_still_is_said(tmp_path):
    """As telephones write it: the mp4 behind the JPEG, or in a box of a HEIC."""
    still = jpeg(ramp(1)[0])
    film = write_mp4(tmp_path / "film.mp4", ramp(25), tone()).read_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(still + b"ftyp" + still)
    assert read_video(path, 4).remarks == []
    for behind in (film, b"\0" * 2**20 + film + b"SEFT", bytes(2**20 - len(still) - 6) + film):
        path.write_bytes(still + behind)
        video = read_video(path, 4)
        assert len(video.frames) == 1 and video.remarks == [structure.MOTION_PHOTO]
    path = tmp_path / "a.heic"
    path.write_bytes(film + struct.pack(">I4s", 8 + len(film), b"mpvd") + film)
    assert structure.motion_photo(path) and not structure.motion_photo(tmp_path / "film.mp4")


def test_pictures_that_are_lost_in_the_middle_or_at_the_end_are_told(tmp_path):
    source = write_mp4(tmp_path / "a.mp4", ramp(125), tone(seconds=5), options={"g": "1", "bf": "0"})

    def without(name, first, last):
        def kept(packet, number):
            return packet.stream.type != "video" or not first <= number < last

        return decoded(remuxed(source, tmp_path / name, kept), faces="none")

    assert media.HOLE in without("middle.mkv", 25, 90).remarks
    assert decoding.LONG_SOUND in without("end.mkv", 75, 125).remarks
    few = without("few.mkv", 25, 40).remarks
    assert media.HOLE not in few and decoding.LONG_SOUND not in few
    assert without("whole.mkv", 0, 0).remarks == []


def test_long_frames_of_a_video_of_no_fixed_rate_are_no_loss(tmp_path):
    source = write_mp4(tmp_path / "a.mkv", ramp(75), options={"g": "1", "bf": "0"})
    kept = {0, 1, 5, 30, 33, 40, 62, 63, 70}
    path = remuxed(source, tmp_path / "b.mkv", lambda packet, number: number in kept)
    assert media.HOLE not in read_video(path, 8).remarks


def test_streams_that_begin_midway_end_the_clip_and_are_told(tmp_path):
    """A broadcast whose programme changes its streams and codecs."""
    first = write_mp4(tmp_path / "a.ts", ramp(50), tone(seconds=2))
    pids = {"mpegts_start_pid": "0x300", "mpegts_pmt_start_pid": "0x1100"}
    second = write_mp4(tmp_path / "b.ts", ramp(50), tone(seconds=2), codec="mpeg2video", muxer=pids)
    (tmp_path / "c.ts").write_bytes(first.read_bytes() + second.read_bytes())
    found = decoded(tmp_path / "c.ts", faces="none", frames=4)
    assert len(found.frames) == 4 and found.missing == []
    assert {(row.lost, media.OTHERS_BEGIN in row.reason) for row in found.problems} == {
        ("part of video", True),
        ("part of audio", True),
    }
