"""The sound of a media file: 16 kHz, mono, 16 bit, as much of it as decodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mer_dist.corpus import media
from mer_dist.corpus.media import MediaError

#: Samples per second of every stored waveform: what HuBERT was trained on.
RATE = 16_000
#: A clip is one utterance, and an hour of silence takes next to no bytes.
MOST_SECONDS = 3600


@dataclass(kw_only=True)
class Sound:
    #: (S,) int16, mono, 16 kHz.
    samples: np.ndarray
    damage: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def read_sound(path: Path) -> Sound:
    """The first audio stream as 16 kHz mono.

    Raises:
        MediaError: no such file, no audio stream, or nothing of it decodes.
    """
    parts: list[np.ndarray] = []
    samples = 0
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with media.playing(path, "audio") as track:
        for frame in track.frames:
            try:
                own = [part.to_ndarray()[0] for part in resampler.resample(frame)]
            except ValueError as error:
                # The stream changed its format midway; what came before is whole.
                track.faults.append(str(error))
                break
            parts += own
            samples += sum(map(len, own))
            if samples > MOST_SECONDS * RATE:
                raise MediaError(f"{path.name}: its sound is longer than {MOST_SECONDS} s")
    # The resampler holds the last few milliseconds back until it is told that no more will come.
    if parts:
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not sum(map(len, parts)):
        raise MediaError(f"{path.name}: nothing of its sound decodes")
    return Sound(samples=np.concatenate(parts), damage=track.damage)
