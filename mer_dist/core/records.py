"""The clip record, and the terms that every stage shares."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

#: The six emotions of MER2024 in the order of the challenge baseline.
EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")

LABELED = "labeled"
UNLABELED = "unlabeled"


def plain(text: str) -> str:
    """A label as it is compared: without case, extra blanks and Unicode variants."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Modality(StrEnum):
    AUDIO = "audio"
    VIDEO = "video"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One utterance of the corpus. A part that the corpus lacks is None."""

    name: str
    video: Path | None
    #: None means that the sound is the audio stream of ``video``.
    audio: Path | None
    transcript: str | None
    #: An emotion of the configured label set; None for an unlabelled clip.
    label: str | None
    #: ``labeled`` or ``unlabeled``.
    split: str
    #: Kinds of notable facts about its transcript, though nothing of it is lost.
    remarks: tuple[str, ...] = ()
    #: Whether the corpus wants an answer for it, if it is unlabelled: others are there to learn from.
    asked: bool = True
    #: Column -> text, of the other columns of its row among the labels, as ``valence``; empty cells are left out.
    annotations: dict[str, str] = field(default_factory=dict)

    def names(self, modality: str) -> bool:
        """Whether the corpus lists this part of the clip. A part that it does not list is absent on purpose:
        masked and counted, but not a problem."""
        if modality == Modality.TEXT:
            return self.transcript is not None
        return self.video is not None or (modality == Modality.AUDIO and self.audio is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What the stored media of a clip are, to compare them with those of other clips."""

    #: Digest of the sound; empty if there is none, or only silence.
    sound: str
    #: Digest of the pictures; empty if there are none.
    pictures: str
    #: Whether the pictures differ from each other.
    moving: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a clip, or a part of it that the corpus lists, could not be used: a row of quarantine.parquet."""

    stage: str
    name: str
    #: ``clip`` if nothing of it is used; the masked modality; ``part of`` a modality if the rest of it is
    #: used; ``label`` if only the label is not used.
    lost: str
    reason: str
    #: The affected feature set, as ``voice`` or ``clip@tuned``, by the stage's name for it: the one in
    #: ``fuse.sets`` for fuse, the extractor for extract, whichever adapter computed. Empty if no set is
    #: affected, as in all rows of shard, and in rows of versions that did not record it.
    part: str = ""

    def as_values(self) -> dict[str, str]:
        """For files that hold more than problems: without an empty ``part``."""
        return {key: str(value) for key, value in asdict(self).items() if value or key != "part"}
