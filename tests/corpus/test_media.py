"""Real files, encoded here and decoded again: frame order, pitch, and what damage costs."""

import os

import numpy as np
import pytest
import soundfile
from media_files import ramp, tone, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import media
from mer_dist.corpus.decode import decode, text_only
from mer_dist.corpus.sound import RATE, read_sound

SMALL = ShardConfig(frames=4, image_size=32, faces="none")


def brightness(frames) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def pitch(samples: np.ndarray) -> float:
    """The loudest frequency in hertz."""
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """One second of frames that grow brighter and a 440 Hz tone; the header stands first."""
    return write_mp4(tmp_path_factory.mktemp("m") / "a.mp4", ramp(25), tone(440.0), faststart=True)


def test_an_ordinary_clip_is_opened_no_more_often_than_it_is_read(clip_file, monkeypatch):
    """Its video for its times and for its frames, its sound once."""
    opened, real = [], media.av.open

    def counted(path, *rest, **more):
        opened.append(path)
        return real(path, *rest, **more)

    monkeypatch.setattr(media.av, "open", counted)
    clip = Clip(name="a", video=clip_file, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, SMALL)
    assert len(decoded.frames) == 4 and decoded.samples is not None
    assert len(opened) == 3


def test_frames_come_in_time_order_from_the_middle_of_equal_stretches(clip_file):
    video = media.read_video(clip_file, 5)
    # Stretches of 5 frames: the middle ones are 2, 7, 12, 17, 22 of a ramp from 20 to 235.
    expected = 20 + 215 * np.array([2, 7, 12, 17, 22]) / 24
    assert np.allclose(brightness(video.frames), expected, atol=3)
    assert video.seconds == pytest.approx(1.0) and video.damage == ""
    assert video.frames[0].shape == (64, 64, 3) and video.frames[0].dtype == np.uint8


@pytest.mark.parametrize("count", [24, 25, 26, 60])
def test_no_frame_is_ever_taken_twice(clip_file, count):
    frames = media.read_video(clip_file, count).frames
    assert len(frames) == min(count, 25)
    assert (np.diff(brightness(frames)) > 4).all()


def test_a_tone_of_440_hz_comes_back_as_440_hz_at_16_khz_with_its_length(clip_file):
    sound = read_sound(clip_file)
    assert sound.samples.dtype == np.int16
    assert sound.seconds == pytest.approx(1.0, abs=0.03)
    assert pitch(sound.samples[1000:15000]) == pytest.approx(440, abs=2)


def test_stereo_sound_of_another_rate_is_mixed_and_its_last_milliseconds_are_kept(tmp_path):
    left = tone(300, 0.5, 48_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, left], 1), 48_000)
    sound = read_sound(tmp_path / "a.wav")
    assert len(sound.samples) == 8000
    assert pitch(sound.samples) == pytest.approx(300, abs=2)
    assert np.abs(sound.samples[-80:]).max() > 8000


@pytest.mark.parametrize(
    "settings", [{"pix_fmt": "yuv444p"}, {"pix_fmt": "yuv420p10le"}, {"pix_fmt": "gray"}, {"codec": "mpeg4"}]
)
def test_other_pixel_formats_and_codecs_show_the_same_picture(tmp_path, settings):
    frames = ramp(10, 48)
    frames[..., 0] = 200
    path = write_mp4(tmp_path / "a.mp4", frames, **settings)
    video = media.read_video(path, 10)
    if settings.get("pix_fmt") != "gray":
        assert video.frames[0][..., 0].mean() == pytest.approx(200, abs=8)
    assert len(video.frames) == 10 and (np.diff(brightness(video.frames)) > 0).all()


def test_a_phone_video_is_turned_upright(tmp_path):
    frames = np.zeros((5, 48, 64, 3), np.uint8)
    frames[:, :, :32] = 255
    path = write_mp4(tmp_path / "a.mp4", frames)
    content = bytearray(path.read_bytes())
    # The track header's matrix: a quarter turn clockwise, as a phone held upright writes it.
    matrix = content.index(b"tkhd") + 4 + 40
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30], ">i4")
    content[matrix : matrix + 36] = turned.tobytes()
    path.write_bytes(content)
    (image,) = media.read_video(path, 1).frames
    assert image.shape == (64, 48, 3)
    assert image[:28].mean() > 240 and image[36:].mean() < 15


def test_large_frames_are_scaled_down_when_decoded(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", np.full((2, 1080, 1920, 3), 90, np.uint8))
    assert media.read_video(path, 1).frames[0].shape == (720, 1280, 3)


def test_a_truncated_file_gives_what_is_there_evenly_and_says_so(clip_file, tmp_path):
    content = clip_file.read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(content[: len(content) * 6 // 10])
    video, sound = media.read_video(path, 4), read_sound(path)
    assert 0.3 < video.seconds < 0.7 and "of 25 frames are there" in video.damage
    assert len(video.frames) == 4 and (np.diff(brightness(video.frames)) > 10).all()
    assert 0.2 < sound.seconds < 0.8 and pitch(sound.samples) == pytest.approx(440, abs=5)


def test_noise_in_the_middle_of_a_file_costs_only_what_it_covers(clip_file, tmp_path):
    content = bytearray(clip_file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    video, sound = media.read_video(path, 8), read_sound(path)
    assert 4 <= len(video.frames) <= 8 and (np.diff(brightness(video.frames)) > 0).all()
    assert "do not decode" in video.damage and "do not decode" in sound.damage


def bad_file(folder, kind):
    path = folder / "a.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "no index":
        whole = write_mp4(folder / "b.mp4", ramp(5), tone())
        path.write_bytes(whole.read_bytes()[:3000])
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://localhost:9/a.ts\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "lost":
        path.symlink_to(folder / "nowhere")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such file"),
        ("folder", "a.mp4: a folder, not a file"),
        ("empty", "the file is empty"),
        ("pipe", "a.mp4: a named pipe, not a file"),
        ("device", "a.mp4: a device, not a file"),
        ("loop", "a.mp4: a link that leads back to itself"),
        ("lost", "a.mp4: a link to no file"),
        ("no index", "not readable"),
        ("text", "not readable"),
        ("playlist", "not readable|no video"),
    ],
)
def test_a_file_of_which_nothing_decodes_says_why(tmp_path, kind, reason):
    path = bad_file(tmp_path, kind)
    for read in (lambda: media.read_video(path, 4), lambda: read_sound(path)):
        with pytest.raises(media.MediaError, match=reason):
            read()
    clip = Clip(name="a", video=path, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, SMALL)
    assert decoded.missing == ["audio", "video"] and decoded.usable
    assert [problem.lost for problem in decoded.problems] == ["video", "audio"]


def test_a_clip_without_video_stream_keeps_its_sound_and_text(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", None, tone())
    clip = Clip(name="a", video=path, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, SMALL)
    assert decoded.missing == ["video"] and decoded.frames == []
    assert decoded.seconds == pytest.approx(1.0, abs=0.03)
    assert [(row.lost, row.reason) for row in decoded.problems] == [("video", "a.mp4: no video stream")]


def test_a_clip_without_sound_and_text_keeps_its_frames(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", ramp(8))
    clip = Clip(name="a", video=path, audio=None, transcript=None, label=None, split="unlabeled")
    decoded = decode(clip, SMALL)
    assert decoded.missing == ["audio", "text"] and decoded.samples is None
    assert len(decoded.frames) == 4 and decoded.frames[0].shape == (32, 32, 3)


def test_a_clip_of_which_nothing_is_usable_is_lost_with_every_reason(tmp_path):
    clip = Clip(
        name="a",
        video=tmp_path / "a.mp4",
        audio=tmp_path / "a.wav",
        transcript=None,
        label=None,
        split="unlabeled",
    )
    decoded = decode(clip, SMALL)
    assert not decoded.usable
    (problem,) = decoded.problems
    assert problem.lost == "clip"
    for reason in ("a.mp4: no such file", "a.wav: no such file", "no transcript"):
        assert reason in problem.reason


def test_a_part_that_the_corpus_does_not_name_is_missing_and_no_problem(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 0.5, 16_000), 16_000)
    nothing = {
        "name": "a",
        "video": None,
        "audio": None,
        "transcript": None,
        "label": None,
        "split": "unlabeled",
    }
    heard = decode(Clip(**nothing | {"audio": tmp_path / "a.wav"}), SMALL)
    assert heard.missing == ["text", "video"] and heard.problems == [] and heard.samples is not None
    read = decode(Clip(**nothing | {"transcript": "x"}), SMALL)
    assert read.missing == ["audio", "video"] and read.problems == []
    (problem,) = decode(Clip(**nothing), SMALL).problems
    assert problem.lost == "clip" and "video: the corpus names none" in problem.reason
    # A decoder cannot have crashed on what is not there.
    crashed = text_only(Clip(**nothing | {"audio": tmp_path / "a.wav", "transcript": "x"}), "crashed")
    assert [row.lost for row in crashed.problems] == ["audio"] and crashed.missing == ["audio", "video"]
    # A folder of faces that holds no picture is named and cannot be read; one that is not there is not named.
    (tmp_path / "faces" / "a" / "a_aligned").mkdir(parents=True)
    for name, lost in (("a", ["video"]), ("b", [])):
        clip = Clip(**nothing | {"name": name, "transcript": "x"})
        decoded = decode(clip, ShardConfig(faces="openface", openface=str(tmp_path / "faces")))
        assert [row.lost for row in decoded.problems] == lost and decoded.missing == ["audio", "video"]


def test_a_separate_audio_file_is_used_instead_of_the_videos_sound(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", ramp(8), tone(440))
    soundfile.write(tmp_path / "a.wav", tone(880, 0.5, 16_000), 16_000)
    clip = Clip(name="a", video=path, audio=tmp_path / "a.wav", transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, SMALL)
    assert pitch(decoded.samples) == pytest.approx(880, abs=3) and decoded.missing == []
