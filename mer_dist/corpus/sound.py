"""The sound of a media file: 16 kHz, mono, 16 bit, as far as it can be decoded.

libswresample mixes, resamples and rounds. Every channel is also inspected before it is mixed and rounded:
if channels cancel in the mix, or 16 bit cannot hold the level, the sound is computed again in floating
point with other weights or another level. Ordinary sound is the output of libswresample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path

import av
import numpy as np

from mer_dist.corpus import media, stated, structure
from mer_dist.corpus.gaps import Gaps
from mer_dist.corpus.media import MediaError

#: Sample rate of every stored waveform, in Hz: that of HuBERT's training.
RATE = 16_000
#: A limit, since a clip is one utterance, and an hour of silence needs few bytes in a file.
MOST_SECONDS = 3600
#: Quantisation step of the stored 16-bit samples, where full scale is 1.
STEP = 2.0**-15
#: Floating-point samples beyond this are not sound at any scale; 32-bit integers end at half of it.
LARGEST = 2.0**32
#: Channels cancel if their mix has less than this fraction of the energy that independent channels would
#: give: a correlation below -0.5 of two equally loud channels, which no room recording has.
CANCEL = 0.5
#: Channels are compared in stretches of so many samples, since their phase may flip midway.
STRETCH = RATE // 2
#: Maximum fraction of a sound's energy in stretches whose channels cancel.
MOST_CANCELLED = 0.2
#: Channels that the mix leaves out are used if the energy of the mix is less than this fraction of theirs.
HIDDEN = 1e-3
#: The layout is distrusted if a left-out channel is so many times louder (rms) than the mix, above this
#: frequency in hertz: a low-frequency channel ends at half of it, and a voice does not.
LOUDER, VOICED = 2.0, 250
#: Maximum fraction of a sound's energy that clipping removes (-30 dB), and that rounding adds (-20 dB).
MOST_CLIPPED, MOST_ROUNDED = 1e-3, 1e-2
#: Mean energy of silence, 120 dB below full scale: raising the level would make nothing audible.
SILENCE = 1e-12

#: PyAV reads beyond the end of its array with more planes; interleaved samples have one.
_MOST_PLANES = 8

SEVERAL_TRACKS = "several sound tracks; the one that players take was used"
SEVERAL_PROGRAMMES = "sound of several programmes; that of the programme whose picture is stored was used"
CANCELLING = "channels cancel in the mono mix; the louder of those that do were used"
LEFT_OUT = "sound only on a channel that the mono mix leaves out; it was used"
MISSTATED = (
    "a channel that the mono mix leaves out is far louder than the mix; all channels were mixed evenly"
)
UNSTATED = "more than two channels, and no layout stated; they were mixed evenly"
TOO_LOUD = "sound beyond full scale, brought into range"
TOO_QUIET = "sound too quiet for 16 bit, raised"
SILENT = "sound silent throughout"


@dataclass(kw_only=True)
class Sound:
    #: (S,) int16, mono, 16 kHz.
    samples: np.ndarray
    damage: str
    #: Kinds of remarks.
    remarks: list[str] = field(default_factory=list)
    #: Start on the clock of the file, in seconds; None if unknown.
    start: float | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def read_sound(path: Path) -> Sound:
    """The track that a player takes, as 16 kHz mono; the next one if it cannot be decoded at all.

    Raises:
        MediaError: no such file, no audio stream, no decodable track, or its samples are not sound.
    """
    index, heard = 0, _hear(path, 0)
    while not heard.length and index + 1 < heard.known:
        index += 1
        heard = _hear(path, index)
    if not heard.length:
        raise MediaError(f"{path.name}: {heard.nothing}")
    remarks = [SEVERAL_TRACKS] * (heard.tracks > 1) + heard.gaps.remarks
    remarks += [SEVERAL_PROGRAMMES] * (heard.others > 0)
    weights, changes = zip(*(run.safe_weights() for run in heard.runs), strict=True)
    remarks += sorted(set(chain(*changes)))
    if any(changes) or not heard.mixed or heard.misfit:
        samples, remark = _in_range(_mixed(path, index, weights), path)
        remarks += filter(None, [remark])
    else:
        samples = np.concatenate([part for run in heard.runs for part in run.parts])
    remarks += [SILENT] if int(samples.max()) - int(samples.min()) <= 2 else heard.gaps.still
    if structure.followed(path):
        remarks.append(structure.FOLLOWED)
    if structure.goes_on(path):
        remarks.append(structure.GOES_ON)
    return Sound(samples=samples, damage=heard.damage, remarks=remarks, start=heard.gaps.start)


class _Run:
    """A stretch of frames of one format: its mix by libswresample, and statistics of its channels."""

    def __init__(self, frame: av.AudioFrame):
        self.weights, self.mixes = _weights(frame.layout)
        self.unstated = _unstated(frame.layout)
        #: Whether its samples have more precision or range than 16 bit.
        self.fine = frame.format.name.rstrip("p") not in ("u8", "s16")
        #: (s,) int16 each, and the total number of samples, including those that could not be mixed.
        self.parts: list[np.ndarray] = []
        self.length = 0
        #: (C, C) for each stretch: products of the centred channels, summed over samples.
        self.covariances: list[np.ndarray] = []
        #: Energy above the low frequencies, of the mix and of each channel that it leaves out.
        self.voiced = np.zeros(1 + int((self.weights == 0).sum()))
        #: Energy that the mix loses by clipping at full scale.
        self.clipped = 0.0
        self._mono = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        self._apart = av.AudioResampler(format="flt", rate=RATE)
        self._held: list[np.ndarray] = []
        self._samples_held = 0

    def take(self, frame: av.AudioFrame | None) -> int:
        """Take the next frame, or None at the end: the resamplers keep the last milliseconds until then.
        Returns the number of output samples."""
        before = self.length
        if self.mixes:
            own = [part.to_ndarray()[0] for part in self._mono.resample(frame)]
            self.parts += own
            self.length += sum(map(len, own))
        if self.fine or len(self.weights) > 1:
            own = _channels(self._apart.resample(frame))
            self._held += own
            self._samples_held += sum(part.shape[1] for part in own)
            if self._samples_held >= STRETCH or (frame is None and self._samples_held):
                self._measure(np.concatenate(self._held, axis=1, dtype=float))
                self._held, self._samples_held = [], 0
        return self.length - before

    def _measure(self, channels: np.ndarray) -> None:
        """``channels`` (C, s) of one stretch."""
        self.length += 0 if self.mixes else channels.shape[1]
        self.clipped += _beyond(self.weights @ channels)
        centred = channels - channels.mean(1, keepdims=True)
        self.covariances.append(centred @ centred.T)
        if len(self.voiced) > 1:
            heard = np.vstack([self.weights @ centred, centred[self.weights == 0]])
            spectrum = np.fft.rfft(heard)[:, VOICED * heard.shape[1] // RATE :]
            self.voiced += (np.abs(spectrum) ** 2).sum(1) / heard.shape[1]

    @property
    def energy(self) -> float:
        """Of the mix."""
        return float(sum(self.weights @ own @ self.weights for own in self.covariances))

    def safe_weights(self) -> tuple[np.ndarray, list[str]]:
        """(C,) with sum 1: the weights without the quieter of channels that cancel, and the remarks."""
        if len(self.weights) == 1 or not self.covariances:
            return self.weights, []
        stretches = np.stack(self.covariances)
        loudness = np.einsum("tcc->c", stretches)
        weights, remarks = self.weights, [UNSTATED] * self.unstated
        if loudness @ weights**2 < HIDDEN * loudness.max() * weights.max() ** 2:
            # All the sound is on channels that the mix leaves out, such as the low-frequency channel.
            return np.eye(len(loudness))[loudness.argmax()], [*remarks, LEFT_OUT]
        if self.voiced[1:].max(initial=0) > LOUDER**2 * self.voiced[0]:
            # The others may have speech too, so no channel is used alone.
            weights, remarks = np.full(len(weights), 1 / len(weights)), [*remarks, MISSTATED]
        alone = np.einsum("tcc,c->t", stretches, weights**2)
        mixed = np.einsum("c,tcd,d->t", weights, stretches, weights)
        cancelled = mixed < CANCEL * alone
        if alone[cancelled].sum() <= MOST_CANCELLED * alone.sum():
            return weights, remarks
        return _without_opposites(stretches[cancelled].sum(0), weights), [*remarks, CANCELLING]


def _without_opposites(covariance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights (C,) of channels that do not cancel each other; of two that do, the louder one stays."""
    size = weights * np.sqrt(np.diag(covariance))
    mixed = covariance * np.outer(weights, weights)
    kept: list[int] = []
    for channel in np.argsort(-size, kind="stable"):
        if all(mixed[channel, other] >= -CANCEL * size[channel] * size[other] for other in kept):
            kept.append(int(channel))
    if mixed[np.ix_(kept, kept)].sum() < CANCEL * np.diag(mixed)[kept].sum():
        kept = kept[:1]  # no two of them cancel, but several together
    safe = np.zeros_like(weights)
    safe[kept] = weights[kept]
    return safe / safe.sum()


@dataclass(kw_only=True)
class _Heard:
    """The result of the first pass over one track."""

    runs: list[_Run]
    damage: str
    tracks: int
    known: int
    others: int
    gaps: Gaps
    #: The reason if there is no sound.
    nothing: str

    @property
    def length(self) -> int:
        return sum(run.length for run in self.runs)

    @property
    def mixed(self) -> bool:
        return all(run.mixes for run in self.runs)

    @property
    def misfit(self) -> str:
        fine = [run for run in self.runs if run.fine]
        return _misfit(
            sum(run.energy for run in fine), sum(run.clipped for run in fine), sum(run.length for run in fine)
        )


def _hear(path: Path, index: int) -> _Heard:
    runs: list[_Run] = []
    length = 0
    with media.playing(path, "audio", index) as track:
        gaps = Gaps(plain=track.codec.startswith("pcm_"))
        for frames in _runs(track.frames, gaps):
            first = next(frames)
            runs.append(_Run(first))
            try:
                for frame in chain([first], frames, [None]):
                    length += runs[-1].take(frame)
                    if length > MOST_SECONDS * RATE:
                        raise MediaError(f"{path.name}: its sound is longer than {MOST_SECONDS} s")
            except ValueError as error:  # FFmpeg errors are ValueErrors, too; earlier samples are intact.
                track.faults.append(str(error))
                break
        too_short = stated.missing(length / RATE, track.stated(length / RATE))
    if gaps.marks > 1:
        raise MediaError(
            f"{path.name}: its sound is a coded bitstream (S/PDIF, IEC 61937) in the place of samples; a player hears "
            "noise: convert it with a program that decodes such a track"
        )
    if gaps.bad > gaps.samples / 2:
        raise MediaError(f"{path.name}: most samples of its sound are not finite")
    damage = "; ".join(filter(None, (too_short, track.damage, gaps.damage)))
    nothing = "".join(["nothing of its sound decodes", *(f": {fault}" for fault in track.faults[:1])])
    if gaps.length:
        nothing = f"its sound is only {gaps.length} samples long"
    counts = {"tracks": track.count, "known": track.known, "others": track.others}
    return _Heard(runs=runs, damage=damage, gaps=gaps, nothing=nothing, **counts)


def _mixed(path: Path, index: int, weights: Iterable[np.ndarray]) -> np.ndarray:
    """(S,) float64 at 16 kHz, not clipped: a second pass that mixes each run with its weights (C,)."""
    parts: list[np.ndarray] = []
    with media.playing(path, "audio", index) as track:
        for own, frames in zip(weights, _runs(track.frames, Gaps()), strict=False):
            resampler = av.AudioResampler(format="flt", rate=RATE)
            for frame in chain(frames, [None]):
                parts += [own @ channels for channels in _channels(resampler.resample(frame))]
    return np.concatenate(parts)


def _in_range(wave: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
    """``wave`` (S,) as int16, with its level changed if it does not fit 16 bit, and the remark on that.

    Raises:
        MediaError: a few samples are so large that the others would be lost.
    """
    centred = wave - np.median(wave)
    remark = _misfit(centred @ centred, _beyond(wave), len(wave))
    if remark:
        peak = np.abs(centred).max()
        wave = centred * ((1 - STEP) / peak)
        audible = np.abs(centred) >= 4 * STEP
        if audible.any() and np.median(np.abs(wave[audible])) < STEP:
            raise MediaError(
                f"{path.name}: a few samples of its sound are {peak:.0e} times full scale, "
                "beside which the rest would be lost"
            )
    return np.clip(np.rint(wave / STEP), -(2**15), 2**15 - 1).astype(np.int16), remark


def _misfit(energy: float, clipped: float, length: int) -> str:
    """The remark on a level that 16 bit cannot hold; empty if they can.

    Args:
        energy: sum of squares over ``length`` centred samples.
        clipped: sum of squares of the excess beyond full scale.
    """
    if clipped > MOST_CLIPPED * energy:
        return TOO_LOUD
    # Rounding to a step adds noise of STEP**2 / 12 to each sample.
    if SILENCE * length < energy < length * STEP**2 / 12 / MOST_ROUNDED:
        return TOO_QUIET
    return ""


def _beyond(wave: np.ndarray) -> float:
    excess = np.maximum(np.abs(wave) - 1, 0)
    return float(excess @ excess)


def _channels(parts: list[av.AudioFrame]) -> list[np.ndarray]:
    """(C, s) float32 for each frame of interleaved samples."""
    return [part.to_ndarray().reshape(-1, part.layout.nb_channels).T for part in parts]


def _weights(layout: av.AudioLayout) -> tuple[np.ndarray, bool]:
    """(C,) with sum 1: libswresample's mixing weights, measured on a test frame, and whether it can mix.

    Without a stated layout it refuses more than eight channels. For fewer it guesses loudspeakers and leaves
    out the low-frequency one. They are microphones, and get equal weights.
    """
    count = layout.nb_channels
    if count == 1:
        return np.ones(1), True
    if _unstated(layout):
        return np.full(count, 1 / count), False
    # Sample i is on channel i alone.
    frame = av.AudioFrame.from_ndarray(np.eye(count, dtype=np.float32).reshape(1, -1), "flt", layout.name)
    frame.sample_rate = RATE
    try:
        (mono,) = av.AudioResampler(format="s16", layout="mono", rate=RATE).resample(frame)
    except (av.FFmpegError, ValueError):
        return np.full(count, 1 / count), False
    weights = mono.to_ndarray()[0].astype(float)
    return (weights / weights.sum(), True) if weights.any() else (np.full(count, 1 / count), False)


def _unstated(layout: av.AudioLayout) -> bool:
    """Whether only the number of channels, more than two, is known; FFmpeg then uses this name."""
    return layout.nb_channels > 2 and layout.name == f"{layout.nb_channels} channels"


def _runs(frames: Iterable[av.AudioFrame], gaps: Gaps) -> Iterator[Iterator[av.AudioFrame]]:
    """Stretches of frames of one format; a broadcast may change its channels or rate midway."""
    filled = _filled(frames, gaps)
    for _, run in groupby(filled, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        yield run


def _filled(frames: Iterable[av.AudioFrame], gaps: Gaps) -> Iterator[av.AudioFrame]:
    """The frames; samples that are not finite are linearly interpolated from their neighbours."""
    for frame in frames:
        gaps.follow(frame)
        if frame.format.name.rstrip("p") in ("flt", "dbl"):
            if frame.format.is_planar and frame.layout.nb_channels > _MOST_PLANES:
                (frame,) = av.AudioResampler(format=frame.format.name.rstrip("p")).resample(frame)
            values = frame.to_ndarray()
            good = np.abs(values) <= LARGEST
            gaps.bad += int(values.size - good.sum())
            gaps.samples += values.size
            if not good.all():
                frame = _with(frame, values, good)
        yield frame


def _with(frame: av.AudioFrame, values: np.ndarray, good: np.ndarray) -> av.AudioFrame:
    channels = frame.layout.nb_channels
    planar = values.shape[0] == channels
    shape = values.shape if planar else (-1, channels)
    rows, usable = (array.reshape(shape) if planar else array.reshape(shape).T for array in (values, good))
    mended: np.ndarray = np.array(rows)
    indices = np.arange(mended.shape[1])
    for row, own in zip(mended, usable, strict=True):
        row[~own] = np.interp(indices[~own], indices[own], row[own]) if own.any() else 0
    filled = mended if planar else mended.T.reshape(1, -1)
    made = av.AudioFrame.from_ndarray(np.ascontiguousarray(filled), frame.format.name, frame.layout.name)
    made.sample_rate, made.pts, made.time_base = frame.sample_rate, frame.pts, frame.time_base
    return made
