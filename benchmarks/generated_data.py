"""A generated fusion task whose best possible answers are known.

Six emotions, each a mixture of *modes*. A mode says which emotion the audio, the video and the text
*display*, and these need not agree: a smile over sad words, an angry voice with a kind word. The
same display means different emotions beside different others, so no weighted sum of modalities is
optimal. All features of a clip side by side, of width D, are drawn as ::

    x = mean of the mode + what the modalities share + own spread in the latent space + noise

where the shared part is one factor a clip (its room, its speaker) that moves all modalities at once
and partly along the directions that tell emotions apart: one modality helps to read another. A mode
is thus one Gaussian of dimension D, and leaving out the columns of a missing modality is exact
marginalisation, so p(emotion | what a clip has) is known, whatever the label shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mer_dist.core.records import EMOTIONS

WIDTH = {"audio": 32, "video": 24, "text": 48}
#: Label shares, in the order of EMOTIONS, of the labelled and of the unlabelled clips.
LABELED_SHARES = np.array([0.26, 0.24, 0.20, 0.14, 0.11, 0.05])
UNLABELED_SHARES = np.array([0.34, 0.13, 0.25, 0.10, 0.08, 0.10])
#: emotion -> its modes: share, then what audio, video and text display.
MODES = {
    "neutral": [
        (0.6, "neutral neutral neutral"),
        (0.2, "neutral neutral happy"),
        (0.2, "sad neutral neutral"),
    ],
    "angry": [(0.6, "angry angry angry"), (0.2, "neutral angry angry"), (0.2, "angry neutral happy")],
    "happy": [(0.6, "happy happy happy"), (0.2, "happy happy angry"), (0.2, "neutral happy neutral")],
    "sad": [(0.6, "sad sad sad"), (0.2, "neutral happy sad"), (0.2, "worried sad neutral")],
    "worried": [
        (0.6, "worried worried worried"),
        (0.2, "worried neutral neutral"),
        (0.2, "sad worried happy"),
    ],
    "surprise": [
        (0.6, "surprise surprise surprise"),
        (0.2, "angry happy surprise"),
        (0.2, "happy worried neutral"),
    ],
}
#: Displays that a modality hardly tells apart: they lie this much closer together.
ALIKE = {"audio": ("angry", "surprise"), "video": ("neutral", "worried"), "text": ("neutral", "surprise")}
CLOSER = 0.6
LATENT = 4
#: Distance of a display from the origin of its latent space, in deviations of the latent spread.
STRENGTH = {"audio": 3.4, "video": 2.8, "text": 3.6}
SHARED_FACTORS, SHARED_STRENGTH = 2, 1.5
NOISE = 0.9
MISSING = 0.1


@dataclass(kw_only=True)
class Sample:
    """Generated clips: N rows, all features side by side."""

    #: (N,) int: index into EMOTIONS.
    truth: np.ndarray
    #: (N, D) float32; what stands in the columns of a missing modality means nothing.
    values: np.ndarray
    #: modality -> (N,) bool, at least one of them True for every clip drawn.
    present: dict[str, np.ndarray]

    def without(self, modality: str) -> Sample:
        absent = np.zeros(len(self.truth), bool)
        return replace(self, present=self.present | {modality: absent})

    def only(self, modality: str) -> Sample:
        absent = np.zeros(len(self.truth), bool)
        return replace(self, present={**dict.fromkeys(WIDTH, absent), modality: self.present[modality]})

    def mask(self) -> np.ndarray:
        """(N, D) bool: True where the clip has the feature."""
        return np.repeat(np.stack([self.present[name] for name in WIDTH], 1), list(WIDTH.values()), 1)

    def __add__(self, other: Sample) -> Sample:
        return Sample(
            truth=np.concatenate([self.truth, other.truth]),
            values=np.concatenate([self.values, other.values]),
            present={name: np.concatenate([self.present[name], other.present[name]]) for name in WIDTH},
        )

    def with_noise(self, modality: str, std: np.ndarray, seed: int) -> Sample:
        """Gaussian noise of ``std`` (D,) added to one modality."""
        columns, values = COLUMNS[modality], self.values.copy()
        draw = np.random.default_rng([seed, 2]).normal(size=values[:, columns].shape)
        values[:, columns] += draw * std[columns]
        return replace(self, values=values)


def _columns() -> dict[str, slice]:
    edges = np.cumsum([0, *WIDTH.values()]).tolist()
    return {name: slice(start, start + WIDTH[name]) for name, start in zip(WIDTH, edges, strict=False)}


#: modality -> its columns of the features side by side.
COLUMNS = _columns()


@dataclass(frozen=True, kw_only=True)
class World:
    """The distribution of clips: a Gaussian per mode, all with the same covariance."""

    #: (M, D) for M modes.
    means: np.ndarray
    #: (D, D)
    covariance: np.ndarray
    #: (M,) int: the emotion of each mode, an index into EMOTIONS.
    emotion: np.ndarray = field(
        default_factory=lambda: np.repeat(np.arange(len(EMOTIONS)), [len(MODES[name]) for name in EMOTIONS])
    )
    #: (M,): share of the mode among the clips of its emotion.
    share: np.ndarray = field(
        default_factory=lambda: np.array([share for name in EMOTIONS for share, _ in MODES[name]])
    )

    @classmethod
    def make(cls, seed: int) -> World:
        """Displays, embeddings and shared factors drawn at random."""
        random = np.random.default_rng([seed, 0])
        means, own, shared = [], np.zeros((sum(WIDTH.values()),) * 2), []
        shown = [displays.split() for name in EMOTIONS for _, displays in MODES[name]]
        for place, (modality, width) in enumerate(WIDTH.items()):
            embed = np.linalg.qr(random.normal(size=(width, LATENT)))[0]
            display = _displays(random, modality)
            means.append(np.stack([display[one[place]] for one in shown]) @ embed.T)
            own[COLUMNS[modality], COLUMNS[modality]] = embed @ embed.T
            # Half of the shared part lies in the latent space, half anywhere.
            within = embed @ random.normal(size=(LATENT, SHARED_FACTORS)) / LATENT**0.5
            anywhere = random.normal(size=(width, SHARED_FACTORS)) / width**0.5
            shared.append(SHARED_STRENGTH * (within + anywhere))
        factors = np.concatenate(shared)
        covariance = own + factors @ factors.T + NOISE**2 * np.eye(len(own))
        return cls(means=np.concatenate(means, 1), covariance=covariance)

    def draw(self, count: int, shares: np.ndarray, *seed: int) -> Sample:
        """``count`` clips of these label shares, each modality missing with chance ``MISSING``."""
        random = np.random.default_rng([*seed, 1])
        weight = shares[self.emotion] * self.share
        mode = random.choice(len(weight), count, p=weight / weight.sum())
        noise = random.normal(size=(count, self.means.shape[1])) @ np.linalg.cholesky(self.covariance).T
        present = random.random((count, len(WIDTH))) >= MISSING
        while not (some := present.any(1)).all():
            present[~some] = random.random(((~some).sum(), len(WIDTH))) >= MISSING
        return Sample(
            truth=self.emotion[mode],
            values=(self.means[mode] + noise).astype(np.float32),
            present=dict(zip(WIDTH, present.T, strict=True)),
        )

    def std(self, shares: np.ndarray) -> np.ndarray:
        """(D,): standard deviation of each feature under these label shares."""
        weight = shares[self.emotion] * self.share
        spread = weight @ (self.means - weight @ self.means) ** 2
        return np.sqrt(np.diag(self.covariance) + spread)

    def with_noise(self, modality: str, std: np.ndarray) -> World:
        """The world in which one modality has more noise, to judge clips that got it."""
        more = np.zeros(len(std))
        more[COLUMNS[modality]] = std[COLUMNS[modality]] ** 2
        return replace(self, covariance=self.covariance + np.diag(more))

    def posterior(self, sample: Sample, shares: np.ndarray) -> np.ndarray:
        """Exact p(emotion | the modalities that a clip has), (N, C), under these label shares."""
        present = np.stack([sample.present[name] for name in WIDTH], 1)
        log_weight = np.log(shares[self.emotion] * self.share)
        log_p = np.tile(log_weight, (len(present), 1))
        for pattern in np.unique(present, axis=0):
            columns = np.repeat(pattern, list(WIDTH.values()))
            rows = (present == pattern).all(1)
            log_p[rows] += self._log_density(sample.values[rows][:, columns], columns)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        p = p @ np.eye(len(EMOTIONS))[self.emotion]
        return p / p.sum(1, keepdims=True)

    def _log_density(self, values: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n, M) up to what all modes have in common: they share one covariance."""
        if not columns.any():
            return np.zeros((len(values), len(self.means)))
        whiten = np.linalg.inv(np.linalg.cholesky(self.covariance[np.ix_(columns, columns)])).T
        values, means = values.astype(np.float64) @ whiten, self.means[:, columns] @ whiten
        # |x - m|² without |x|², again the same for all modes.
        return values @ means.T - (means**2).sum(1) / 2


def _displays(random: np.random.Generator, modality: str) -> dict[str, np.ndarray]:
    """emotion -> (LATENT,), how a modality shows it."""
    points = random.normal(size=(len(EMOTIONS), LATENT))
    # Far apart, or the difficulty would change from world to world.
    for _ in range(200):
        gap = points[:, None] - points[None]
        push = gap / ((gap**2).sum(-1, keepdims=True) ** 1.5 + 1e-3)
        points += 0.05 * push.sum(1)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    points *= STRENGTH[modality]
    found = dict(zip(EMOTIONS, points, strict=True))
    one, other = ALIKE[modality]
    middle = (found[one] + found[other]) / 2
    return found | {name: middle + (1 - CLOSER) * (found[name] - middle) for name in (one, other)}
