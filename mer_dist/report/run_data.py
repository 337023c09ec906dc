"""The content of the page as plain values: :mod:`collect` fills them, figures and page draw them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mer_dist.core.records import Problem

#: By epoch; None where there is no finite value.
Curve = list[float | None]
Interval = tuple[float, float] | None


@dataclass(kw_only=True)
class Corpus:
    """The shard index in counts."""

    #: split -> label -> clips; a clip without a label counts under "".
    counts: dict[str, Counter[str]]
    #: split -> modality -> clips without it.
    missing: dict[str, Counter[str]]
    #: split -> clips that could not be stored; the unlabelled ones count, since they have answers.
    unstored: Counter[str]
    seconds: float
    shards: int
    #: Labelled clip -> label.
    truth: dict[str, str]
    #: Clip of which any modality is stored -> its shard.
    shard_of: dict[str, int]
    #: In the order of the configuration; labels not in it come last.
    labels: list[str]

    def clips(self, split: str) -> int:
        return self.counts.get(split, Counter()).total()


@dataclass(kw_only=True)
class Adapter:
    """The training history of one adapter of an extractor, by epoch."""

    extractor: str
    variant: str
    train_loss: Curve
    validation_loss: Curve
    validation_waf: Curve
    best_epoch: int | None
    #: Whether validation uses clips that it was not trained on.
    held_out: bool = True


@dataclass(kw_only=True)
class Round:
    """One round of self-training: a curve for each fold, and the number of pseudo-labels."""

    number: int
    train_loss: list[Curve]
    waf: list[Curve]
    pseudo_labeled: int | None


@dataclass(kw_only=True)
class Score:
    """One row of the result table; WAF in [0, 1]."""

    title: str
    #: ``linear_probe``, ``round``, ``vote``, or empty if no prediction file has this title.
    kind: str = ""
    oof: float | None = None
    oof_interval: Interval = None
    #: On the unlabelled clips, where their truth is known.
    test: float | None = None
    test_interval: Interval = None
    #: Clips that were scored; those of ``test`` without an answer count as wrong.
    oof_clips: int | None = None
    test_clips: int | None = None
    unanswered: int | None = None
    #: The first of those without an answer.
    unanswered_names: list[str] = field(default_factory=list)
    #: Of the clips of ``test`` with an answer: row = truth, column = answer.
    confusion: list[list[int]] | None = None

    def values(self) -> list[float]:
        edges = [*(self.oof_interval or ()), *(self.test_interval or ())]
        return [value for value in (self.oof, self.test, *edges) if value is not None]

    @property
    def headline(self) -> float | None:
        return self.oof if self.test is None else self.test


@dataclass(kw_only=True)
class Confusion:
    title: str
    labels: list[str]
    #: Row = truth, column = answer.
    counts: list[list[int]]


@dataclass(kw_only=True)
class Prior:
    labels: list[str]
    #: (name, share of each label).
    series: list[tuple[str, list[float]]]
    remarks: list[str] = field(default_factory=list)
    #: Name of a series -> (lower, upper) edge of the 95 % interval of each label.
    intervals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Teacher:
    """An outside labeller in the vote."""

    name: str
    #: Clips that it covers.
    labeled: int
    unlabeled: int
    #: Exponent of its probabilities beside those of the members; 0: it has no say.
    weight: float


@dataclass(kw_only=True)
class Disputed:
    """A labelled clip for which a teacher and the models agree on another label."""

    name: str
    label: str
    instead: str
    #: Of ``instead``, by the models alone.
    probability: str
    teacher: str


@dataclass(kw_only=True)
class Media:
    """What the shards hold of a clip, ready for the page."""

    transcript: str | None
    seconds: float
    #: Modalities that the clip lacks.
    missing: list[str]
    #: A few of its frames side by side as one JPEG, and how many; None without video.
    strip: bytes | None = None
    pictures: int = 0
    #: FLAC; None without audio, or if no sound is asked for.
    sound: bytes | None = None
    #: Seconds of ``sound``, if it is only the beginning.
    beginning: float | None = None


@dataclass(kw_only=True)
class ShownClip:
    name: str
    #: None where the truth is not known.
    label: str | None
    answer: str
    #: By the row that answers, of each label.
    probability: list[float]
    #: Modality -> probability of each label by it alone; None where the clip lacks it.
    by_modality: dict[str, list[float] | None]
    #: Name of an outside labeller, and its probability of each label.
    teacher: tuple[str, list[float]] | None = None
    #: None if the shards do not hold the clip.
    media: Media | None = None


@dataclass(kw_only=True)
class ShownClips:
    """Clips to look at and to listen to."""

    #: Of the row of the result table that answers.
    title: str
    labels: list[str]
    #: Kind of the clips -> how many there are, and those that are shown; see :mod:`mer_dist.report.clip_choice`.
    groups: dict[str, tuple[int, list[ShownClip]]]
    #: Of linked sound, relative to the page; empty: it is embedded.
    sound_folder: str = ""

    def all(self) -> list[ShownClip]:
        return [clip for _, clips in self.groups.values() for clip in clips]


@dataclass(kw_only=True)
class Timing:
    stage: str
    part: str
    seconds: float | None
    clips: int | None
    made_at: str
    fingerprint: str

    @property
    def rate(self) -> float | None:
        return self.clips / self.seconds if self.clips and self.seconds else None


@dataclass(kw_only=True)
class RunData:
    """Everything the page shows."""

    name: str
    notes: list[str]
    config_text: str | None
    corpus: Corpus | None
    stats: Any
    problems: list[Problem]
    #: Remark of sharding on clips that lost nothing -> their names.
    remarks: dict[str, list[str]]
    adapters: list[Adapter]
    rounds: list[Round]
    scores: list[Score]
    #: Out of fold.
    confusion: Confusion | None
    #: On the unlabelled clips, where their truth is known.
    test_confusion: Confusion | None
    #: None before the first round of fusion, and where no clip is to be shown.
    clips: ShownClips | None
    prior: Prior | None
    teachers: list[Teacher]
    disputed: list[Disputed]
    #: Names of the teachers whose agreement selects pseudo-labels.
    consensus: list[str]
    timings: list[Timing]
    answers: int | None
