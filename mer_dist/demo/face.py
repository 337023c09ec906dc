"""The drawn faces of the demo: mouth, brows and eyes follow the emotion, all else is nuisance.

The drawing is shaded like a photograph (dark eye sockets, bright cheeks and nose), because a
frontal-face cascade looks for exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mer_dist.core.records import EMOTIONS

SIDE = 160
#: Fractional bits of OpenCV's drawing coordinates: movement below one pixel stays visible.
_BITS = 4

#: Columns of :data:`EXPRESSIONS`.
SMILE, OPENING, WIDTH, RAISE, SLANT, EYES = range(6)
#: Full expressions: corners of the mouth up, mouth open, mouth wide, brows up, inner ends of the
#: brows up, eyes open.
EXPRESSIONS = {
    "neutral": (0.0, 0.05, 1.00, 0.0, 0.0, 1.0),
    "angry": (-0.5, 0.15, 0.95, -0.7, -1.0, 0.75),
    "happy": (1.0, 0.35, 1.25, 0.2, 0.0, 0.7),
    "sad": (-1.0, 0.0, 0.85, 0.1, 0.8, 0.6),
    "worried": (-0.5, 0.25, 1.1, 0.4, 1.0, 1.2),
    "surprise": (0.1, 0.9, 0.8, 1.0, 0.0, 1.5),
}
_TABLE = np.array([EXPRESSIONS[emotion] for emotion in EMOTIONS])
#: How much a speaker's resting face differs from the table, per column.
_HABIT = np.array([0.1, 0.03, 0.05, 0.1, 0.1, 0.08])


@dataclass(kw_only=True)
class Person:
    """What a face keeps during a clip and what has nothing to do with the emotion.

    Lengths are pixels or parts of ``size``, half the width of the head.
    """

    skin: np.ndarray
    hair: np.ndarray
    background: np.ndarray
    size: float
    aspect: float
    centre: tuple[float, float]
    fringe: float
    eye_distance: float
    brow: int
    light: np.ndarray
    noise: np.ndarray

    def at(self, right: float, down: float) -> tuple[float, float]:
        return self.centre[0] + right * self.size, self.centre[1] + down * self.size

    def skin_times(self, factor: float | np.ndarray) -> np.ndarray:
        return self.skin * factor


def person(rng: np.random.Generator) -> Person:
    pale, dark = np.array([225, 185, 150]), np.array([175, 125, 85])
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    side_light = rng.uniform(-0.3, 0.3) * across[None, :, None]
    top_light = rng.uniform(-0.2, 0.2) * across[:, None, None]
    return Person(
        skin=pale + (dark - pale) * rng.uniform() + rng.normal(0, 6, 3),
        hair=rng.uniform(15, 90) + rng.normal(0, 15, 3),
        background=rng.uniform(50, 220) + rng.normal(0, 30, 3),
        size=rng.uniform(53, 58),
        aspect=rng.uniform(1.22, 1.34),
        centre=(SIDE / 2 + rng.normal(0, 2), SIDE * 0.5 + rng.normal(0, 2)),
        fringe=rng.uniform(0, 0.2),
        eye_distance=rng.uniform(0.37, 0.43),
        brow=int(rng.integers(3, 6)),
        light=(rng.uniform(0.7, 1.15) * (1 + side_light + top_light)).astype(np.float32),
        noise=rng.normal(0, rng.uniform(1.5, 4), (SIDE + 32, SIDE + 32, 1)).astype(np.float32),
    )


def frames(rng: np.random.Generator, blend: np.ndarray, count: int, fps: float) -> np.ndarray:
    """A talking, blinking face, ``(count, SIDE, SIDE, 3)`` uint8 RGB.

    Args:
        blend: (6,) weight of each emotion's expression, in the order of ``EMOTIONS``.
    """
    who = person(rng)
    head = _head(who)
    tilt, sway = rng.normal(0, 1.5), rng.normal(0, 1.0, 4)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for row, face in enumerate(_expressions(rng, blend, count, fps)):
        image = head.copy()
        _features(image, who, face)
        phase = 2 * np.pi * row / fps
        turn = cv2.getRotationMatrix2D(who.centre, tilt + sway[0] * np.sin(0.5 * phase), 1.0)
        turn[:, 2] += 1.5 * sway[1] * np.sin(0.4 * phase + sway[2]), sway[3] * np.cos(0.6 * phase)
        image = cv2.warpAffine(image, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        top, left = rng.integers(0, 32, 2)
        grain = who.noise[top : top + SIDE, left : left + SIDE]
        images[row] = (image * who.light + grain).clip(0, 255)
    return images


def _expressions(rng, blend: np.ndarray, count: int, fps: float) -> np.ndarray:
    """``(count, 6)``: the expression swells and fades while the mouth talks and the eyes blink."""
    seconds = np.arange(count) / fps
    rest = _TABLE[EMOTIONS.index("neutral")] + rng.normal(0, _HABIT)
    swell = 0.85 + 0.15 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * seconds + rng.uniform()))
    face = rest + swell[:, None] * (blend @ _TABLE - _TABLE[EMOTIONS.index("neutral")])
    talk = np.sin(2 * np.pi * (rng.uniform(2.5, 4.0) * seconds + rng.uniform()))
    face[:, OPENING] += 0.12 * np.maximum(talk, 0)
    blink = (seconds + rng.uniform(0, 2)) % rng.uniform(1.5, 3.0) < 1.2 / fps
    face[blink, EYES] = 0.15
    face[:, OPENING] = face[:, OPENING].clip(0, 1.2)
    face[:, EYES] = face[:, EYES].clip(0.1, 1.7)
    return face


def _head(who: Person) -> np.ndarray:
    """Everything that does not move: background, hair, head and its shading."""
    size, tall = who.size, who.size * who.aspect
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = who.background.clip(0, 255)
    neck = [who.at(-0.45, 0.8), who.at(0.45, 0.8), who.at(0.5, 2.2), who.at(-0.5, 2.2)]
    _polygon(image, neck, who.skin_times(0.75))
    _ellipse(image, who.at(0, 2.0), (1.5 * size, 0.55 * size), who.hair)
    _ellipse(image, who.at(0, -0.12), (1.08 * size, 1.05 * tall), who.hair, 180, 360)
    _ellipse(image, who.at(0, -0.12), (1.08 * size, 0.6 * tall), who.hair, 0, 180)
    for side in (-1, 1):
        _ellipse(image, who.at(side, 0.05), (0.14 * size, 0.26 * size), who.skin_times(0.8))
    _ellipse(image, who.at(0, 0), (size, tall), who.skin)
    _ellipse(image, who.at(0, -1.12), (0.86 * size, (0.28 + who.fringe) * size), who.hair)
    for right, down, wide, high, factor in _shades(who.eye_distance):
        _ellipse(image, who.at(right, down), (wide * size, high * size), who.skin_times(factor))
    smooth = cv2.GaussianBlur(image, (0, 0), 0.06 * size)
    for side in (-1, 1):
        nostril = who.at(side * 0.09, 0.4)
        _ellipse(smooth, nostril, (0.05 * size, 0.03 * size), who.skin_times(0.4))
    return smooth


def _shades(eye_distance: float) -> list[tuple[float, float, float, float, float]]:
    """Position, half axes and brightness of the patches that model the face."""
    both = [
        (side * right, down, wide, high, factor)
        for side in (-1, 1)
        for right, down, wide, high, factor in (
            (eye_distance, -0.14, 0.34, 0.20, 0.62),  # eye socket
            (0.50, 0.42, 0.27, 0.20, 1.12),  # cheek
            (0.92, 0.30, 0.12, 0.60, 0.80),  # edge of the face
        )
    ]
    return both + [
        (0, -0.55, 0.50, 0.17, 1.10),  # forehead
        (0, 0.05, 0.10, 0.38, 1.15),  # nose
        (0, 0.42, 0.20, 0.06, 0.70),  # below the nose
        (0, 1.02, 0.35, 0.09, 0.85),  # chin
    ]


def _features(image: np.ndarray, who: Person, face: np.ndarray) -> None:
    for side in (-1, 1):
        _eye(image, who, side * who.eye_distance, face[EYES])
        _brow(image, who, side, face[RAISE], face[SLANT])
    _mouth(image, who, face[SMILE], face[OPENING], face[WIDTH])


def _eye(image, who: Person, right: float, opening: float) -> None:
    centre, size = who.at(right, -0.14), who.size
    _ellipse(image, centre, (0.2 * size, 0.11 * opening * size), np.array([232, 230, 225]))
    iris = 0.095 * size
    _ellipse(image, centre, (iris, min(iris, 0.11 * opening * size)), who.hair * 0.6)
    lid = who.skin_times(0.3)
    _ellipse(image, centre, (0.2 * size, 0.11 * opening * size), lid, 180, 360, thickness=2)


def _brow(image, who: Person, side: int, lifted: float, slant: float) -> None:
    middle, height = side * who.eye_distance, -0.42 - 0.15 * lifted
    points = [
        who.at(middle + side * 0.24, height + 0.13 * slant + 0.02),
        who.at(middle, height - 0.05),
        who.at(middle - side * 0.24, height - 0.18 * slant + 0.02),
    ]
    cv2.polylines(image, [_fixed(points)], False, _colour(who.hair), who.brow, cv2.LINE_AA, _BITS)


def _mouth(image, who: Person, smile: float, opening: float, wide: float) -> None:
    across = np.linspace(-1, 1, 13)
    middle = 0.72 - 0.22 * smile * (across**2 - 0.4)
    bulge, half = 1 - across**2, 0.42 * wide

    def outline(upper: float, lower: float, half: float) -> list[tuple[float, float]]:
        top = [who.at(x * half, y) for x, y in zip(across, middle - upper * bulge, strict=True)]
        low = [who.at(x * half, y) for x, y in zip(across, middle + lower * bulge, strict=True)]
        return top + low[::-1]

    lips = who.skin_times(np.array([0.72, 0.5, 0.55]))
    _polygon(image, outline(0.04 + 0.14 * opening, 0.06 + 0.26 * opening, half), lips)
    inside = np.array([60, 30, 40])
    _polygon(image, outline(0.01 + 0.11 * opening, 0.01 + 0.20 * opening, 0.9 * half), inside)


def _ellipse(image, centre, axes, colour, start=0, end=360, thickness=-1) -> None:
    (x, y), (a, b) = _fixed([centre, axes]).tolist()
    cv2.ellipse(
        image, (x, y), (max(a, 4), max(b, 4)), 0, start, end, _colour(colour), thickness, cv2.LINE_AA, _BITS
    )


def _polygon(image, points, colour) -> None:
    cv2.fillPoly(image, [_fixed(points)], _colour(colour), cv2.LINE_AA, _BITS)


def _fixed(points) -> np.ndarray:
    return np.round(np.asarray(points) * 2**_BITS).astype(np.int32)


def _colour(rgb: np.ndarray) -> tuple[float, ...]:
    return tuple(rgb.clip(0, 255).tolist())
