"""What a clip is, and the words every stage shares."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

#: The six emotions of MER2024 in the order of the challenge baseline.
EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")

LABELED = "labeled"
UNLABELED = "unlabeled"


def plain(text: str) -> str:
    """A label as it is compared: without regard to capitals, blanks and forms of letters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Modality(StrEnum):
    AUDIO = "audio"
    VIDEO = "video"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One utterance as the corpus offers it. A part that the corpus lacks is None."""

    name: str
    video: Path | None
    #: None means that the sound is the audio stream of ``video``.
    audio: Path | None
    transcript: str | None
    #: An emotion of the configured label set; None for an unlabelled clip.
    label: str | None
    #: ``labeled`` or ``unlabeled``.
    split: str
    #: Kinds of what is worth telling of its transcript though nothing of it is lost.
    remarks: tuple[str, ...] = ()

    def names(self, modality: str) -> bool:
        """Whether the corpus says that the clip has this part. One that it says nothing of is absent on
        purpose: masked and counted, and no problem."""
        if modality == Modality.TEXT:
            return self.transcript is not None
        return self.video is not None or (modality == Modality.AUDIO and self.audio is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a clip, or a part of it that the corpus names, could not be used: one row of quarantine.parquet."""

    stage: str
    name: str
    #: ``clip`` when nothing of it is used; the modality that is masked; ``part of`` a modality
    #: when the rest of it is used; ``label`` when only its label is not.
    lost: str
    reason: str
    #: The feature set concerned, as ``voice`` or ``clip@tuned``, in the words of the stage: what ``fuse.sets``
    #: names for fuse, the extractor for extract, whichever of its adapters computed. Empty where no set is
    #: concerned, as in everything that shard tells, and in rows of versions that did not note it.
    part: str = ""

    def as_values(self) -> dict[str, str]:
        """For files that hold problems beside other things: without an empty ``part``."""
        return {key: str(value) for key, value in asdict(self).items() if value or key != "part"}
