"""Raw clips become shards: list, decode in worker processes, write tars one after the other.

Clips fill shards in the order of split and name, so sharding a corpus from scratch always gives the
same bytes, with kills or without. A shard with unchanged clips is never written again, even if their
labels and splits change, which are only in the index. Added and changed clips fill new shards; a shard
that lost or changed clips is copied without them. So a corpus that grew has other shards than the same
corpus sharded at once, with the same clips. Still, the same kept shards and the same corpus give the
same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from mer_dist import corpus
from mer_dist.config.config import Config, save
from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Clip, Content, Problem
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.corpus import convert, survey, twins
from mer_dist.crossfit import adapters, folds
from mer_dist.shards import replaced, shard_index
from mer_dist.shards.settings import settings_fingerprint
from mer_dist.shards.shard_index import Index, ShardRecord
from mer_dist.storage import files, quarantine, timings
from mer_dist.storage.run_folder import Run, ShardFolder

#: Clips named in the log for a remark; stats.json has all of them.
NAMED = 3


def shard(config: Config, fused: bool = False, should_stop: ShouldStop = never) -> None:
    """Write the shards of a corpus; those with unchanged clips stay.

    Args:
        fused: fusion follows, which needs folds of the labelled clips.

    Raises:
        UserError: the corpus cannot be listed, none of it can be used, or it would remove most clips of
            the run; in each case the existing shards stay.
        Stopped: ``should_stop`` was true.
    """
    run = Run(config.run.folder)
    clips, unlisted = corpus.clips(config.corpus)
    taken = replaced.taken(config, clips, unlisted)
    fingerprint = settings_fingerprint(config.shard)
    sources = _sources(config, clips)
    fingerprint_of_all = _fingerprint_of_all(fingerprint, sources, clips, unlisted)
    kept, trimmed = _kept(run, fingerprint, sources)
    tried = {name for record in kept.values() for name in record.clips}.union(*trimmed.values())
    remaining = [clip for clip in clips if clip.name not in tried]
    if not remaining and not trimmed and _finished(run, fingerprint_of_all):
        save(config, run.config)
        logger.info("shards are complete: %d clips in %d shards; %s", len(tried), len(kept), files.UNCHANGED)
        return
    from mer_dist.corpus import faces

    _check_folds(config, clips, fused)
    faces.check(config.shard)
    if made := ShardFolder(run.shards).all_records():
        logger.info(
            "%d shards are kept, %d copied without the clips that changed or went, %d cut anew; %d clips are to "
            "be decoded",
            len(kept),
            len(trimmed),
            len(made) - len(kept) - len(trimmed),
            len(remaining),
        )
    started = time.monotonic()
    encoded = _encoded(config, clips, remaining, should_stop)
    if taken:
        logger.warning("%s: they are taken out", taken)
    save(config, run.config)
    files.remove_stale(run.folder)
    _clear(run, {*kept, *trimmed})
    _relabel(run, kept, clips)
    _trim(run, trimmed, clips, fingerprint, sources)
    _write(run, config.shard, encoded, {*kept, *trimmed}, fingerprint, sources, started)
    _finish(run, fingerprint_of_all, clips, unlisted)


def _sources(config: Config, clips: list[Clip]) -> dict[str, str]:
    """Clip -> what its stored content follows from, see :func:`convert.source`."""
    root = Path(config.corpus.path)
    root = root if root.is_dir() else root.parent  # A table is beside its media; a folder contains them.
    return {clip.name: convert.source(clip, config.shard, root) for clip in clips}


def _fingerprint_of_all(
    fingerprint: str, sources: dict[str, str], clips: list[Clip], unlisted: list[Problem]
) -> str:
    """Of the content of the shards and of what their index says of each clip."""
    labels = [
        (clip.name, clip.split, clip.label, *(() if clip.asked else (False,)), *clip.annotations.items())
        for clip in clips
    ]
    return files.fingerprint_of([fingerprint, sources, labels, [problem.as_values() for problem in unlisted]])


def _finished(run: Run, fingerprint_of_all: str) -> bool:
    results = (*ShardFolder(run.shards).results, run.quarantine)
    return bool(files.read_marker(run.shards, fingerprint_of_all)) and all(map(Path.exists, results))


def _check_folds(config: Config, clips: list[Clip], fused: bool) -> None:
    """Refuse now what later stages would refuse after hours of decoding.

    Raises:
        UserError: fine-tuning or fusion follows, or was done, and the folds cannot be made.
    """
    labels = {clip.name: clip.label for clip in clips if clip.label is not None}
    fused = fused or Run(config.run.folder).folds.exists()
    needed = adapters.crossed(config) or (fused and not config.fuse.labels)
    try:
        if not labels:
            raise UserError(
                f"{config.corpus.path}: no clip has one of the labels "
                f"{', '.join(config.corpus.labels)}, so nothing can be learned from it"
            )
        folds.make(labels, config.folds, twins.find(clips, copies=False))
    except UserError as error:
        if needed:
            raise
        logger.warning("finetune and fuse will refuse these labels: %s", error)


def _kept(
    run: Run, fingerprint: str, sources: dict[str, str]
) -> tuple[dict[int, ShardRecord], dict[int, set[str]]]:
    """The complete shards whose clips are all unchanged; for the other complete ones, their unchanged clips."""
    kept: dict[int, ShardRecord] = {}
    trimmed: dict[int, set[str]] = {}
    seen: set[str] = set()
    for number, record in shard_index.all_records(run.shards).items():
        if record is None or record.fingerprint != fingerprint:
            continue
        tar = ShardFolder(run.shards).tar(number)
        if record.sha256 and (not tar.exists() or tar.stat().st_size != record.bytes):
            continue
        unchanged = {name for name, source in record.clips.items() if sources.get(name) == source} - seen
        if len(unchanged) == len(record.clips):
            kept[number] = record
        elif unchanged:
            trimmed[number] = unchanged
        seen |= unchanged
    return kept, trimmed


def _clear(run: Run, kept: set[int]) -> None:
    """Remove what a stopped or outdated run left, its markers of completeness first."""
    shards = ShardFolder(run.shards)
    run.shards.mkdir(parents=True, exist_ok=True)
    for path in (run.shards / files.MARKER, shards.index):
        path.unlink(missing_ok=True)
    stays = {path for number in kept for path in (shards.record(number), shards.tar(number))}
    for path in {*shards.all_records(), *shards.all_tars(), *run.shards.glob(".*.tmp")} - stays:
        path.unlink()


def _relabel(run: Run, kept: dict[int, ShardRecord], clips: list[Clip]) -> None:
    """Update labels and splits in the rows of the kept shards from the corpus."""
    now, changed = {clip.name: clip for clip in clips}, 0
    for number, record in kept.items():
        path = ShardFolder(run.shards).record(number)
        rows = shard_index.read_rows(path)
        own = [replace(row, split=now[row.name].split, label=now[row.name].label) for row in rows]
        if own != rows:
            shard_index.write_rows(path, own, record)
            changed += sum(one != other for one, other in zip(own, rows, strict=True))
    if changed:
        logger.info("%d clips have another label or split than before; their shards stay", changed)


def _trim(
    run: Run, trimmed: dict[int, set[str]], clips: list[Clip], fingerprint: str, sources: dict[str, str]
) -> None:
    """Write these shards again with only these of their clips, copied from the old tar instead of decoded.

    Raises:
        UserError: the old tar holds other bytes than were written.
    """
    from mer_dist.shards import copied, writer

    now = {clip.name: clip for clip in clips}
    for number, names in trimmed.items():
        batch = copied.batch(run.shards, number, [now[name] for name in names])
        # Without its record the tar counts as unfinished, and of clips that were not stored there is none.
        ShardFolder(run.shards).record(number).unlink()
        if not any(clip.members for clip in batch):
            ShardFolder(run.shards).tar(number).unlink(missing_ok=True)
        writer.write(run.shards, number, batch, fingerprint=fingerprint, sources=sources)


def _encoded(config: Config, clips: list[Clip], remaining: list[Clip], should_stop: ShouldStop) -> Iterator:
    """``remaining`` decoded, by split and name.

    An even sample is decoded first: nothing is replaced before it is known that the media of the corpus
    can be read.

    Raises:
        UserError: almost none can, and the configuration does not allow it.
    """
    if not remaining:
        return iter(())
    remaining = sorted(remaining, key=lambda clip: (clip.split, clip.name))
    first = [] if config.shard.without_media else survey.sample(remaining, survey.DECODED)
    if first:
        _check_there(config, clips)
    early = {clip.name for clip in first}
    order = [*first, *(clip for clip in remaining if clip.name not in early)]
    results = _until_asked(convert.in_workers(config.shard, order), should_stop)
    tried = {clip.name: result for clip, result in zip(first, results, strict=False)}
    lost = {
        name: None if one.media else f"clip {name}: {one.problems[0].reason}" for name, one in tried.items()
    }
    survey.refuse(
        clips, lost, {clip.name for clip in clips} - {clip.name for clip in remaining}, config.corpus.path
    )
    ordered = (tried.pop(clip.name) if clip.name in early else next(results) for clip in remaining)
    return progress(ordered, len(remaining), "shard")


def _check_there(config: Config, clips: list[Clip]) -> None:
    """Refuse a corpus if almost none of its media files exist."""
    named = {clip.name: len(survey.files_of(clip)) for clip in clips}
    faults = survey.look(clips, config.shard)
    lost = {name: why[0] if len(why) == named[name] else None for name, why in faults.items()}
    survey.refuse(clips, lost, set(), config.corpus.path)


def _write(
    run: Run,
    config: ShardConfig,
    encoded: Iterator,
    taken: set[int],
    fingerprint: str,
    sources: dict[str, str],
    started: float,
) -> None:
    """Write the decoded clips to the free shard numbers, in ascending order."""
    from mer_dist.shards import writer

    numbers = (number for number in count() if number not in taken)
    for batch in writer.batches(encoded, config.clips, config.mebibytes):
        number, now = next(numbers), time.monotonic()
        timings.note(run, "shard", run.shards, seconds=now - started, clips=len(batch), piece=f"{number:05d}")
        started = now
        writer.write(run.shards, number, batch, fingerprint=fingerprint, sources=sources)


def _until_asked(encoded: Iterator, should_stop: ShouldStop) -> Iterator:
    """Stop between two clips if requested; complete shards are kept."""
    for clip in encoded:
        if should_stop():
            raise Stopped("shard was asked to stop; the next start goes on after its last complete shard")
        yield clip


def _finish(run: Run, fingerprint: str, clips: list[Clip], unlisted: list[Problem]) -> None:
    """Write all that is known only at the end, from the files of the shards alone."""
    shards = {number: shard_index.record_of(run.shards, number) for number in shard_index.numbers(run.shards)}
    index = shard_index.join(run.shards, shards)
    problems = _problems([problem for record in shards.values() for problem in record.problems], unlisted)
    same = _twins(run, clips, index, shards)
    pairs = zip(index.names, index.column("label"), strict=True)
    labels = {name: label for name, label in pairs if label is not None}
    stats = _stats(index, list(shards.values()), problems, twins.remarks(same, labels))
    quarantine.replace(run.quarantine, "shard", problems)
    if not index:
        raise UserError(f"nothing of the corpus can be used; see {run.quarantine}")
    # Even without stored media, unlabelled clips get a prediction.
    stored = {*index.names}
    shard_index.write_unstored(
        run.shards, {clip.name: clip.split for clip in clips if clip.name not in stored}
    )
    unlabeled = [clip for clip in clips if clip.label is None]
    asked = [clip.name for clip in unlabeled if clip.asked]
    shard_index.write_asked(run.shards, asked if len(asked) < len(unlabeled) else None)
    shard_index.write_annotations(run.shards, {clip.name: clip.annotations for clip in clips})
    shard_index.write_twins(run.shards, same)
    shard_index.write(run.shards, index)
    files.write_json(ShardFolder(run.shards).stats, stats)
    files.write_marker(run.shards, fingerprint, clips=stats["clips"])
    logger.info(
        "%d clips in %d shards, %.1f MiB; missing: %s; in quarantine: %s; no face: %d",
        stats["clips"],
        stats["shards"],
        stats["bytes"] / 2**20,
        _counts(stats["missing"]),
        _counts(stats["quarantined"]),
        stats["faceless"],
    )
    for kind, found in stats["remarks"].items():
        plural, more = "s" * (found["clips"] != 1), ", …" * (found["clips"] > NAMED)
        such = ", ".join(found["names"][:NAMED]) + more
        logger.info("%d clip%s: %s (%s)", found["clips"], plural, kind, such)
    if any(twins.contradict(names, labels) for names in same):
        logger.warning("%s", twins.summary(same, labels))


def _twins(run: Run, clips: list[Clip], index: Index, shards: dict[int, ShardRecord]) -> list[list[str]]:
    """Clips of the same recording, among those with stored media: by their files, and by what is stored of them."""
    samples = dict(zip(index.names, index.column("samples"), strict=True))
    frames = zip(index.names, index.column("frames"), strict=True)
    stored = {name for name, count in frames if count or samples[name]}
    content: dict[str, Content] = {}
    for record in shards.values():
        content |= record.content
    of_files = twins.find([clip for clip in clips if clip.name in stored])
    return twins.together([*of_files, *twins.of_content(content, samples)])


def _problems(found: list[Problem], unlisted: list[Problem]) -> list[Problem]:
    """Problems of decoder and listing, each once; for a clip that is lost altogether only that one."""
    rows = {(row.name, row.lost): row for row in found + unlisted}
    gone = {name for name, lost in rows if lost == "clip"}
    return [row for (name, lost), row in rows.items() if lost == "clip" or name not in gone]


def _stats(
    index: Index, shards: list[ShardRecord], problems: list[Problem], remarks: dict[str, list[str]]
) -> dict:
    """
    Args:
        remarks: kind -> clips, for remarks that concern several shards.
    """
    return {
        "clips": len(index),
        "splits": Counter(index.column("split")),
        "labels": Counter(label for label in index.column("label") if label is not None),
        "missing": Counter(chain.from_iterable(index.column("missing"))),
        "quarantined": Counter(str(problem.lost) for problem in problems),
        "faceless": sum(record.faceless for record in shards),
        "shards": sum(bool(record.sha256) for record in shards),
        "bytes": sum(record.bytes for record in shards),
        "duration": round(sum(index.column("duration")), 3),
        "remarks": _remarks([*(record.remarks for record in shards), remarks]),
    }


def _remarks(parts: list[dict[str, list[str]]]) -> dict[str, dict]:
    """Kinds of remarks, the most frequent first, with the number and names of their clips."""
    names: dict[str, list[str]] = {}
    for part in parts:
        for kind, own in part.items():
            names.setdefault(kind, []).extend(own)
    kinds = sorted(names, key=lambda kind: (-len(names[kind]), kind))
    return {kind: {"clips": len(names[kind]), "names": sorted(names[kind])} for kind in kinds}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"
