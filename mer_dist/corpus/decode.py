"""Decodes a clip into its modalities: square frames, a waveform, a transcript, or the reasons why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip, Modality, Problem
from mer_dist.corpus import faces, media, openface, picture
from mer_dist.corpus.clock import UNLIKELY
from mer_dist.corpus.paths import has_openface
from mer_dist.corpus.sound import read_sound
from mer_dist.shards.shard_index import FACELESS
from mer_dist.shards.views import FRAME

SHORT_SOUND = "sound far shorter than its video"
LONG_SOUND = "sound far longer than its video"
CUT_AWAY = (
    "more than a third of the picture lies outside the central square that is stored, for no face detector "
    "found a face or none is at work"
)
#: A square loses a quarter of a 4:3 picture, four ninths of 16:9.
MOST_CUT_AWAY = 1 / 3
APART = "sound and picture of a file begin over half a second apart; each is stored from its own start"
APART_SECONDS = 0.5
#: Far: more than twice as long and half a second, or a quarter and a whole second. Streams of one file seldom end
#: together.
FAR = ((2.0, 0.5), (1.25, 1.0))


@dataclass(kw_only=True)
class Decoded:
    clip: Clip
    #: (size, size, 3) uint8 RGB each, in time order; empty if the video is missing.
    frames: list[np.ndarray] = field(default_factory=list)
    #: The same of the whole frames, if they are a view of their own.
    whole: list[np.ndarray] = field(default_factory=list)
    #: (S,) int16, mono, 16 kHz; None if the audio is missing.
    samples: np.ndarray | None = None
    seconds: float = 0.0
    #: Start of the picture on the clock of its file, in seconds; None if unknown.
    start: float | None = None
    #: False if no face was found and the frames show the full picture.
    face: bool = True
    #: Modalities that the clip lacks, sorted.
    missing: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    #: Findings without loss; the text is the same for every clip of a kind, since remarks are counted
    #: by text.
    remarks: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return len(self.missing) < len(Modality)

    def note(self, lost: str, reason: str) -> None:
        self.problems.append(Problem(stage="shard", name=self.clip.name, lost=lost, reason=reason))


def decode(clip: Clip, config: ShardConfig) -> Decoded:
    """Decode what can be decoded of ``clip``; the rest is recorded with its reason."""
    decoded = Decoded(clip=clip)
    for modality, add in ((Modality.VIDEO, _add_video), (Modality.AUDIO, _add_audio)):
        try:
            add(decoded, config)
        except media.MediaError as error:
            decoded.note(modality, str(error))
        except Exception as error:  # On damaged input a decoder may raise anything.
            decoded.note(modality, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return _judged(decoded)


def text_only(clip: Clip, reason: str) -> Decoded:
    """A clip whose media files must not be opened again, for ``reason``."""
    decoded = Decoded(clip=clip)
    # If the clip names no file, it was a picture of its face.
    named = [part for part in (Modality.VIDEO, Modality.AUDIO) if clip.names(part)] or [Modality.VIDEO]
    for modality in named:
        decoded.note(modality, reason)
    return _judged(decoded)


def _judged(decoded: Decoded) -> Decoded:
    """Sets the missing modalities, or gives up the clip if none is left.

    A part that the corpus does not list is missing, but not a problem. If a clip of a corpus of transcripts
    has none, the table readers know why.
    """
    there = {
        Modality.VIDEO: bool(decoded.frames or decoded.whole),
        Modality.AUDIO: decoded.samples is not None,
        Modality.TEXT: decoded.clip.transcript is not None,
    }
    decoded.missing = sorted(modality.value for modality, found in there.items() if not found)
    if not decoded.usable:
        reasons: dict[str, str] = {
            **dict.fromkeys(there, "the corpus names none"),
            Modality.TEXT: "no transcript",
        }
        reasons |= {problem.lost: problem.reason for problem in decoded.problems}
        why = "; ".join(f"{part}: {reason}" for part, reason in reasons.items())
        decoded.problems = []
        decoded.note("clip", f"nothing of it can be used: {why}")
    return decoded


def _add_video(decoded: Decoded, config: ShardConfig) -> None:
    clip = decoded.clip
    crops = config.faces == "openface" and _add_crops(decoded, config)
    if clip.video is None or (crops and FRAME not in config.views):
        return
    try:
        video = media.read_video(clip.video, config.frames)
    except media.MediaError as error:
        if not crops:
            raise
        decoded.note("part of video", f"{error}; the faces of OpenFace alone are stored")
        return
    decoded.seconds = video.seconds
    if FRAME in config.views:
        decoded.whole = [faces.whole(frame, config.image_size) for frame in video.frames]
    if not crops:
        _add_faces(decoded, config, video)
    if not (decoded.frames or decoded.whole):
        return
    decoded.start = None if UNLIKELY in video.remarks else video.start
    if video.damage:
        decoded.note("part of video", f"{clip.video.name}: {video.damage}")
    decoded.remarks += video.remarks


def _add_faces(decoded: Decoded, config: ShardConfig, video: media.Video) -> None:
    """The face of each frame, or what ``faceless`` says."""
    if config.faces == "cascade":
        decoded.frames, decoded.face = faces.cascade(video.frames, config.image_size)
    else:
        decoded.frames = [faces.whole(frame, config.image_size) for frame in video.frames]
        decoded.face = config.faces == "none"
    if config.faceless == "mask" and not decoded.face:
        decoded.frames = []
        decoded.remarks.append(FACELESS)
        return
    whole = config.faces == "none" or not decoded.face
    decoded.remarks += [CUT_AWAY] * (whole and max(map(_cut_away, video.frames)) > MOST_CUT_AWAY)
    decoded.remarks += [picture.NEARLY_EMPTY] * picture.nearly_empty(video.frames)


def _add_crops(decoded: Decoded, config: ShardConfig) -> bool:
    """Whether OpenFace has faces of the clip, which then are its frames. Faces that cannot be read are a loss,
    in whose place the frames of the video are taken.

    Raises:
        MediaError: they cannot be read, and there is no video.
    """
    clip, root = decoded.clip, Path(config.openface)
    try:
        crops, remarks = openface.crops(root, clip.name, config.frames, config.image_size)
        if not crops and clip.video is None and has_openface(root, clip.name):
            raise media.MediaError("its OpenFace folder holds no picture of a face that can be read")
    except media.MediaError as error:
        if clip.video is None:
            raise
        instead = (
            "the frames of its video are stored" if config.faceless == "frame" else "its video is masked"
        )
        decoded.note("part of video", f"{error}; {instead}")
        return False
    decoded.frames = crops
    decoded.remarks += remarks
    decoded.remarks += [picture.NEARLY_EMPTY] * (bool(crops) and picture.nearly_empty(crops))
    if crops:
        decoded.seconds = media.video_seconds(clip.video) if clip.video else 0.0
    return bool(crops)


def _add_audio(decoded: Decoded, config: ShardConfig) -> None:
    source = decoded.clip.audio or decoded.clip.video
    if source is None:
        return
    sound = read_sound(source)
    decoded.samples = sound.samples
    decoded.remarks += sound.remarks + _length_remarks(sound.seconds, decoded.seconds)
    if source == decoded.clip.video and decoded.start is not None and sound.start is not None:
        decoded.remarks += [APART] * (abs(sound.start - decoded.start) > APART_SECONDS)
    decoded.remarks = list(dict.fromkeys(decoded.remarks))
    decoded.seconds = max(decoded.seconds, sound.seconds)
    if sound.damage:
        decoded.note("part of audio", f"{source.name}: {sound.damage}")


def _cut_away(frame: np.ndarray) -> float:
    """The fraction of a picture (H, W, 3) outside its central square."""
    return 1 - min(frame.shape[:2]) / max(frame.shape[:2])


def _length_remarks(sound: float, video: float) -> list[str]:
    """Remarks on lengths in seconds; a clip without video has 0."""
    if not video or not any(
        max(sound, video) > ratio * min(sound, video) and abs(sound - video) > more for ratio, more in FAR
    ):
        return []
    return [SHORT_SOUND if sound < video else LONG_SOUND]
