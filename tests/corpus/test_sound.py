"""What is stored of sound: the track that a player takes, and a voice whatever its channels and level."""

import shutil
import struct
from fractions import Fraction
from itertools import zip_longest

import av
import numpy as np
import pytest
import soundfile
from media_files import ramp, tone, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import decode as decoding
from mer_dist.corpus import media, sound
from mer_dist.corpus.decode import decode
from mer_dist.corpus.picture import NEARLY_EMPTY
from mer_dist.corpus.sound import RATE, read_sound

FLAG = av.stream.Disposition
SMALL = ShardConfig(frames=2, image_size=32, faces="none")


def pitch(samples: np.ndarray) -> float:
    """The loudest frequency in hertz."""
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


def noise(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Of falling spectrum, as music and voices are, rms 0.1, nothing above 7 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=int(seconds * rate)))
    hertz = np.arange(len(spectrum)) / seconds
    wave = np.fft.irfft(spectrum * ((hertz > 60) & (hertz < 7000)) / np.sqrt(hertz + 60))
    return 0.1 * wave / wave.std()


VOICE, MUSIC, OTHER, NONE = noise(1), noise(2), noise(3), np.zeros(RATE)


# As loud as a channel for low frequencies may be.
RUMBLE = 0.9 * np.sin(2 * np.pi * 55.5 * np.arange(RATE) / RATE)
LAYOUTS = {3: "2.1", 4: "4.0", 6: "5.1", 8: "7.1"}


def written(path, *channels, subtype="PCM_16"):
    """A WAV; of more than two channels it says what they are, which soundfile cannot."""
    if len(channels) not in LAYOUTS:
        soundfile.write(path, np.stack(channels, 1), RATE, subtype=subtype)
        return path
    codec, form, kind = {"PCM_16": ("pcm_s16le", "s16", np.int16), "FLOAT": ("pcm_f32le", "flt", np.float32)}[
        subtype
    ]
    wave = np.stack(channels, 1).reshape(1, -1)
    wave = np.rint(wave * 2**15) if kind is np.int16 else wave
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=LAYOUTS[len(channels)])
        block = av.AudioFrame.from_ndarray(wave.astype(kind), form, LAYOUTS[len(channels)])
        block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


def likeness(samples: np.ndarray, wave: np.ndarray) -> float:
    """Correlation; HuBERT takes the mean off and divides by the deviation, so 1 gives it the same input."""
    return float(np.corrcoef(samples, wave)[0, 1])


def plainly_mixed(path) -> np.ndarray:
    """(S,) int16: what libswresample makes of the first track."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        frames = [*container.decode(audio=0), None]
    return np.concatenate([part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)])


def write_tracks(path, *tracks, codec="flac"):
    """A file of tones; a track is (hertz, disposition), and "damaged" as a third part spoils its packets."""
    with av.open(str(path), "w") as container:
        streams = []
        for _, flags, *_ in tracks:
            streams.append(container.add_stream(codec, rate=RATE, layout="mono"))
            streams[-1].disposition = flags
        for stream, (hertz, _, *damaged) in zip(streams, tracks, strict=True):
            wave = (tone(hertz, 1.0, RATE) * 32767).astype(np.int16)
            for start in range(0, RATE, 1600):
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1600], "s16", "mono")
                block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
                container.mux([spoilt(packet) if damaged else packet for packet in stream.encode(block)])
            container.mux([spoilt(packet) if damaged else packet for packet in stream.encode(None)])
    return path


def broadcast(path, *programmes):
    """A transport stream of the ``(frames, sound)`` of several programmes, each with its own tables."""
    parts, table = [], struct.pack(">BHHBBB", 0, 0xB00D + 4 * (len(programmes) - 1), 1, 0xC1, 0, 0)
    for number, (frames, wave) in enumerate(programmes, 1):
        pids = {"mpegts_start_pid": str(256 * number), "mpegts_pmt_start_pid": str(256 * number + 200)}
        pids |= {"mpegts_service_id": str(number), "mpegts_flags": "system_b"}
        own = path.with_name(f"{number}.ts")
        write_mp4(own, frames, wave, codec="mpeg2video", muxer=pids)
        content = own.read_bytes()
        packets = [content[place : place + 188] for place in range(0, len(content), 188)]
        kept = [packet for packet in packets if int.from_bytes(packet[1:3], "big") & 0x1FFF >= 256]
        parts.append(kept)
        table += struct.pack(">HH", number, 0xE000 | (256 * number + 200))
    check = 0xFFFFFFFF
    for byte in table:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1 ^ (0x04C11DB7 if check >> 31 else 0)) & 0xFFFFFFFF
    first = (b"\x47\x40\x00\x10\x00" + table + struct.pack(">I", check)).ljust(188, b"\xff")
    mixed = [packet for row in zip_longest(*parts, fillvalue=b"") for packet in row]
    path.write_bytes(first + b"".join(mixed))
    return path


def test_the_sound_of_a_broadcast_is_of_the_programme_whose_picture_is_shown(tmp_path):
    radio, talk = (None, tone(300, 2)), (None, tone(1500, 2))
    path = broadcast(tmp_path / "a.ts", radio, (ramp(50), tone(900, 2)), talk)
    with av.open(str(path)) as container:  # the radio comes first
        assert [stream.type for stream in container.streams] == ["audio", "video", "audio", "audio"]
    found = read_sound(path)
    assert pitch(found.samples) == pytest.approx(900, abs=2)
    assert found.remarks == [sound.SEVERAL_PROGRAMMES] and found.damage == ""
    silent = broadcast(tmp_path / "b.ts", radio, (ramp(50), None))
    with pytest.raises(media.MediaError, match=r"b\.ts: no audio stream in the programme of its picture"):
        read_sound(silent)
    # Without a picture the first is as good as any.
    found = read_sound(broadcast(tmp_path / "c.ts", radio, talk))
    assert pitch(found.samples) == pytest.approx(300, abs=2) and found.remarks == [sound.SEVERAL_TRACKS]


def spoilt(packet: av.Packet) -> av.Packet:
    made = av.Packet(bytes(packet.size))
    made.pts, made.dts, made.time_base, made.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    return made


@pytest.mark.parametrize(
    ("name", "codec", "tracks"),
    [
        ("a.mkv", "flac", [(300, 0), (500, FLAG.default)]),
        ("a.mkv", "flac", [(500, FLAG.default), (300, 0)]),
        ("a.mkv", "flac", [(300, FLAG.default | FLAG.visual_impaired), (500, FLAG.default)]),
        ("a.mkv", "flac", [(300, FLAG.default | FLAG.hearing_impaired), (500, FLAG.default)]),
        ("a.mp4", "aac", [(300, 0), (500, FLAG.default), (700, 0)]),  # an mp4 disables tracks
    ],
)
def test_of_several_tracks_the_one_is_taken_that_a_player_takes_and_it_is_told(tmp_path, name, codec, tracks):
    path = write_tracks(tmp_path / name, *tracks, codec=codec)
    found = read_sound(path)
    assert pitch(found.samples) == pytest.approx(500, abs=2)
    assert found.damage == "" and found.remarks == [sound.SEVERAL_TRACKS]
    with av.open(str(path)) as container:  # ffplay's choice
        frames = container.decode(container.streams.best("audio"))
        assert pitch(np.concatenate([frame.to_ndarray()[0] for frame in frames])) == pytest.approx(500, abs=2)


def test_a_commentary_comes_after_the_track_it_comments(tmp_path):
    path = write_tracks(tmp_path / "a.mkv", (300, FLAG.default | FLAG.comment), (500, FLAG.default))
    assert pitch(read_sound(path).samples) == pytest.approx(500, abs=2)


def test_without_a_default_the_first_track_is_taken_and_one_track_is_no_remark(tmp_path):
    path = write_tracks(tmp_path / "a.mp4", (500, 0), (300, 0), codec="aac")
    assert pitch(read_sound(path).samples) == pytest.approx(500, abs=2)
    assert read_sound(write_tracks(tmp_path / "b.mkv", (500, 0))).remarks == []


@pytest.mark.parametrize("fault", ["its packets", "its codec"])
def test_where_the_default_track_does_not_decode_the_next_is_taken_and_the_loss_is_told(tmp_path, fault):
    path = tmp_path / "a.mkv"
    if fault == "its packets":
        write_tracks(path, (500, 0), (300, FLAG.default, "damaged"))
    else:
        write_tracks(path, (500, 0), (300, FLAG.default))
        head, found, tail = path.read_bytes().rpartition(b"A_FLAC")
        path.write_bytes(head + found.replace(b"FLAC", b"XXXX") + tail)
    found = read_sound(path)
    assert pitch(found.samples) == pytest.approx(500, abs=2) and len(found.samples) == RATE
    assert "nothing of stream 1, which players take" in found.damage


def test_where_no_track_decodes_the_sound_is_lost(tmp_path):
    path = write_tracks(tmp_path / "a.mkv", (500, 0, "damaged"), (300, FLAG.default, "damaged"))
    with pytest.raises(media.MediaError, match="nothing of its sound decodes"):
        read_sound(path)


def test_of_several_videos_the_default_one_is_shown_and_it_is_told(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        for level, flags in ((40, 0), (200, FLAG.default)):
            stream = container.add_stream("mpeg4", rate=25)
            stream.height = stream.width = 64
            stream.disposition = flags
        for stream, level in zip(container.streams, (40, 200), strict=True):
            for _ in range(5):
                picture = np.full((64, 64, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
    clip = Clip(name="a", video=path, audio=None, transcript="x", label=None, split="unlabeled")
    found = decode(clip, SMALL)
    assert found.frames[0].mean() == pytest.approx(200, abs=5)
    assert found.remarks == [NEARLY_EMPTY, media.SEVERAL_VIDEOS]


HALF = np.concatenate([VOICE[: RATE // 2], -VOICE[RATE // 2 :]])
HISS = 0.002 * np.random.default_rng(9).normal(size=(2, RATE))


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [
        ([VOICE, -VOICE], VOICE),
        ([VOICE, -0.8 * VOICE], VOICE),
        ([VOICE + HISS[0], -VOICE + HISS[1]], VOICE),
        ([VOICE, HALF], VOICE),
        ([VOICE + 0.4 * MUSIC, 0.4 * MUSIC - VOICE], VOICE + 0.4 * MUSIC),
        ([VOICE, -VOICE, NONE, NONE, VOICE, -VOICE], VOICE),
        # The music cancels, the voice in the middle does not: both stay.
        ([2 * MUSIC, -2 * MUSIC, VOICE, NONE, NONE, NONE], 2 * MUSIC + VOICE * 2**0.5),
        ([VOICE, OTHER, -(VOICE + OTHER), NONE], VOICE + OTHER),
        # No two of them are opposite, all four together are; the front centre weighs more than left and right,
        # and the back less.
        (
            [
                1.1 * (VOICE + MUSIC + OTHER),
                VOICE - MUSIC - OTHER,
                (MUSIC - VOICE - OTHER) / 2**0.5,
                (OTHER - VOICE - MUSIC) * 2**0.5,
            ],
            VOICE + MUSIC + OTHER,
        ),
    ],
    ids=["opposite", "nearly", "with hiss", "from the middle", "over music", "5.1", "a pair", "of 3", "of 4"],
)
def test_channels_that_cancel_leave_the_voice_and_it_is_told(tmp_path, channels, wanted):
    path = written(tmp_path / "a.wav", *channels)
    found = read_sound(path)
    assert found.remarks == [sound.CANCELLING] and found.damage == ""
    assert abs(likeness(found.samples, wanted)) > 0.999
    assert found.samples.std() / 2**15 > 0.04
    plain = plainly_mixed(path)
    assert plain.std() / 2**15 < 0.02 or abs(likeness(plain, wanted)) < 0.9


def test_opposite_channels_come_out_as_loud_as_one_of_them(tmp_path):
    found = read_sound(written(tmp_path / "a.wav", VOICE, -VOICE)).samples
    assert np.abs(found - VOICE * 2**15).max() <= 1


def test_sound_on_a_channel_alone_that_the_mix_leaves_out_is_taken(tmp_path):
    # Left, right, and low frequencies.
    found = read_sound(written(tmp_path / "a.wav", NONE, NONE, VOICE))
    assert likeness(found.samples, VOICE) > 0.999 and found.remarks == [sound.LEFT_OUT]


def test_more_channels_than_there_are_names_for_count_evenly(tmp_path):
    found = read_sound(written(tmp_path / "a.wav", *[VOICE] * 4, *[NONE] * 5))
    assert likeness(found.samples, VOICE) > 0.999 and found.remarks == [sound.UNSTATED] and found.damage == ""


def test_sixteen_planes_of_floating_point_are_read(tmp_path):
    path = tmp_path / "a.ogg"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="hexadecagonal")
        stream.codec_context.options = {"mapping_family": "255"}
        wave = np.repeat(tone(500, 0.5, 48_000), 16)[None]
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), "flt", "hexadecagonal")
        block.sample_rate, block.pts, block.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    assert pitch(read_sound(path).samples) == pytest.approx(500, abs=3)


@pytest.mark.parametrize(
    ("channels", "subtype"),
    [
        ([VOICE], "PCM_16"),
        ([VOICE], "PCM_24"),
        ([VOICE], "PCM_32"),
        ([VOICE], "FLOAT"),
        ([VOICE], "DOUBLE"),
        ([VOICE], "PCM_U8"),
        ([VOICE], "ULAW"),
        ([VOICE], "ALAW"),
        ([VOICE + 0.4], "FLOAT"),
        ([0.003 * VOICE], "PCM_24"),
        ([1.02 * VOICE / np.abs(VOICE).max()], "FLOAT"),
        ([VOICE, VOICE], "PCM_16"),
        ([VOICE, NONE], "PCM_16"),
        ([MUSIC, OTHER], "FLOAT"),
        ([0.001 * MUSIC, OTHER], "PCM_16"),
        ([VOICE + MUSIC, VOICE - 0.8 * MUSIC], "PCM_24"),
        ([VOICE + 0.2, VOICE - 0.2], "PCM_16"),
        ([MUSIC, OTHER, VOICE, 0.1 * OTHER, 0.3 * OTHER, 0.3 * MUSIC], "PCM_16"),
        ([NONE, NONE, VOICE, RUMBLE, NONE, NONE], "FLOAT"),
    ],
)
def test_ordinary_sound_is_what_libswresample_gives_to_the_last_bit(tmp_path, channels, subtype):
    path = written(tmp_path / "a.wav", *channels, subtype=subtype)
    found = read_sound(path)
    assert found.remarks == [] and found.damage == ""
    assert np.array_equal(found.samples, plainly_mixed(path))


def test_ordinary_stereo_of_a_codec_is_what_libswresample_gives_to_the_last_bit(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        wave = np.stack([noise(1, 1.0, 44_100), noise(2, 1.0, 44_100)]).astype(np.float32)
        block = av.AudioFrame.from_ndarray(wave, "fltp", "stereo")
        block.sample_rate, block.pts, block.time_base = 44_100, 0, Fraction(1, 44_100)
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    found = read_sound(path)
    assert found.remarks == [] and np.array_equal(found.samples, plainly_mixed(path))


@pytest.mark.parametrize(
    ("wave", "subtype", "remark"),
    [
        (10 * VOICE, "FLOAT", sound.TOO_LOUD),
        (2.0**15 * VOICE, "FLOAT", sound.TOO_LOUD),
        (2.0**31 * VOICE, "FLOAT", sound.TOO_LOUD),
        (100 * VOICE, "DOUBLE", sound.TOO_LOUD),
        (VOICE + 2, "FLOAT", sound.TOO_LOUD),
        (0.003 * VOICE + 2, "FLOAT", sound.TOO_LOUD),
        (1e-4 * VOICE, "PCM_24", sound.TOO_QUIET),
        (1e-4 * VOICE, "PCM_32", sound.TOO_QUIET),
        (1e-4 * VOICE, "FLOAT", sound.TOO_QUIET),
    ],
)
def test_a_level_that_16_bit_cannot_hold_is_brought_into_range_and_told(tmp_path, wave, subtype, remark):
    path = written(tmp_path / "a.wav", wave, subtype=subtype)
    found = read_sound(path)
    assert found.remarks == [remark] and found.damage == ""
    assert likeness(found.samples, VOICE) > 0.9999
    assert np.abs(found.samples.astype(int)).max() >= 2**15 - 2
    plain = plainly_mixed(path)
    assert np.ptp(plain) == 0 or likeness(plain, VOICE) < 0.99


def test_loud_and_opposite_channels_are_both_mended(tmp_path):
    found = read_sound(written(tmp_path / "a.wav", 50 * VOICE, -50 * VOICE, subtype="FLOAT"))
    assert found.remarks == [sound.CANCELLING, sound.TOO_LOUD] and likeness(found.samples, VOICE) > 0.9999


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_told_and_leaves_no_click(tmp_path, value, channels):
    waves = np.stack([VOICE] * channels)
    waves[-1, 5000] = value
    found = read_sound(written(tmp_path / "a.wav", *waves, subtype="FLOAT"))
    assert found.damage == f"1 of its {channels * RATE} samples are not finite" and found.remarks == []
    assert np.abs(found.samples - VOICE * 2**15).max() < 0.1 * 2**15
    assert likeness(found.samples, VOICE) > 0.999


@pytest.mark.parametrize(
    ("bad", "value", "reason"),
    [
        (slice(None), np.nan, "most samples of its sound are not finite"),
        (slice(9000), np.nan, "most samples of its sound are not finite"),
        (slice(5000, 5001), 1e7, "a few samples of its sound are 1e.07 times full scale"),
    ],
)
def test_samples_that_are_no_sound_are_quarantined_with_the_reason(tmp_path, bad, value, reason):
    wave = VOICE.copy()
    wave[bad] = value
    path = written(tmp_path / "a.wav", wave, subtype="FLOAT")
    clip = Clip(name="a", video=None, audio=path, transcript="x", label=None, split="unlabeled")
    found = decode(clip, SMALL)
    (problem,) = [problem for problem in found.problems if problem.lost == "audio"]
    assert pytest.raises(media.MediaError, read_sound, path).match(reason)
    assert problem.reason.startswith("a.wav: ") and "audio" in found.missing


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "stereo"), (48_000, "mono"), (48_000, "5.1")])
def test_sound_that_changes_its_rate_or_channels_in_midstream_is_kept_whole(tmp_path, rate, layout):
    path = tmp_path / "a.ac3"
    for number, own in enumerate([(48_000, "stereo", 300.0), (rate, layout, 500.0)]):
        write_ac3(tmp_path / f"{number}.ac3", *own)
    path.write_bytes(b"".join((tmp_path / f"{number}.ac3").read_bytes() for number in range(2)))
    found = read_sound(path)
    assert found.damage == "" and found.seconds == pytest.approx(2.0, abs=0.15)
    assert pitch(found.samples[2000:14000]) == pytest.approx(300, abs=3)
    assert pitch(found.samples[19000:30000]) == pytest.approx(500, abs=3)


def write_ac3(path, rate, layout, hertz):
    count = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ac3", rate=rate, layout=layout)
        wave = np.ascontiguousarray(np.broadcast_to(tone(hertz, 1.0, rate), (count, rate)))
        block = av.AudioFrame.from_ndarray(wave, "fltp", layout)
        block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("seconds", "amplitude", "remarks"),
    [
        (1.0, 1.0, []),
        (0.8, 1.0, []),
        (0.2, 1.0, [decoding.SHORT_SOUND]),
        (2.5, 1.0, [decoding.LONG_SOUND]),
        (1.0, 0.0, [sound.SILENT]),
        (0.2, 0.0, [sound.SILENT, decoding.SHORT_SOUND]),
    ],
)
def test_silence_and_sound_of_another_length_than_the_video_are_told(tmp_path, seconds, amplitude, remarks):
    path = write_mp4(tmp_path / "a.mp4", ramp(25, 32), amplitude * tone(440, seconds))
    clip = Clip(name="a", video=path, audio=None, transcript="x", label=None, split="unlabeled")
    found = decode(clip, SMALL)
    assert found.remarks == remarks and found.problems == []


@pytest.mark.parametrize("wave", [NONE, NONE + 0.3, np.arange(RATE) % 2 / 2**15])
def test_no_more_than_the_last_bit_is_silence_whatever_stands_still_below_it(tmp_path, wave):
    assert read_sound(written(tmp_path / "a.wav", wave)).remarks == [sound.SILENT]


def test_the_published_cases_give_what_a_player_gives(shared, tmp_path):
    cases = shared / "cases"
    usual = read_sound(cases / "sound-float-level" / "usual.wav").samples
    loud = read_sound(cases / "sound-float-level" / "loud10.wav").samples
    assert likeness(usual, loud) > 0.9999
    voice, opposite = (
        read_sound(cases / "sound-opposite-channels" / name).samples for name in ("mono.wav", "opposite.wav")
    )
    assert np.array_equal(voice, opposite) and voice.std() / 2**15 == pytest.approx(0.212, abs=0.001)
    shutil.copy(cases / "sound-default-track" / "two.mkv", tmp_path)
    assert read_sound(tmp_path / "two.mkv").samples.std() / 2**15 > 0.2


PCM = bytes.fromhex("0100000000001000800000aa00389b71")


def wave_of(
    path, width: int, bits: int, extensible: bool = True, form: bytes = b"RIFF", upper: bool = True, said=None
):
    """A WAV of 0.3 of full scale at 440 Hz on the left and at 880 Hz, half as loud, on the right; each sample of
    ``bits`` in ``width`` bytes, at their upper end or at the lower one."""
    time = np.arange(RATE) / RATE
    wave = np.stack([0.3 * np.sin(2 * np.pi * 440 * time), 0.15 * np.sin(2 * np.pi * 880 * time)], 1)
    values = np.rint(wave * (2 ** (bits - 1) - 1)).astype("<i4") << (8 * width - bits if upper else 0)
    samples = values.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    kind = 0xFFFE if extensible else 1
    told = struct.pack("<HHIIHH", kind, 2, RATE, RATE * 2 * width, 2 * width, said or 8 * width)
    told += struct.pack("<HHI", 22, bits, 3) + PCM if extensible else b""
    size = 0xFFFFFFFF if form == b"RF64" else len(samples)
    sizes = struct.pack("<QQQI", 100, len(samples), RATE, 0)
    chunks = [(b"ds64", sizes, 28)] if form == b"RF64" else [(b"LIST", b"INFOISFT\4\0\0\0abc\0", 16)]
    chunks += [(b"fmt ", told, len(told)), (b"data", samples, size), (b"junk", bytes(range(200)), 200)]
    body = b"WAVE" + b"".join(name + struct.pack("<I", size) + own for name, own, size in chunks)
    path.write_bytes(form + struct.pack("<I", size if form == b"RF64" else len(body)) + body)
    return path


@pytest.mark.parametrize(
    ("width", "bits", "how"),
    [
        *((4, bits, {}) for bits in (24, 20, 16, 12)),
        *((3, bits, {}) for bits in (20, 16, 24)),
        *((2, bits, {}) for bits in (12, 16)),
        *((4, bits, {"extensible": False, "said": bits}) for bits in (24, 20)),
        *((4, bits, {"form": b"RF64"}) for bits in (24, 32)),
        (3, 20, {"extensible": False, "said": 20}),
        (4, 24, {"said": 24}),
        (4, 24, {"upper": False}),
        (4, 24, {"upper": False, "extensible": False, "said": 24}),
    ],
)
def test_samples_of_fewer_bits_than_their_bytes_have_are_read_at_their_level(tmp_path, width, bits, how):
    read = read_sound(wave_of(tmp_path / "a.wav", width, bits, **how))
    assert len(read.samples) == RATE and (read.damage, read.remarks) == ("", [])
    time = np.arange(RATE) / RATE
    wanted = 0.15 * np.sin(2 * np.pi * 440 * time) + 0.075 * np.sin(2 * np.pi * 880 * time)
    assert np.abs(read.samples / 2**15 - wanted).max() < 2.0 ** -min(bits - 2, 13)


def test_of_24_bits_in_32_what_is_cut_off_is_told_and_floating_point_of_an_old_editor_is_read(tmp_path):
    path = wave_of(tmp_path / "a.wav", 4, 24)
    path.write_bytes(path.read_bytes()[: 8 * RATE // 2])
    read = read_sound(path)
    assert read.damage == "0.5 of 1.0 s are there" and pitch(read.samples) == pytest.approx(440, abs=3)
    wave = (2.0**23 * VOICE).astype("<f4").tobytes()
    told = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(wave),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        RATE,
        4 * RATE,
        4,
        24,
        b"data",
        len(wave),
    )
    path.write_bytes(told + wave)
    assert np.abs(read_sound(path).samples / 2**15 - VOICE).max() < 2**-14
