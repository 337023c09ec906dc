"""Extract features: every rank takes shards, and each finished shard is one file.

Every rank holds the complete extractor and never communicates, so any number of ranks may be started,
killed and started again: a shard's file either exists with the right fingerprint, or is computed.
Batches never cross a shard, so the number of ranks cannot change a bit of the result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_dist.config.config import Config, as_dict, save
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.log import logger, progress
from mer_dist.core.records import UNLABELED, Problem
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.crossfit import adapters, folds
from mer_dist.crossfit.adapters import Adapter
from mer_dist.features import store
from mer_dist.models import model_folder, precision
from mer_dist.models.family import NOT_IN_SHARD, PASS, PASSES_OF_A_CHUNK, family_of
from mer_dist.processes.balance import balanced
from mer_dist.processes.env import process_info
from mer_dist.processes.threads import torch_threads
from mer_dist.processes.together import tell_missing
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.shards.settings import check_settings
from mer_dist.storage import files, quarantine, timings
from mer_dist.storage.run_folder import FeatureFolder, Run

if TYPE_CHECKING:
    from mer_dist.features.finite import Tally
    from mer_dist.models.extractor import Extractor


#: Keys of an extractor that came later, and change nothing with these values.
LATER: dict[str, object] = {"layers": [], "pooling": "", "prompt": "", "view": "face"}
#: The name of an extractor, its adapter (None: the published weights), and the clips that it sees.
Seen = tuple[str, Adapter | None, shard_index.Index]


@dataclass(kw_only=True)
class Work:
    """One feature set: which extractor sees which clips."""

    set_id: FeatureSetId
    #: Its precision is that of the set, never ``auto``.
    extractor: ExtractorConfig
    #: the adapter, or None for the published weights.
    adapter: Path | None
    #: The fold that the adapter was trained without; None: none, or it is not fine-tuned.
    held_out_fold: int | None
    #: shard -> the clips of it that belong to this set, in tar order.
    shards: dict[int, shard_index.Index]
    #: shard -> fingerprint of all that its features depend on.
    fingerprint: dict[int, str]
    folder: Path

    @property
    def set_name(self) -> str:
        return str(self.set_id)

    def file(self, shard: int) -> Path:
        return FeatureFolder(self.folder).shard(shard)

    @property
    def whole(self) -> str:
        """Fingerprint of the complete set."""
        return files.fingerprint_of(sorted(self.fingerprint.items()))

    @property
    def sizes(self) -> dict[int, int]:
        """shard -> number of its clips."""
        return {shard: len(rows) for shard, rows in self.shards.items()}

    def done(self) -> bool:
        return files.read_marker(self.folder, self.whole) is not None and not self.missing()

    def missing(self) -> list[int]:
        return [
            shard
            for shard, fingerprint in self.fingerprint.items()
            if store.stored_fingerprint(self.file(shard)) != fingerprint
        ]


def extract(config: Config, should_stop: ShouldStop = never) -> None:
    """Extract every feature set that is incomplete. Runs alone or as one of many ranks.

    Raises:
        UserError: shards, an adapter or a model are missing or do not fit the configuration.
    """
    check_settings(config)
    works = planned(config)
    _check([work for work in works if work.missing()])
    run = Run(config.run.folder)
    if process_info().rank == 0:
        save(config, run.config)
    files.remove_stale(run.folder, *(work.folder for work in works))
    for work in works:
        _extract_set(work, config, should_stop)
    # The rank that ends last finds everything there and closes the stage.
    missing = {work.set_name: work.missing() for work in works}
    if any(missing.values()):
        tell_missing(run.lock, {work.set_name: (work.sizes, missing[work.set_name]) for work in works})
    else:
        _close(works, run)


def _check(unfinished: list[Work]) -> None:
    """Check all input files before the first set is computed, which may take hours.

    Raises:
        UserError: one of them is missing, damaged, or belongs to another model.
    """
    if not unfinished:
        return
    from mer_dist.models.classifier import check_files

    for work in unfinished:
        if work.adapter is not None:
            adapters.check_whole(work.adapter)
        check_files(work.extractor, work.adapter)


def unfinished(config: Config) -> list[Work]:
    """The feature sets that lack a shard or the marker of a complete set."""
    return [work for work in planned(config) if not work.done()]


def planned(config: Config) -> list[Work]:
    """The feature sets of the configuration: frozen ones, and one per adapter.

    Raises:
        UserError: an adapter is missing, or was trained on other clips, labels or folds.
    """
    run = Run(config.run.folder)
    clips = shard_index.read(run.shards)
    content = {shard: shard_index.shard_fingerprint(run.shards, shard) for shard in clips.by_shard()}
    sets: list[Seen] = [
        (name, None, clips)
        for name, extractor in config.extractors.items()
        if extractor.finetune is None or config.extract.frozen
    ]
    planned_adapters = adapters.planned(config)
    if planned_adapters:
        names, unlabeled = clips.names, [split == UNLABELED for split in clips.column("split")]
        anchors = _anchors(list(compress(names, unlabeled)), config.extract.anchors, config.run.seed)
    for adapter in planned_adapters:
        if adapter.held_out_fold is None:
            seen = clips.where(unlabeled)
        else:
            own = {name for name, fold in folds.read(run.folds).items() if fold == adapter.held_out_fold}
            seen = clips.where(name in own or name in anchors for name in names)
        sets.append((adapter.name, adapter, seen))
    used = {name: _computed_in(config, [own for own in sets if own[0] == name], content) for name, *_ in sets}
    return [_work(config, used[name], name, adapter, seen, content) for name, adapter, seen in sets]


def _computed_in(config: Config, sets: list[Seen], content: dict[int, str]) -> ExtractorConfig:
    """The extractor's settings for these ``sets``, with ``precision: auto`` resolved.

    It becomes the precision of the shards that are done, so that a run moved between a CPU and a GPU stays
    consistent and no set is a mixture; with none done, the one that suits this machine.
    """
    extractor = config.extractors[sets[0][0]]
    if extractor.precision != precision.AUTO:
        return extractor
    for auto in (precision.ON_A_GPU, precision.ELSEWHERE):
        own = precision.settled(extractor, auto)
        works = (_work(config, own, name, adapter, seen, content) for name, adapter, seen in sets)
        if any(len(work.missing()) < len(work.shards) for work in works):
            return own
    return precision.settled(extractor, precision.of_this_machine())


def _anchors(names: list[str], count: int, seed: int) -> set[str]:
    """Those of the unlabelled clips that every adapter sees: those with the smallest hashes of seed and name, so that
    an added clip replaces at most one of them."""
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count])


def _work(
    config: Config,
    extractor: ExtractorConfig,
    name: str,
    adapter: Adapter | None,
    clips: shard_index.Index,
    content: dict[int, str],
) -> Work:
    if adapter is not None and not files.read_marker(adapter.folder, adapter.fingerprint):
        raise UserError(f"{adapter.folder}: this adapter is missing or out of date; run finetune first")
    settings = {
        key: value
        for key, value in as_dict(extractor).items()
        if key != "finetune" and LATER.get(key) != value
    }
    common = [
        settings,
        _batch_rule(extractor),
        files.folder_fingerprint(Path(extractor.path)),
        adapter and adapter.fingerprint,
        config.extract.frame_level,
        config.extract.storage,
        config.run.threads,
        *family_of(extractor.family, extractor.path).code,
    ]
    shards = clips.by_shard()
    fingerprint = {
        shard: files.fingerprint_of([*common, content[shard], members.names])
        for shard, members in shards.items()
    }
    set_id = FeatureSetId(name) if adapter is None else adapter.features
    return Work(
        set_id=set_id,
        extractor=extractor,
        adapter=None if adapter is None else adapter.folder,
        held_out_fold=None if adapter is None else adapter.held_out_fold,
        shards=shards,
        fingerprint=fingerprint,
        folder=Run(config.run.folder).features(set_id),
    )


def _batch_rule(extractor: ExtractorConfig) -> list:
    """The settings that decide which clips share a forward pass, and so the last bits of a feature.

    Shards from a CPU and from a GPU differ in these bits anyway, so the rule covers both and a run may
    be moved.
    """
    return [
        extractor.batch_budget or family_of(extractor.family, extractor.path).budgets,
        PASS,
        PASSES_OF_A_CHUNK,
    ]


def _extract_set(work: Work, config: Config, should_stop: ShouldStop) -> None:
    """Compute this rank's missing shards of one set."""
    missing = set(work.missing())
    here = process_info()
    mine = [shard for shard in balanced(work.sizes, here.world)[here.rank] if shard in missing]
    if mine:
        with torch_threads(config.run.threads):
            _compute(work, mine, config, should_stop)


def _compute(work: Work, mine: list[int], config: Config, should_stop: ShouldStop) -> None:
    """Compute the features of these shards of a set.

    Raises:
        UserError: no clip has embeddings that can be kept.
    """
    # Until the end of this function the set is incomplete, and must not look complete.
    (work.folder / files.MARKER).unlink(missing_ok=True)
    run = Run(config.run.folder)
    folder = run.features(work.set_id)
    with timings.record(run, "extract", folder, clips=0, piece="load", rank=process_info().rank):
        extractor = _loaded(work, config)
    store.describe(
        work.folder,
        modality=extractor.modality,
        width=extractor.width,
        family=work.extractor.family,
        variant=work.set_id.variant or "frozen",
        precision=work.extractor.precision,
        held_out_fold=work.held_out_fold,
        base=model_folder.identity(Path(work.extractor.path), work.extractor.family),
    )
    reader = Reader(run.shards)
    total = sum(work.sizes[shard] for shard in mine)
    done = _each_shard(extractor, reader, work, mine, config, should_stop)
    for _ in progress(done, total, work.set_name):
        pass
    if note := extractor.note():
        logger.warning("%s: %s", work.set_name, note)
    if not work.missing():
        _mark(work)


def _mark(work: Work) -> None:
    """
    Raises:
        UserError: no clip has embeddings that can be kept.
    """
    _tally(work).check(work.set_name, whole=True)
    clips = sum(map(len, work.shards.values()))
    files.write_marker(work.folder, work.whole, clips=clips, shards=sorted(work.shards))


def _tally(work: Work) -> Tally:
    """Counts of kept and lost clips in the finished shards."""
    from mer_dist.features.finite import Tally

    tally = Tally()
    for shard in work.shards.keys() - set(work.missing()):
        tally.add(len(work.shards[shard]), store.shard_missing(work.file(shard))[1])
    return tally


def _loaded(work: Work, config: Config) -> Extractor:
    """The extractor of the set on this rank's device."""
    import torch

    from mer_dist.models.classifier import load_extractor

    name, used = work.set_id.name, work.extractor.precision
    if config.extractors[name].precision == precision.AUTO and used != precision.of_this_machine():
        logger.warning(
            "%s: precision auto stays %s, as in its existing features; with extractors.%s.precision=%s, "
            "which suits this machine, all are computed again",
            work.set_name,
            used,
            name,
            precision.of_this_machine(),
        )
    if not torch.cuda.is_available():
        logger.info("%s: computing in %s on the CPU", work.set_name, "fp32" if used == "tf32" else used)
        return load_extractor(work.extractor, work.adapter)
    device = torch.device("cuda", process_info().local_rank)
    # Otherwise the libraries of every rank would put data on the first GPU.
    torch.cuda.set_device(device)
    logger.info("%s: computing in %s on %s", work.set_name, used, torch.cuda.get_device_name(device))
    return load_extractor(work.extractor, work.adapter, device)


def _each_shard(
    extractor, reader, work: Work, shards: list[int], config: Config, should_stop: ShouldStop = never
) -> Iterator[str]:
    """Write the features of each shard; yields the name of every finished clip.

    While a shard is written, a CPU computes nothing and a GPU one forward pass, so that a kill costs a
    rank one shard at most; the next clips are read and prepared meanwhile.
    """
    from mer_dist.features.finite import keepable
    from mer_dist.models.feeding import clip_embeddings

    started, tally = time.monotonic(), _tally(work)
    left = {shard: len(work.shards[shard]) for shard in shards}
    found: dict[str, np.ndarray] = {}
    missing: dict[str, str] = {}
    for shard, name, result in clip_embeddings(extractor, reader, {s: work.shards[s] for s in shards}):
        if isinstance(result, str):
            missing[name] = result
        else:
            found[name] = result
        left[shard] -= 1
        if left[shard] == 0:
            # Writing a shard counts for the next one: its time is noted before it is written.
            seconds, started = time.monotonic() - started, time.monotonic()
            found, refused = keepable(extractor, work.set_name, found, config.extract)
            missing |= refused
            tally.add(len(work.shards[shard]), missing)
            tally.check(work.set_name, whole=False)
            for clip in sorted(refused)[:1]:
                logger.warning(
                    "%s: %d clips of shard %d are left out; %s: %s",
                    work.set_name,
                    len(refused),
                    shard,
                    clip,
                    refused[clip],
                )
            _write(extractor, work, shard, found, missing, config, seconds)
            found, missing = {}, {}
        if should_stop():
            raise Stopped(f"asked to stop in shard {shard} of {work.set_name}")
        yield name


def _write(extractor, work: Work, shard: int, found, missing, config: Config, seconds: float) -> None:
    run = Run(config.run.folder)
    timings.note(
        run,
        "extract",
        run.features(work.set_name),
        seconds=seconds,
        clips=len(work.shards[shard]),
        piece=f"{shard:05d}",
        rank=process_info().rank,
    )
    order = [name for name in work.shards[shard].names if name in found]
    packed = store.pack(
        {name: found[name] for name in order}, extractor.modality, extractor.width, config.extract, missing
    )
    store.write_shard(work.file(shard), packed, work.fingerprint[shard])


def _close(works: list[Work], run: Run) -> None:
    """Write every set's marker, remove files of shards that no longer exist, and quarantine the clips
    that extraction refused."""
    problems = set()
    for work in works:
        for path in FeatureFolder(work.folder).shards():
            if int(path.stem) not in work.shards:
                path.unlink(missing_ok=True)
        for shard in work.shards:
            modality, missing = store.shard_missing(work.file(shard))
            problems |= {
                Problem(stage="extract", name=name, lost=modality, reason=reason, part=work.set_id.name)
                for name, reason in missing.items()
                if reason != NOT_IN_SHARD
            }
        if not files.read_marker(work.folder, work.whole):
            _mark(work)
    quarantine.replace(run.quarantine, "extract", problems)
