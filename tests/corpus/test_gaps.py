"""Channels of which no layout is told, and what a sound lacks within: short holes, and stretches of zeros."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from media_files import tone
from test_sound import HISS, LAYOUTS, OTHER, VOICE, likeness, written

from mer_dist.corpus import gaps, sound
from mer_dist.corpus.media import MediaError
from mer_dist.corpus.sound import RATE, read_sound

ROOM = 0.003 * np.random.default_rng(5).normal(size=(8, RATE))
PLACES = [(count, place) for count in (3, 4, 6, 8) for place in {0, 2, 3, count - 1} if place < count]


@pytest.mark.parametrize("second", [False, True], ids=["room", "second speaker"])
@pytest.mark.parametrize(("count", "place"), PLACES)
def test_a_voice_on_any_channel_of_a_recorder_that_states_no_layout_is_kept(tmp_path, count, place, second):
    channels = ROOM[:count].copy()
    channels[place] += VOICE
    channels[1] += OTHER * second
    soundfile.write(tmp_path / "a.wav", channels.T, RATE)
    found = read_sound(tmp_path / "a.wav")
    assert found.remarks == [sound.UNSTATED] and found.damage == ""
    assert np.abs(found.samples - channels.mean(0) * 2**15).max() <= 2
    assert likeness(found.samples, VOICE) > (0.68 if second else 0.98)


def test_of_channels_without_a_layout_that_cancel_the_louder_stay(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([0.9 * VOICE, -VOICE, *HISS], 1), RATE)
    found = read_sound(tmp_path / "a.wav")
    assert found.remarks == [sound.CANCELLING, sound.UNSTATED]
    assert abs(likeness(found.samples, VOICE)) > 0.99 and found.samples.std() / 2**15 > 0.03


@pytest.mark.parametrize("second", [0.0, 1.0])
@pytest.mark.parametrize(("count", "low"), [(3, 2), (6, 3), (8, 3)])
def test_a_voice_that_a_stated_layout_would_drop_is_kept_though_others_are_not_silent(
    tmp_path, count, low, second
):
    channels = ROOM[:count].copy()
    channels[low] += VOICE
    channels[0] += second * 0.6 * OTHER
    found = read_sound(written(tmp_path / "a.wav", *channels))
    assert LAYOUTS[count] and found.remarks == [sound.MISSTATED]
    assert np.abs(found.samples - channels.mean(0) * 2**15).max() <= 2
    assert likeness(found.samples, VOICE) > (0.8 if second else 0.98)


def packets(path, codec, lost=(), rate=48_000, seconds=6.0, jitter=0.0, pace=1.0):
    """A sound without the packets whose number is in ``lost``, on a clock that goes at ``pace``."""
    wave, number, moved = tone(440, seconds, rate), 0, np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        for start in [*range(0, len(wave), 1024), None]:
            block = None
            if start is not None:
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
            for packet in stream.encode(block):
                number += 1
                if number not in lost:
                    late = round(moved.uniform(0, jitter) / packet.time_base)
                    packet.pts, packet.dts = (round(time * pace) + late for time in (packet.pts, packet.dts))
                    container.mux(packet)
    return path


DTX = [number for number in range(100, 250) if number % 20]
LOSSES = [number for number in range(20, 280) if number % 10 in (3, 4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
@pytest.mark.parametrize(
    ("lost", "remarks"),
    [
        (DTX, [gaps.HOLES]),
        (LOSSES, [gaps.HOLES]),
        (range(20, 280, 8), [gaps.HOLES]),
        (range(20, 280, 13), []),  # 0.4 s in all
        ([], []),
    ],
    ids=["one packet per 400 ms", "60 ms", "20 ms", "few", "whole"],
)
def test_holes_that_are_short_each_and_long_together_are_told(tmp_path, name, lost, remarks):
    found = read_sound(packets(tmp_path / name, "libopus", lost))
    assert found.remarks == remarks and found.damage == ""
    assert found.seconds == pytest.approx(6.0 - 0.02 * len(lost), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mkv", "aac", 44_100),
        ("a.mkv", "libmp3lame", 22_050),
        ("a.mkv", "pcm_s16le", 11_025),
        ("a.flv", "aac", 44_100),
        ("a.flv", "libmp3lame", 44_100),
        ("a.mp4", "aac", 22_050),
        ("a.mp3", "libmp3lame", 44_100),
        ("a.ts", "aac", 44_100),
        ("a.avi", "libmp3lame", 44_100),
        ("a.asf", "wmav2", 44_100),
        ("a.wav", "pcm_s16le", 44_100),
    ],
)
def test_rounded_times_are_no_holes(tmp_path, name, codec, rate):
    assert read_sound(packets(tmp_path / name, codec, rate=rate, seconds=20.0)).remarks == []


def test_packets_that_come_now_early_now_late_leave_no_hole(tmp_path):
    path = packets(tmp_path / "a.mkv", "pcm_s16le", rate=RATE, seconds=20.0, jitter=0.03)
    assert read_sound(path).remarks == []


STEADY = np.random.default_rng(7).normal(size=4 * RATE) * 0.1


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("zeros", "remarks"),
    [
        ((2.9, 4.0), [gaps.STILL_END]),
        ((1.0, 2.5), [gaps.STILL]),
        ((0.0, 1.5), [gaps.STILL]),
        ((3.1, 4.0), []),
        ((1.0, 1.9), []),
    ],
)
def test_a_long_stretch_of_exact_zeros_is_told(tmp_path, subtype, channels, zeros, remarks):
    wave = STEADY.copy()
    wave[int(zeros[0] * RATE) : int(zeros[1] * RATE)] = 0
    soundfile.write(tmp_path / "a.wav", np.stack([wave] * channels, 1), RATE, subtype=subtype)
    found = read_sound(tmp_path / "a.wav")
    assert found.remarks == remarks and found.damage == "" and found.seconds == 4.0


def test_a_sound_that_was_copied_in_part_is_told_whatever_its_zero_bytes_mean(tmp_path):
    for name, subtype in (("a.wav", "ULAW"), ("b.wav", "PCM_U8"), ("c.aiff", "PCM_16")):
        soundfile.write(tmp_path / name, STEADY, RATE, subtype=subtype)
        content = (tmp_path / name).read_bytes()
        half = len(content) // 2
        (tmp_path / name).write_bytes(content[:half] + bytes(len(content) - half))
        assert read_sound(tmp_path / name).remarks == [gaps.STILL_END]


def test_quiet_that_is_no_zeros_and_silence_throughout_have_no_such_remark(tmp_path):
    # 24 bit hold what 16 round to zeros.
    wave = np.where(np.arange(4 * RATE) < 2 * RATE, STEADY, 1e-5 * np.abs(STEADY))
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="PCM_24")
    found = read_sound(tmp_path / "a.wav")
    assert found.remarks == [] and not found.samples[-RATE:].any()
    soundfile.write(tmp_path / "b.wav", 0 * STEADY, RATE)
    assert read_sound(tmp_path / "b.wav").remarks == [sound.SILENT]
    # A stop of half a second in a short clip is no pause of speech; less is.
    soundfile.write(tmp_path / "c.wav", np.where(np.arange(RATE) < 0.52 * RATE, STEADY[:RATE], 0), RATE)
    assert read_sound(tmp_path / "c.wav").remarks == []


@pytest.mark.parametrize(
    ("pace", "remarks"), [(0.8, [gaps.OVERLAP]), (0.9, [gaps.OVERLAP]), (0.97, []), (1, [])]
)
def test_sound_with_more_samples_than_its_times_have_room_for_is_told(tmp_path, pace, remarks):
    found = read_sound(packets(tmp_path / "a.mkv", "libopus", pace=pace))
    assert found.remarks == remarks and found.seconds == pytest.approx(6, abs=0.05)


def recorded(path, samples: np.ndarray, kind: str = "s16"):
    """Samples (s, 2) of PCM, as a capture card writes them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(f"pcm_{kind}le", rate=48_000, layout="stereo")
        for start in range(0, len(samples), 1024):
            block = av.AudioFrame.from_ndarray(samples[start : start + 1024].reshape(1, -1), kind, "stereo")
            block.sample_rate, block.pts, block.time_base = 48_000, start, Fraction(1, 48_000)
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["s16", "s32"])
def test_a_coded_bitstream_in_a_track_of_samples_is_no_sound(tmp_path, kind):
    noise = np.random.default_rng(0).integers(-9000, 9000, (48_000, 2)).astype(np.int16)
    coded = noise.copy()
    coded[::1536] = np.array([0xF872, 0x4E1F], np.uint16).view(np.int16)
    wide = 1 if kind == "s16" else 2**16
    plain, burst = (
        samples.astype(kind.replace("s16", "i2").replace("s32", "i4")) * wide for samples in (noise, coded)
    )
    assert read_sound(recorded(tmp_path / "a.mkv", plain, kind)).seconds == pytest.approx(1, abs=0.01)
    with pytest.raises(MediaError, match="a coded bitstream .S/PDIF, IEC 61937. in the place of samples"):
        read_sound(recorded(tmp_path / "b.mkv", burst, kind))
