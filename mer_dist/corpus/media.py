"""Reads media files, as far as they can be decoded: opening, tracks, frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import av
import numpy as np

from mer_dist.corpus import paths, picture, stated, wide_samples
from mer_dist.corpus.clock import UNLIKELY, Clock, Trust, trust
from mer_dist.corpus.picture import Shot
from mer_dist.corpus.structure import FOLLOWED, MOTION_PHOTO, followed, motion_photo, remedy

#: Larger frames (8K) are treated as a bomb: a few kilobytes can hold billions of black pixels.
MOST_PIXELS = 8192 * 4320
_FLAGS = av.stream.Disposition
#: Flags of secondary tracks: with commentary, or with the voices removed.
_ASIDE = (
    _FLAGS.comment
    | _FLAGS.visual_impaired
    | _FLAGS.hearing_impaired
    | _FLAGS.descriptions
    | _FLAGS.dependent
    | _FLAGS.clean_effects
    | _FLAGS.non_diegetic
    | _FLAGS.karaoke
)
SEVERAL_VIDEOS = (
    "several video tracks; the first that is flagged default was used, or else the first; "
    "one that states to be a single picture comes last"
)
#: Times are sums of rounded ticks, in seconds.
TICK = 1e-6
ENCRYPTED = "it is encrypted"
OTHERS_BEGIN = (
    "streams begin that its start does not list, as where a broadcast changes; the rest is not read"
)
HOLE = "video without a picture for a second or more, as where a part was lost; the one before stands for it"
HOLE_SECONDS = 1.0
NOT_WHOLE = "the decoder does not vouch for a picture"


class MediaError(Exception):
    """A stream is unusable; the message is the reason."""


@dataclass(kw_only=True)
class Video:
    #: (H, W, 3) uint8 RGB each, in time order.
    frames: list[np.ndarray]
    #: On the clock of the file.
    start: float
    seconds: float
    #: What could not be decoded; empty if the stream is complete.
    damage: str
    #: Kinds of remarks on its pictures.
    remarks: list[str]


@dataclass(kw_only=True)
class _Extent:
    """The shown packets of a video."""

    #: Seconds on the clock of the file.
    start: float
    end: float
    #: (N,) seconds of each, sorted; empty if packet times are not frame times.
    times: np.ndarray
    #: Number of packets with content.
    seen: int
    #: What is missing.
    damage: str
    trust: Trust
    #: Whether frames of a fixed rate stop for long, and go on.
    hole: bool = False

    def targets(self, count: int) -> np.ndarray:
        """(count,) seconds: the middles of equal intervals."""
        return self.start + (np.arange(count) + 0.5) * (self.end - self.start) / count

    def from_first(self, time: float) -> _Extent:
        """The extent from the first decodable frame: a recording cut out of another may begin with frames
        whose reference picture is missing. A few at the start are usual, and no loss."""
        if not len(self.times) or time - self.start <= stated.SLACK_SECONDS:
            return self
        there, count = int((self.times > time - TICK).sum()), len(self.times)
        why = f"{there} of {count} frames are there, for those before build on a picture that is not"
        return replace(self, start=time, damage="; ".join(filter(None, (self.damage, why))))


@dataclass(kw_only=True)
class Track:
    """One stream of a file that is being decoded."""

    kind: str
    #: FFmpeg's codec name.
    codec: str
    #: The decoded frames, in the order of the file.
    frames: Iterator
    #: The errors between them, so far, and tracks that players prefer but that failed.
    faults: list[str]
    #: Tracks of this kind in the file, and those of them with a decoder.
    count: int
    known: int
    #: Tracks of this kind in other programmes of a broadcast.
    others: int
    #: The seconds of sound that the file states, given the decoded seconds; called after the last frame.
    stated: Callable[[float], float]

    @property
    def damage(self) -> str:
        return _summary(self.kind, self.faults)


def read_video(path: Path, count: int) -> Video:
    """The frames shown at the middle of ``count`` equal intervals of the video, as a player shows them.

    A video with fewer frames gives each of them once. The intervals span the packets in the file, not
    the length in its header, so a truncated file is sampled evenly too. Frames hidden by an edit list
    do not belong to the video.

    Raises:
        MediaError: no such file, no video stream, or most of it cannot be decoded.
    """
    with _opened(path) as container:
        extent = _extent(container, _stream(container, "video", path), path)
        remarks = {SEVERAL_VIDEOS} if len(_tracks(container, "video")) > 1 else set()
    remarks |= {UNLIKELY} if not extent.trust.whole else set()
    remarks |= {HOLE} if extent.hole else set()
    remarks |= {FOLLOWED} if followed(path) else set()
    remarks |= {MOTION_PHOTO} if motion_photo(path) else set()
    faults: list[str] = []
    with _opened(path) as container:
        stream = _stream(container, "video", path)
        shots = _shots(container, stream, extent, faults)
        first = next(shots, None)
        if first is not None:
            extent = extent.from_first(first.time)
            try:
                frames = _shown_at(extent.targets(count), chain([first], shots), remarks)
            except picture.ColourError as error:
                raise MediaError(f"{path.name}: {error}") from None
    if 2 * len(faults) > extent.seen:
        raise MediaError(f"{path.name}: most of its video does not decode: {faults[0]}{remedy(path)}")
    if first is None:
        raise MediaError(f"{path.name}: no frame of its video decodes")
    return Video(
        frames=frames,
        start=extent.start,
        seconds=extent.end - extent.start,
        damage=extent.damage or _summary("video", faults),
        remarks=sorted(remarks),
    )


def video_seconds(path: Path) -> float:
    """Length of the video stream; 0 without a readable one."""
    try:
        with _opened(path) as container:
            extent = _extent(container, _stream(container, "video", path), path)
    except MediaError:
        return 0.0
    return extent.end - extent.start


@contextmanager
def playing(path: Path, kind: str, index: int = 0) -> Iterator[Track]:
    """The stream of ``kind``, ``audio`` or ``video``, that a player takes, or the ``index``-th after it.

    Raises:
        MediaError: no such file, or no such stream.
    """
    with _opened(path) as container:
        stream = _stream(container, kind, path, index)
        tracks = _tracks(container, kind)
        before = tracks[: [track.index for track in tracks].index(stream.index)]
        faults = [f"nothing of stream {track.index}, which players take" for track in before]
        yield Track(
            kind=kind,
            codec=stream.codec_context.name,
            frames=_decoded(container, stream, faults),
            faults=faults,
            count=len(tracks),
            others=len(_all_tracks(container, kind)) - len(tracks),
            known=len(_decodable(tracks)),
            stated=partial(_stated, container, stream, path),
        )


def _stated(container, stream, path: Path, heard: float) -> float:
    """Seconds of sound that the file states, given ``heard`` decoded seconds."""
    return max(stated.seconds(container, stream, path, heard), heard + _lacking(path, container, heard))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    if fault := paths.fault(path):
        raise MediaError(f"{path.name if path.is_file() else path}: {fault}")
    # A file disguised as mp4 may be a playlist; it must not access the network.
    options = {"protocol_whitelist": "file"}
    with ExitStack() as open_files:
        try:
            if filled := wide_samples.filled(path):
                open_files.callback(filled.close)
            container = av.open(filled or f"file:{path}", "r", metadata_errors="ignore", options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{path.name}: not readable: {_plain(error)}{remedy(path)}") from None
        with container:
            yield container


def _stream(container, kind: str, path: Path, index: int = 0):
    """Of the decodable streams of ``kind`` the one that a player takes first, or the ``index``-th after it;
    decoded by one thread: the workers are the parallelism."""
    tracks = _tracks(container, kind)
    if not tracks:
        elsewhere = " in the programme of its picture" * bool(_all_tracks(container, kind))
        raise MediaError(f"{path.name}: no {kind} stream{elsewhere}")
    if not _decodable(tracks):
        raise MediaError(f"{path.name}: its {kind} has an unknown codec")
    stream = _decodable(tracks)[index]
    stream.codec_context.thread_count = 1
    if kind == "video":
        _bound(stream.codec_context, path)
    return stream


def _tracks(container, kind: str) -> list:
    """The streams of ``kind`` in players' order of preference: flagged default, not secondary, the first.

    A broadcast may carry several programmes; sound comes from the programme whose picture is shown.
    """
    tracks = _all_tracks(container, kind)
    pictures = _decodable(_tracks(container, "video")) if kind == "audio" else []
    if pictures:
        tracks = [track for track in tracks if _together(container, track, pictures[0])]
    # A track of one picture beside a longer one is a thumbnail, or the still of an animation.
    many = kind == "video" and any(stream.frames > 1 for stream in tracks)
    return sorted(
        tracks,
        key=lambda stream: (
            many and stream.frames == 1,
            not stream.disposition & _FLAGS.default,
            bool(stream.disposition & _ASIDE),
            stream.index,
        ),
    )


def _all_tracks(container, kind: str) -> list:
    """The streams of ``kind`` without cover art, a video stream of one picture beside the clip."""
    return [
        stream
        for stream in container.streams
        if stream.type == kind and not stream.disposition & _FLAGS.attached_pic
    ]


def _together(container, sound, picture) -> bool:
    """Whether there are no programmes, or both are in one; then FFmpeg finds the same best picture."""
    first, second = (container.streams.best("video", related=stream) for stream in (sound, picture))
    return first == second


def _decodable(tracks: list) -> list:
    return [stream for stream in tracks if stream.codec_context is not None]


def _bound(codec, path: Path) -> None:
    """Refuse frames too large to decode: by the header now, by the stream itself later."""
    if codec.width * codec.height > MOST_PIXELS:
        raise MediaError(f"{path.name}: its frames of {codec.width} x {codec.height} pixels are too large")
    codec.options = {"max_pixels": str(MOST_PIXELS)}


def _extent(container, stream, path: Path) -> _Extent:
    """Start and end in seconds of the shown packets, their number, and what is missing."""
    times: list[int | None] = []
    faults: list[str] = []
    sent, flagged, keys, seen, longest, broken = [], [], set(), 0, 0, 0
    try:
        for packet in _packets(container, stream, faults):
            # Packets hidden by an edit list are in the file only so that the rest can be decoded.
            if packet.is_discard or (packet.dts is None and not packet.size):
                continue
            # An empty packet repeats the previous frame.
            seen += packet.size > 0
            flagged += [len(times)] * packet.is_corrupt
            keys |= {len(times)} if packet.is_keyframe else set()
            longest = max(longest, packet.duration or 0)
            sent.append(packet.dts)
            times.append(packet.dts if packet.pts is None else packet.pts)
    except av.FFmpegError:
        broken = 1
    # Just before a key frame the flag may only mean a seam of two recordings, where the packet count
    # restarts; if it is a loss, the decoder finds it.
    corrupt = broken + sum(not keys & {index + 1, index + 2} for index in flagged)
    promised = _promised(container, stream, seen)
    if not seen:
        hidden = stream.frames and not promised
        reason = "its edit list hides every frame" if hidden else "its video stream is empty"
        raise MediaError(f"{path.name}: {reason}")
    damage = stated.frames_missing(container, stream, path, sent)
    if not damage and (corrupt or seen < promised):
        damage = f"{seen - corrupt} of {promised} frames are there"
    base = float(stream.time_base)
    worth = trust(base, times, partial(_heard, path))
    if not Clock(container, stream, worth=worth).tells(times, sent) or worth.leaps:
        start = min((time for time in times if time is not None), default=0) * base
        start, end = _counted(path, start, worth)
        return _Extent(start=start, end=end, times=np.empty(0), seen=seen, damage=damage, trust=worth)
    own = np.sort([time for time in times if time is not None]) * base
    steps = np.diff(own)
    # The last frame is shown for the median step, not for a long pause.
    step = float(np.median(steps)) if len(own) > 1 else (longest or 1) * base
    # With frames of no fixed rate, as of a screen, a long one is no loss.
    hole = len(own) > 2 and np.mean(steps < 1.5 * step) > 0.9 and steps.max() > max(HOLE_SECONDS, 10 * step)
    start, end = float(own[0]), float(own[-1]) + step
    damage = stated.missing(end - start, end - start + _lacking(path, container, end)) or damage
    damage = damage or _summary("video", faults)
    return _Extent(start=start, end=end, times=own, seen=seen, damage=damage, trust=worth, hole=bool(hole))


def _heard(path: Path) -> float:
    """Seconds of sound in a file, by its packets."""
    with _opened(path) as container:
        if not _tracks(container, "audio"):
            return 0.0
        stream = _tracks(container, "audio")[0]
        lengths = [(packet.duration or 0) for packet in _packets(container, stream) if packet.size]
        # In mp4 a packet lasts until the next, even over a leap; sound packets all have one length.
        return len(lengths) * float(np.median(lengths or 0) * stream.time_base)


def _lacking(path: Path, container, end: float) -> float:
    """Seconds that the file states but lacks at its end; ``end`` is that of one of its streams."""
    if not stated.promises_more(container, path, end):
        return 0.0
    with _opened(path) as again:
        return stated.cut_off(again, path)


def _promised(container, stream, seen: int) -> int:
    """The number of shown frames that the file states; ``seen`` if it states none."""
    if "mp4" not in container.format.name:
        return seen
    # mp4 lists every frame in its header; in other containers the number is an estimate. The demuxer
    # has removed the frames that the edit list cuts, and flagged those that it hides.
    return sum(entry.size > 0 and not entry.is_discard for entry in stream.index_entries)


def _counted(path: Path, start: float, worth: Trust) -> tuple[float, float]:
    """Start and end of a video without usable packet times: by decoding all of it."""
    with _opened(path) as container:
        stream = _stream(container, "video", path)
        clock = Clock(container, stream, start, worth)
        times = [clock.time(frame) for frame in _decoded(container, stream, [])]
    if not times:
        raise MediaError(f"{path.name}: no frame of its video decodes")
    return times[0], times[-1] + clock.step


def _shots(container, stream, extent: _Extent, faults: list[str]) -> Iterator[Shot]:
    """Every decodable frame with its metadata; without times, the first is at the start of ``extent``."""
    clock, matrix = Clock(container, stream, extent.start, extent.trust), None
    declared = stream.sample_aspect_ratio
    by_container = declared != stream.codec_context.sample_aspect_ratio
    for frame in _decoded(container, stream, faults):
        # The container's pixel aspect ratio is constant; the codec's may change between frames.
        ratio = declared if by_container else stream.codec_context.sample_aspect_ratio
        # A container gives the matrix with every frame; H.264 gives it once, valid until the next.
        own = picture.display_matrix(frame)
        matrix = matrix if own is None else own
        yield Shot(frame=frame, time=clock.time(frame), ratio=ratio, matrix=matrix)


def _decoded(container, stream, faults: list[str]) -> Iterator:
    """Every frame that decodes completely; the errors between them go to ``faults``."""
    packets = _packets(container, stream, faults)
    while True:
        try:
            packet = next(packets, None)
            if packet is not None and packet.has_sidedata("encryption_info"):
                # Some video decoders, and most audio decoders, accept any bytes.
                faults.append(ENCRYPTED)
                continue
            # An empty packet repeats the previous frame, or ends the stream.
            frames = packet.decode() if packet is not None and packet.size else []
        except av.FFmpegError as error:
            faults.append(_plain(error))
            continue
        yield from _whole(frames, faults)
        if packet is None:
            break
    try:
        frames = stream.codec_context.decode(None)
    except av.EOFError:
        return
    except av.FFmpegError as error:
        faults.append(_plain(error))
        return
    yield from _whole(frames, faults)


def _packets(container, stream, faults: list[str] | None = None) -> Iterator:
    """The packets of a stream, until others begin that the start of the file does not list; then that is a fault."""
    try:
        yield from container.demux(stream)
    except IndexError:  # PyAV knows only the first streams.
        if faults is not None:
            faults.append(OTHERS_BEGIN)


def _whole(frames: list, faults: list[str]) -> Iterator:
    """The frames without pictures that the decoder invented or could not complete."""
    for frame in frames:
        if isinstance(frame, av.VideoFrame) and frame.is_corrupt:
            faults.append(NOT_WHOLE)
        else:
            yield frame


def _shown_at(targets: np.ndarray, shots: Iterator[Shot], remarks: set[str]) -> list[np.ndarray]:
    """The frame on screen at each target time, each frame at most once."""
    frames, position, shown = [], 0, None
    for shot in shots:
        if shown is not None and targets[position] < shot.time:
            frames.append(picture.shown(shown, remarks))
            position = int(np.searchsorted(targets, shot.time))
        shown = shot
        if position == len(targets):
            return frames
    return frames if shown is None else [*frames, picture.shown(shown, remarks)]


def _summary(kind: str, faults: list[str]) -> str:
    return f"{len(faults)} parts of the {kind} do not decode: {faults[0]}" if faults else ""


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
