"""The doctor's checks of the corpus: can it be listed, learned from and read?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial

from mer_dist import corpus
from mer_dist.config.config import Config
from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import LABELED, UNLABELED, Clip, Modality, Problem
from mer_dist.corpus import survey, twins
from mer_dist.crossfit import folds
from mer_dist.features import join
from mer_dist.models.family import FAMILIES
from mer_dist.shards import replaced, workers
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run

#: Number of clips to decode, and the most seconds for each.
TRIED, SECONDS = 3, 60
#: A fault in more than this fraction of the clips must be fixed before a run.
MANY = 0.1
SHOWN = 4
#: Names shown of clips without a file.
NAMED = 8
#: :func:`mer_dist.corpus.survey.look`, cached.
Look = Callable[[], dict[str, list[str]]]


def checks(config: Config) -> Iterator[tuple[str, Callable[[Config], str]]]:
    """Name and function of every check; if the clips cannot be listed, only that one."""
    if config.fuse.labels:
        yield "labels", _label_file
        if not config.corpus.path:
            return
    try:
        clips, problems = corpus.clips(config.corpus)
    except Exception as error:
        yield "corpus", partial(_unlisted, error)
        return
    yield "corpus", partial(_listed, clips, problems)
    if not config.fuse.labels:
        yield "labels", partial(_labels, clips)
    look = cache(partial(survey.look, clips, config.shard))
    yield "media", partial(_media, clips, look)
    yield "decoding", partial(_decoding, clips, look)


def _unlisted(error: Exception, config: Config) -> str:
    raise error


def _listed(clips: list[Clip], problems: list[Problem], config: Config) -> str:
    """Numbers of clips and of problems, and which clips an existing run would lose."""
    labeled = sum(clip.split == LABELED for clip in clips)
    wrong = f"{len(problems)} problems" + _kinds(problems)
    lost = sum(problem.lost == "clip" for problem in problems)
    if lost > len(clips):
        text = f"{len(clips)} of its clips can be used, {lost} cannot; {wrong}"
        raise UserError(f"{config.corpus.path}: {text}")
    from mer_dist.corpus import faces

    faces.check(config.shard)
    for name, extractor in config.extractors.items():
        modality = Modality(FAMILIES[extractor.family].modality)
        if clips and not any(_has(clip, modality, config.shard) for clip in clips):
            raise UserError(
                f"{config.corpus.path}: none of its {len(clips)} clips names any {modality}, of which extractors.{name} "
                "makes features; add it (docs/clips.md), or take the extractor out"
            )
    counted = f"{len(clips)} clips, {labeled} of them labelled, {wrong}"
    return "; ".join(filter(None, (counted, replaced.taken(config, clips, problems), _twins(clips))))


def _has(clip: Clip, modality: Modality, settings: ShardConfig) -> bool:
    """Whether the corpus names something of which the modality can come; sound may be that of the video."""
    if modality == Modality.TEXT:
        return clip.transcript is not None
    if modality == Modality.AUDIO:
        return bool(clip.audio or clip.video)
    return bool(clip.video) or settings.faces == "openface"


def _twins(clips: list[Clip]) -> str:
    """Clips of the same recording; in a large corpus by paths only, because finding copies reads files."""
    same = twins.find(clips, copies=len(clips) <= survey.LOOKED_AT)
    return twins.summary(same, {clip.name: clip.label for clip in clips if clip.label is not None})


def _labels(clips: list[Clip], config: Config) -> str:
    label_of = {clip.name: clip.label for clip in clips if clip.label is not None}
    return _counted(label_of, config, twins.find(clips, copies=False))


def _label_file(config: Config) -> str:
    label_of, problems = join.labels_of(config, Run(config.run.folder), tell=True)
    counts = _counted({name: label for name, label in label_of.items() if label is not None}, config)
    return f"{config.fuse.labels}: {counts}, {len(label_of)} clips, {len(problems)} problems" + _kinds(
        problems
    )


def _counted(labels: dict[str, str], config: Config, same: folds.Twins = ()) -> str:
    """Clips by label.

    Args:
        same: clips of the same recording.

    Raises:
        UserError: there is none, or too few for the folds.
    """
    if not labels:
        known = ", ".join(config.corpus.labels)
        raise UserError(f"no clip has one of the labels {known}, and without any nothing can be learned")
    folds.make(labels, config.folds, same)
    counts = Counter(labels.values())
    return ", ".join(f"{label} {counts[label]}" for label in config.corpus.labels)


def _media(clips: list[Clip], look: Look, config: Config) -> str:
    """Whether the files named in the corpus exist."""
    found = look()
    if not found:
        return "no clip names a file; transcripts alone"
    of = len(survey.with_media(clips))
    among = f"{len(found)} clips" + (f", a sample of {of}," if of > len(found) else "")
    faults = [
        Problem(stage="doctor", name=name, lost="file", reason=why)
        for name, reasons in found.items()
        for why in reasons
    ]
    without_file = {fault.name for fault in faults}
    if not without_file:
        return f"the files of {among} are there"
    text = f"{len(without_file)} of {among} lack a file{_kinds(faults)}; for example {faults[0].reason}"
    if len(without_file) > 1:
        names = sorted(without_file)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        text += f"; in all {', '.join(names[:NAMED])}{more}"
    parts = [
        {clip.name for clip in clips if clip.split == split} & found.keys() for split in (LABELED, UNLABELED)
    ]
    if any(len(without_file & part) > MANY * len(part) for part in parts):
        raise UserError(
            f"{text}. Is the disk mounted, are the paths right (those of a table are relative to its folder)?"
        )
    return text


def _decoding(clips: list[Clip], look: Look, config: Config) -> str:
    """Frames and audio decoded from three clips whose files exist."""
    faults = look()
    sound = [clip for clip in survey.with_media(clips) if not faults.get(clip.name)]
    tried = survey.evenly(sound, TRIED)  # by split and name, the labelled ones first
    if not tried:
        if faults:
            raise UserError("none of the files that were looked for is there to be decoded")
        return "no clip names a file"
    results = list(
        workers.in_order(partial(_tried, config.shard), tried, 1, crashed=_crashed, seconds=SECONDS)
    )
    problems = [problem for *_, found in results for problem in found]
    dead = sum(not (frames or seconds) for frames, seconds, _ in results)
    if 2 * dead > len(tried):
        raise UserError(f"{dead} of {len(tried)} clips do not decode{_kinds(problems)}; look at these files")
    for part in (Modality.VIDEO, Modality.AUDIO):
        # A file without such a stream may still be complete.
        lost = {p.name for p in problems if p.lost == part and not p.reason.endswith(f"no {part} stream")}
        if len(lost) == len(tried) > 1:
            raise UserError(f"the {part} of all {len(lost)} clips that were tried is lost{_kinds(problems)}")
    parts = [
        f"{clip.name} {frames} frames, {seconds:.1f} s of sound"
        for clip, (frames, seconds, _) in zip(tried, results, strict=True)
    ]
    return ", ".join(parts) + _kinds(problems)


def _tried(config: ShardConfig, clip: Clip) -> tuple[int, float, list[Problem]]:
    """In a worker: frames, seconds of sound, and problems."""
    from mer_dist.corpus.decode import decode
    from mer_dist.corpus.sound import RATE

    decoded = decode(clip, config)
    heard = 0 if decoded.samples is None else len(decoded.samples)
    return len(decoded.frames), heard / RATE, decoded.problems


def _crashed(clip: Clip) -> tuple[int, float, list[Problem]]:
    why = f"the decoder crashed on it or took over {SECONDS} s"
    return 0, 0.0, [Problem(stage="doctor", name=clip.name, lost=Modality.VIDEO, reason=why)]


def _kinds(problems: list[Problem]) -> str:
    """Suffix of a line: the reasons of the problems, by count."""
    found = quarantine.kinds(problems)
    more = f"; and {len(found) - SHOWN} rarer reasons" if len(found) > SHOWN else ""
    return f" ({'; '.join(map(str, found[:SHOWN]))}{more})" if found else ""
