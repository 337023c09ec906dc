"""One model over the clips of some shards: what a rank of ``extract`` computes and writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_dist.config.config import Config
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import Stopped
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.log import logger, progress
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.features import store
from mer_dist.models import model_folder, precision
from mer_dist.processes.env import process_info
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.storage import files, timings
from mer_dist.storage.run_folder import FeatureFolder, Run

if TYPE_CHECKING:
    from mer_dist.features.finite import Tally
    from mer_dist.models.extractor import Extractor
    from mer_dist.training.split_weights import SplitWeights


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


class Pass:
    """The features of one model for one set, or for several that differ in the layers they sum."""

    def __init__(
        self,
        works: list[Work],
        config: Config,
        should_stop: ShouldStop = never,
        split: SplitWeights | None = None,
    ):
        """
        Args:
            split: the extractor, of which each rank holds a part; None: it is loaded by :meth:`run`.
        """
        self.works, self.config, self.split = works, config, split
        self._should_stop = should_stop
        self._run = Run(config.run.folder)

    @property
    def name(self) -> str:
        return ", ".join(work.set_name for work in self.works)

    def run(self, shards: list[int]) -> None:
        """Compute the features of these shards.

        Raises:
            UserError: no clip has embeddings that can be kept.
        """
        # Until the end of this method the sets are incomplete, and must not look complete.
        for work in self.works:
            (work.folder / files.MARKER).unlink(missing_ok=True)
        folder = self._run.features(self.works[0].set_id)
        with timings.record(self._run, "extract", folder, clips=0, piece="load", rank=process_info().rank):
            extractor = self.split.extractor if self.split else loaded(self.works[0], self.config)
        for work in self.works:
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
        total = sum(self.works[0].sizes[shard] for shard in shards)
        for _ in progress(self.over(extractor, Reader(self._run.shards), shards), total, self.name):
            pass
        if note := extractor.note():
            logger.warning("%s: %s", self.name, note)
        for work in self.works:
            if not work.missing():
                mark(work)

    def over(self, extractor: Extractor, reader: Reader, shards: list[int]) -> Iterator[str]:
        """Write the features of each shard; yields the name of every finished clip.

        While a shard is written, a CPU computes nothing and a GPU one forward pass, so that a kill costs a
        rank one shard at most; the next clips are read and prepared meanwhile.
        """
        from mer_dist.models.feeding import clip_embeddings

        extractor.layer_sets = [work.extractor.layers for work in self.works]
        unwritten = [set(work.missing()) for work in self.works]
        tallies = [tally(work) for work in self.works]
        rows = {shard: self.works[0].shards[shard] for shard in shards}
        left = {shard: len(own) for shard, own in rows.items()}
        found: dict[str, np.ndarray] = {}
        lost: dict[str, str] = {}
        started = time.monotonic()
        compute = self.split.computed if self.split else None
        for shard, name, result in clip_embeddings(extractor, reader, rows, compute):
            if isinstance(result, str):
                lost[name] = result
            else:
                found[name] = result
            left[shard] -= 1
            if left[shard] == 0:
                # Writing a shard counts for the next one: its time is noted before it is written.
                seconds, started = time.monotonic() - started, time.monotonic()
                for number, work in enumerate(self.works):
                    if shard in unwritten[number]:
                        own = {name: _part(each, number, extractor.width) for name, each in found.items()}
                        self._finish(extractor, work, shard, own, lost, tallies[number], seconds)
                found, lost = {}, {}
            if self._should_stop():
                raise Stopped(f"asked to stop in shard {shard} of {self.name}")
            yield name

    def _finish(
        self,
        extractor: Extractor,
        work: Work,
        shard: int,
        found: dict[str, np.ndarray],
        lost: dict[str, str],
        counts: Tally,
        seconds: float,
    ) -> None:
        """Write a shard of one set.

        Raises:
            UserError: next to no clip so far has embeddings that can be kept.
        """
        from mer_dist.features.finite import keepable

        found, refused = keepable(extractor, work.set_name, found, self.config.extract)
        missing = lost | refused
        counts.add(len(work.shards[shard]), missing)
        counts.check(work.set_name, whole=False)
        for clip in sorted(refused)[:1]:
            logger.warning(
                "%s: %d clips of shard %d are left out; %s: %s",
                work.set_name,
                len(refused),
                shard,
                clip,
                refused[clip],
            )
        if self.split and process_info().rank > 0:
            return
        timings.note(
            self._run,
            "extract",
            self._run.features(work.set_name),
            seconds=seconds,
            clips=len(work.shards[shard]),
            piece=f"{shard:05d}",
            rank=process_info().rank,
        )
        ordered = {name: found[name] for name in work.shards[shard].names if name in found}
        packed = store.pack(ordered, extractor.modality, extractor.width, self.config.extract, missing)
        store.write_shard(work.file(shard), packed, work.fingerprint[shard])


def _part(embeddings: np.ndarray, number: int, width: int) -> np.ndarray:
    """Of ``(T, D)`` for each of several sets, side by side, those of one."""
    return embeddings[:, number * width : (number + 1) * width]


def mark(work: Work) -> None:
    """
    Raises:
        UserError: no clip has embeddings that can be kept.
    """
    tally(work).check(work.set_name, whole=True)
    clips = sum(map(len, work.shards.values()))
    files.write_marker(work.folder, work.whole, clips=clips, shards=sorted(work.shards))


def tally(work: Work) -> Tally:
    """Counts of kept and lost clips in the finished shards."""
    from mer_dist.features.finite import Tally

    counts = Tally()
    for shard in work.shards.keys() - set(work.missing()):
        counts.add(len(work.shards[shard]), store.shard_missing(work.file(shard))[1])
    return counts


def loaded(work: Work, config: Config) -> Extractor:
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
    # ZeRO-3 puts the parts that it splits on the device itself.
    together = work.extractor.split and process_info().world > 1
    return load_extractor(work.extractor, work.adapter, None if together else device)
