"""A copy that broke off says how much of its sound is there; a whole file of any kind says nothing."""

import struct
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from media_files import ramp, tone, write_mp4

from mer_dist.corpus import media
from mer_dist.corpus.media import read_video
from mer_dist.corpus.sound import read_sound

RATE = 16_000
#: Noise: every second of it takes as many bytes as every other.
WAVE = np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32)


def encoded(path, codec, **options):
    """The four seconds, by PyAV."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((WAVE[None] * 2**15).astype(np.int16), "s16", "mono")
        frame.sample_rate = RATE
        kind = stream.codec_context.codec.audio_formats[0].name
        for part in av.AudioResampler(format=kind, layout="mono", rate=RATE, frame_size=1152).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


MAKERS = {
    "a.wav": lambda path: soundfile.write(path, WAVE, RATE),
    "float.wav": lambda path: soundfile.write(path, WAVE, RATE, subtype="FLOAT"),
    "a.aiff": lambda path: soundfile.write(path, WAVE, RATE),
    "a.au": lambda path: soundfile.write(path, WAVE, RATE),
    "a.caf": lambda path: soundfile.write(path, WAVE, RATE),
    "a.flac": lambda path: soundfile.write(path, WAVE, RATE),
    "a.mp3": lambda path: encoded(path, "libmp3lame"),
    "a.m4a": lambda path: encoded(path, "aac", movflags="faststart"),
    "a.avi": lambda path: encoded(path, "pcm_s16le"),
    "long.wav": lambda path: encoded(path, "pcm_s16le", rf64="always"),
    "big.wav": lambda path: soundfile.write(path, WAVE, RATE, endian="BIG"),
    "a.w64": lambda path: soundfile.write(path, WAVE, RATE, format="W64", subtype="PCM_16"),
    "a.sph": lambda path: soundfile.write(path, WAVE, RATE, format="NIST", subtype="PCM_16"),
    "a.8svx": lambda path: soundfile.write(path, WAVE, RATE, format="SVX", subtype="PCM_S8"),
    "a.voc": lambda path: soundfile.write(path, WAVE, RATE, format="VOC", subtype="PCM_16"),
    "a.sox": lambda path: encoded(path, "pcm_s32le"),
    "a.rso": lambda path: encoded(path, "pcm_u8"),
}


@pytest.mark.slow
def test_lossless_sound_that_breaks_off_says_how_much_of_it_is_there(tmp_path):
    """Its packets are long, so that more is lost than was cut away."""
    assert read_sound(encoded(tmp_path / "a.tta", "tta")).damage == ""
    sound = read_sound(cut(tmp_path / "a.tta", 0.9))
    assert f"{sound.seconds:.1f} of 4.0 s are there" in sound.damage and sound.seconds < 3.7


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mxf", "mpeg2video"), ("a.wmv", "msmpeg4"), ("a.rm", "rv10"), ("a.flv", "flv"), ("a.ivf", "libvpx")],
)
def test_a_recording_that_breaks_off_says_how_much_of_it_is_there(tmp_path, name, codec):
    def made():
        return write_mp4(tmp_path / name, ramp(100), codec=codec)

    assert read_video(made(), 4).damage == ""
    # The last seconds of a container may be its index.
    video = read_video(cut(made(), 0.5), 4)
    assert video.seconds < 3 and video.damage in {
        f"{video.seconds:.1f} of {seconds} s are there" for seconds in (3.9, 4.0, 4.1)
    }


def cut(path, part: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_sound_that_breaks_off_says_how_much_of_it_is_there(tmp_path, name):
    path = tmp_path / name
    MAKERS[name](path)
    assert read_sound(path).damage == ""
    for part in (0.9, 0.6, 0.3):
        MAKERS[name](path)
        sound = read_sound(cut(path, part))
        words = sound.damage.split(";")[0].split()
        assert words[1:] == ["of", words[2], "s", "are", "there"], sound.damage
        assert float(words[0]) == pytest.approx(sound.seconds, abs=0.051)
        assert float(words[2]) == pytest.approx(4, abs=0.15)
        assert float(words[0]) == pytest.approx(4 * part, abs=0.3)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_written_into_a_pipe_states_nothing(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    struct.pack_into("<I", content, content.index(b"data") + 4, size)
    (tmp_path / "a.wav").write_bytes(content)
    sound = read_sound(tmp_path / "a.wav")
    assert sound.damage == "" and sound.seconds == 4


def test_an_estimate_is_no_promise(tmp_path):
    """Bit rates that vary, without the frame that counts them: FFmpeg reckons from the first frames."""
    silent = tmp_path / "b.mp3"
    encoded(silent, "libmp3lame", write_xing="0", id3v2_version="0")
    assert read_sound(silent).damage == ""
    # Joined files: the first header speaks of the first part.
    joined = tmp_path / "c.mp3"
    joined.write_bytes(encoded(tmp_path / "d.mp3", "libmp3lame").read_bytes() * 2)
    assert "are there" not in read_sound(joined).damage and read_sound(joined).seconds > 7.9


def test_the_sound_of_an_mp4_is_counted_in_packets_also_in_fragments(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", ramp(25), tone(), muxer={"movflags": "frag_keyframe+empty_moov"})
    assert read_sound(path).damage == ""


@pytest.mark.parametrize(("codec", "options"), [("mjpeg", {}), ("mpeg4", {"bf": "2"})])
def test_an_avi_that_breaks_off_says_how_many_frames_are_there(tmp_path, codec, options):
    frames = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), np.uint8)
    form = {
        "codec": codec,
        "pix_fmt": "yuvj420p" if codec == "mjpeg" else "yuv420p",
        "options": {"qmin": "5", "qmax": "5", "g": "1"} | options,
    }
    path = write_mp4(tmp_path / "a.avi", frames, **form)
    assert read_video(path, 4).damage == ""
    video = read_video(cut(path, 0.3), 4)
    there, rest = video.damage.split(" ", 1)
    assert rest == "of 50 frames are there" and int(there) == pytest.approx(15, abs=2)
    assert video.seconds == pytest.approx(int(there) / 25, abs=0.09)


class Repeating:
    """A file in which every other frame is a packet without a byte, as Theora writes where nothing moves."""

    def __init__(self, container):
        self.container = container

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, stream):
        for place, packet in enumerate(self.container.demux(stream)):
            if place % 2 == 0 or packet.dts is None:
                yield packet
                continue
            empty = av.Packet(0)
            empty.stream, empty.time_base = stream, packet.time_base
            empty.pts, empty.dts, empty.duration = packet.pts, packet.dts, packet.duration
            yield empty


def test_a_packet_without_a_byte_repeats_the_frame_and_is_no_damage(tmp_path, monkeypatch):
    path = write_mp4(tmp_path / "a.mkv", ramp(26), codec="mjpeg", pix_fmt="yuvj420p")
    opened = media._opened

    @contextmanager
    def repeating(path):
        with opened(path) as container:
            yield Repeating(container)

    monkeypatch.setattr(media, "_opened", repeating)
    video = read_video(path, 13)
    assert video.damage == "" and video.seconds == pytest.approx(26 / 25, abs=0.02)
    # Of each pair the first frame is shown.
    shades = [frame.mean() for frame in video.frames]
    assert shades == pytest.approx([20 + 215 * place / 25 for place in range(0, 26, 2)], abs=3)


def test_frames_that_an_avi_leaves_out_are_not_missing(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for place in [*range(20), *range(60, 75)]:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), place, np.uint8))
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for place in range(75, 100):
            empty = av.Packet(0)
            empty.stream, empty.pts, empty.dts, empty.time_base = stream, place, place, Fraction(1, 25)
            container.mux(empty)
    with av.open(str(tmp_path / "a.avi")) as container:
        assert container.streams.video[0].frames == 100
    video = read_video(tmp_path / "a.avi", 4)
    # At the end nothing says any more how long the last one stays.
    assert video.damage == "" and video.seconds == pytest.approx(3, abs=0.05)
