"""One clip as the members of a tar."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mer_dist.core.records import Clip, Content, Problem
from mer_dist.shards.views import FACE, FRAME, pictures, suffixes

JPEG_QUALITY = 95
RATE = 16_000


def content_of(members: dict[str, bytes], silent: bool) -> Content:
    pictures = [content for suffix, content in members.items() if suffix.endswith(".jpg")]
    return Content(
        sound=_digest([members["flac"]]) if "flac" in members and not silent else "",
        pictures=_digest(pictures) if pictures else "",
        moving=len({*pictures}) > 1,
    )


def _digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


@dataclass(kw_only=True)
class Encoded:
    """The output of a worker for the writer; ``members`` is empty if nothing could be used."""

    clip: Clip
    duration: float = 0.0
    missing: list[str] = field(default_factory=list)
    frames: int = 0
    samples: int = 0
    #: False if the frames show the full picture because no face was found.
    face: bool = True
    #: Member suffix -> content, in tar order.
    members: dict[str, bytes] = field(default_factory=dict)
    #: None where nothing is stored.
    content: Content | None = None
    problems: list[Problem] = field(default_factory=list)
    #: Kinds of notable facts, though nothing was lost.
    remarks: list[str] = field(default_factory=list)

    @property
    def media(self) -> bool:
        """Whether there are pictures or sound."""
        return bool(pictures(self.members) or self.samples)


def encode(
    clip: Clip,
    *,
    frames: list[np.ndarray],
    whole: Sequence[np.ndarray] = (),
    samples: np.ndarray | None,
    seconds: float,
    face: bool,
    missing: list[str],
    problems: list[Problem],
    remarks: Iterable[str] = (),
    silent: bool = False,
) -> Encoded:
    """JPEG, FLAC and JSON members of a clip.

    Label and split are only in the index: correcting one changes no tar, and no feature computed from it.

    Args:
        frames: (H, W, 3) uint8 RGB each, in time order: the face, or what stands for it.
        whole: the same of the whole frames, as a second view.
        samples: (S,) int16, 16 kHz mono; None if the audio is missing.
        silent: the sound is silence throughout, and that of no recording.
    """
    duration = round(seconds, 3)
    count = 0 if samples is None else len(samples)
    facts = {
        "name": clip.name,
        "transcript": clip.transcript,
        "duration": duration,
        "missing": missing,
        "frames": len(frames),
        "samples": count,
        "face": face and bool(frames),
    }
    members: dict[str, bytes] = {}
    for view, own in ((FACE, frames), (FRAME, whole)):
        members |= dict(zip(suffixes(view, len(own)), map(jpeg, own), strict=True))
    if samples is not None:
        members["flac"] = flac(samples)
    members["json"] = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
    return Encoded(
        clip=clip,
        duration=duration,
        missing=missing,
        frames=len(frames),
        samples=count,
        face=face,
        members=members,
        content=content_of(members, silent),
        problems=problems,
        remarks=list(remarks),
    )


def jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    import cv2

    done, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"no JPEG can be made of an image of shape {image.shape}")
    return content.tobytes()


def flac(samples: np.ndarray) -> bytes:
    """(S,) int16 as 16 kHz mono FLAC."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
