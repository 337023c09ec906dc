"""Extract features: every rank takes shards, and each finished shard is one file.

Every rank holds the complete extractor and never communicates, so any number of ranks may be started,
killed and started again: a shard's file either exists with the right fingerprint, or is computed. Only of
extractors with ``split`` each rank holds a part; their shards are computed by all ranks together.
Batches never cross a shard, so the number of ranks cannot change a bit of the result.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import compress
from pathlib import Path

from mer_dist.config.config import Config, as_dict, save
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import UNLABELED, Problem
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.crossfit import adapters, folds
from mer_dist.crossfit.adapters import Adapter
from mer_dist.features import store
from mer_dist.features.extraction import Pass, Work, loaded, mark
from mer_dist.models import precision
from mer_dist.models.family import NOT_IN_SHARD, PASS, PASSES_OF_A_CHUNK, family_of
from mer_dist.processes.balance import balanced
from mer_dist.processes.env import process_info
from mer_dist.processes.threads import torch_threads
from mer_dist.processes.together import tell_missing
from mer_dist.shards import shard_index
from mer_dist.shards.settings import check_settings
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run

#: Keys of an extractor that came later, and change nothing with these values.
LATER: dict[str, object] = {"layers": [], "pooling": "", "prompt": "", "view": "face", "split": False}
#: The name of an extractor, its adapter (None: the published weights), and the clips that it sees.
Seen = tuple[str, Adapter | None, shard_index.Index]


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
    # First what all ranks do together, while none has anything else to do.
    for alike in _passes(sorted(works, key=lambda work: not work.extractor.split)):
        together = alike[0].extractor.split and process_info().world > 1
        (_extract_together if together else _extract_sets)(alike, config, should_stop)
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
    from mer_dist.models.classifier import check_choices, check_files

    for work in unfinished:
        if work.adapter is not None:
            adapters.check_whole(work.adapter)
        check_files(work.extractor, work.adapter)
    for name, extractor in {work.set_id.name: work.extractor for work in unfinished}.items():
        try:
            check_choices(extractor)
        except UserError as error:
            raise UserError(str(error).replace("extractors.*", f"extractors.{name}")) from None


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


def _passes(works: list[Work]) -> list[list[Work]]:
    """The sets that are computed together: those of one published model that differ in ``layers`` alone need one pass over
    the clips."""
    found: dict[object, list[Work]] = {}
    for number, work in enumerate(works):
        alike: object = number
        if work.adapter is None:
            alike = files.fingerprint_of(as_dict(replace(work.extractor, layers=[], finetune=None)))
        if any(other.extractor.layers == work.extractor.layers for other in found.get(alike, [])):
            alike = number
        found.setdefault(alike, []).append(work)
    return [*found.values()]


def _extract_sets(works: list[Work], config: Config, should_stop: ShouldStop) -> None:
    """Compute this rank's missing shards of some sets, by one pass over each."""
    missing = {shard for work in works for shard in work.missing()}
    here = process_info()
    mine = [shard for shard in balanced(works[0].sizes, here.world)[here.rank] if shard in missing]
    if mine:
        with torch_threads(config.run.threads):
            Pass(works, config, should_stop).run(mine)


def _extract_together(works: list[Work], config: Config, should_stop: ShouldStop) -> None:
    """Compute the missing shards of some sets, one by one, with the weights split over all ranks; rank 0 writes."""
    from mer_dist.training.split_weights import SplitWeights, agreed, join

    join()
    if missing := agreed(sorted({shard for work in works for shard in work.missing()})):
        with torch_threads(config.run.threads):
            precision = works[0].extractor.precision
            split = SplitWeights(lambda: loaded(works[0], config), precision, should_stop)
            Pass(works, config, lambda: split.stopped, split).run(missing)
            # Not where one has failed: it would wait for others, which wait for it.
            split.free()


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
            mark(work)
    quarantine.replace(run.quarantine, "extract", problems)
