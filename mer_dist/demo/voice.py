"""The voice-like tones of the demo: syllables of harmonics under moving formants.

A source-filter model (Fant 1960) in its additive form: every harmonic of the pitch gets the
amplitude that glottal tilt and two vocal-tract resonances give it. Pitch, contour, rate, loudness
and voice quality follow the emotion; the speaker's own pitch and tract are nuisance.
"""

from __future__ import annotations

import numpy as np

from mer_dist.core.records import EMOTIONS

RATE = 16_000
#: Steps per second at which pitch, loudness and formants are drawn.
_CONTROL = 100
_HARMONICS = 24
#: First two formants of five vowels, Hz.
_VOWELS = np.array([(730, 1250), (530, 1850), (300, 2250), (500, 900), (320, 800)])

#: Columns of :data:`MANNERS`.
PITCH, RANGE, SLOPE, SPEED, LOUDNESS, TILT, TREMOR, BREATH = range(8)
#: Full manners: pitch above the speaker's own (octaves), accents (octaves), rise over the clip
#: (octaves), syllables per second, loudness (dB), fall of the spectrum (dB per octave), tremor
#: (octaves), share of breath.
MANNERS = {
    "neutral": (0.00, 0.06, -0.10, 4.0, 0.0, -9.0, 0.00, 0.10),
    "angry": (0.30, 0.18, -0.15, 5.2, 8.0, -4.0, 0.01, 0.15),
    "happy": (0.45, 0.30, 0.10, 5.0, 4.0, -6.5, 0.00, 0.08),
    "sad": (-0.20, 0.05, -0.30, 2.8, -5.0, -12.0, 0.02, 0.30),
    "worried": (0.20, 0.12, 0.05, 5.8, -2.0, -9.0, 0.06, 0.25),
    "surprise": (0.60, 0.40, 0.45, 3.6, 6.0, -5.5, 0.00, 0.15),
}
_TABLE = np.array([MANNERS[emotion] for emotion in EMOTIONS])
#: How much speakers differ from the table, per column.
_HABIT = np.array([0.06, 0.03, 0.06, 0.3, 1.5, 0.8, 0.01, 0.03])


def voice(rng: np.random.Generator, blend: np.ndarray, seconds: float) -> np.ndarray:
    """``(S,)`` float32 at 16 kHz, within ±1.

    Args:
        blend: (6,) weight of each emotion's manner, in the order of ``EMOTIONS``.
    """
    manner = blend @ _TABLE + rng.normal(0, _HABIT)
    steps = int(seconds * _CONTROL)
    envelope, accents, formants = _syllables(rng, manner, steps)
    time = np.linspace(0, 1, steps)
    own_pitch = np.log2(rng.uniform(115, 205))
    octave = own_pitch + manner[PITCH] + manner[SLOPE] * (time - 0.5) + manner[RANGE] * accents
    octave += manner[TREMOR] * np.sin(2 * np.pi * 6.5 * np.arange(steps) / _CONTROL)
    formants = formants * rng.uniform(0.9, 1.15)
    samples = int(seconds * RATE)
    tone = _tone(2.0**octave, formants, manner[TILT], samples)
    loud = _stretch(envelope, samples)
    breath = rng.standard_normal(samples, np.float32) * max(manner[BREATH], 0.02)
    gain = 10 ** ((manner[LOUDNESS] + rng.normal(0, 2)) / 20)
    # The room's noise stays when the speaker is quiet: loudness survives a later normalisation.
    room = 0.01 * rng.standard_normal(samples, np.float32)
    sound = 0.12 * gain * loud * (tone + 0.5 * breath) + room
    return np.tanh(sound).astype(np.float32)


def _syllables(rng, manner: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loudness ``(steps,)``, pitch accents ``(steps,)`` and formants ``(steps, 2)``."""
    envelope, accents = np.zeros(steps), np.zeros(steps)
    formants = np.tile(_VOWELS[0], (steps, 1)).astype(float)
    start = int(rng.uniform(0, 0.15) * _CONTROL)
    length = _CONTROL / max(manner[SPEED], 1.5)
    while start < steps:
        stop = min(steps, start + max(6, int(length * rng.uniform(0.8, 1.2))))
        hump = np.sin(np.linspace(0, np.pi, stop - start, endpoint=False))
        envelope[start:stop] = rng.uniform(0.6, 1.0) * np.sqrt(hump)
        accents[start:stop] = rng.normal() * hump
        formants[start:stop] = _VOWELS[rng.integers(len(_VOWELS))]
        start = stop + int(0.15 * length)
    return envelope, accents, formants


def _tone(pitch: np.ndarray, formants: np.ndarray, tilt: float, samples: int) -> np.ndarray:
    """Harmonics of ``pitch`` (steps,) under ``formants`` (steps, 2), summed, of unit power."""
    turns = np.cumsum(_stretch(pitch, samples).astype(np.float64)) / RATE
    phase = 2 * np.pi * (turns % 1.0)
    before, sine = np.zeros(samples, np.float32), np.sin(phase).astype(np.float32)
    twice_cosine = 2 * np.cos(phase).astype(np.float32)
    tone, power = np.zeros(samples, np.float32), 0.0
    for harmonic in range(1, _HARMONICS + 1):
        frequency = harmonic * pitch
        strength = 10 ** (tilt * np.log2(harmonic) / 20) * _resonance(frequency, formants)
        strength[frequency > 0.45 * RATE] = 0
        tone += _stretch(strength, samples) * sine
        power += 0.5 * np.mean(strength**2)
        # Chebyshev's recursion: sin((k+1)x) = 2 cos(x) sin(kx) - sin((k-1)x).
        before, sine = sine, twice_cosine * sine - before
    return tone / np.sqrt(power)


def _resonance(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """How strongly the vocal tract passes ``frequency``: a floor and one bump per formant."""
    distance = (frequency[:, None] - formants) / np.array([90.0, 130.0])
    return 0.1 + (1 / (1 + distance**2)).sum(1)


def _stretch(control: np.ndarray, samples: int) -> np.ndarray:
    """A control curve at the sample rate, (samples,) float32."""
    at = np.linspace(0, len(control) - 1, samples)
    return np.interp(at, np.arange(len(control)), control).astype(np.float32)
