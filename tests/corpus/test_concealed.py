"""What a decoder made up is no picture of the clip, and what is encrypted says so."""

import av
import numpy as np
import pytest
import soundfile
from media_files import ramp, tone, write_mp4

from mer_dist.corpus import media
from mer_dist.corpus.gaps import HOLE
from mer_dist.corpus.media import MediaError, read_video
from mer_dist.corpus.sound import RATE, read_sound

KEY = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
NOISE = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_encrypted_video_and_its_sound_are_lost_and_say_so(tmp_path, codec):
    path = write_mp4(tmp_path / "a.mp4", ramp(25), tone(), codec=codec, muxer=KEY)
    with pytest.raises(MediaError, match="most of its video does not decode: it is encrypted"):
        read_video(path, 4)
    with pytest.raises(MediaError, match="nothing of its sound decodes: it is encrypted"):
        read_sound(path)


def spoiled(path, packets):
    """The mp4 with noise in the given packets of its video, but for the first bytes of each."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        # Read here: an entry lies in memory of its container.
        entries = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    for place in packets:
        pos, size = entries[place]
        content[pos + 12 : pos + size] = np.random.default_rng(place).bytes(size - 12)
    path.write_bytes(content)
    return path


def test_a_video_of_which_most_does_not_decode_is_lost_with_the_reason(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", NOISE, options={"g": "1"})
    with pytest.raises(MediaError, match=r"a.mp4: most of its video does not decode: "):
        read_video(spoiled(path, range(4, 25)), 8)
    few = write_mp4(tmp_path / "b.mp4", NOISE, options={"g": "1"})
    video = read_video(spoiled(few, range(20, 25)), 8)
    assert "parts of the video do not decode" in video.damage


def test_a_picture_that_the_decoder_marks_as_corrupt_is_not_stored(tmp_path):
    """A transport stream counts its packets; a video of which one is lost goes on with a marked picture."""
    path = write_mp4(tmp_path / "a.ts", NOISE, codec="mpeg2video", options={"g": "1", "bf": "0"})
    content = path.read_bytes()
    blocks = [content[at : at + 188] for at in range(0, len(content), 188)]
    starts = [row for row, block in enumerate(blocks) if block[1:3] == b"\x41\x00"]
    del blocks[starts[12] + 10]
    path.write_bytes(b"".join(blocks))
    with av.open(str(path)) as container:
        marked = [frame.is_corrupt for frame in container.decode(video=0)]
    assert len(marked) == 25 and sum(marked) >= 1
    video = read_video(path, 25)
    assert len(video.frames) == 25 - sum(marked) and video.damage


def test_a_hole_in_the_sound_is_told(tmp_path):
    for name, missing, remarks in (("a.mkv", range(20, 45), [HOLE]), ("b.mkv", range(20, 25), [])):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
            wave = (tone(440, 3.0, RATE) * 2**15).astype(np.int16)
            for place in range(46):
                part = wave[None, place * 1024 : (place + 1) * 1024]
                frame = av.AudioFrame.from_ndarray(part, "s16", "mono")
                frame.sample_rate, frame.pts = RATE, place * 1024
                for packet in stream.encode(frame):
                    if place not in missing:
                        container.mux(packet)
        sound = read_sound(tmp_path / name)
        assert sound.remarks == remarks and sound.damage == ""
        assert len(sound.samples) == (46 - len(missing)) * 1024


def test_a_sound_of_a_few_samples_says_how_few(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 0.001, 48_000)[:2], 48_000)
    with pytest.raises(MediaError, match="a.wav: its sound is only 2 samples long"):
        read_sound(tmp_path / "a.wav")
    assert media.video_seconds(tmp_path / "a.wav") == 0
