"""Feed clips to an extractor: threads read, decode and collate clips while others are computed.

A GPU does not wait: batches are in pinned memory before their turn, and the results of a forward pass
are fetched after the next one was launched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from mer_dist.core.prefetch import prefetched
from mer_dist.models.extractor import Extractor, Unusable, fitting_batches
from mer_dist.models.family import NOT_IN_SHARD, PASSES_OF_A_CHUNK
from mer_dist.models.precision import products

if TYPE_CHECKING:
    from mer_dist.shards.reader import MemoryReader, Reader
    from mer_dist.shards.shard_index import Row

Item = TypeVar("Item")
#: Limits of decoding threads per GPU. More would block one another: Python runs one at a time.
FEWEST, MOST = 4, 16


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How far the host runs ahead of the device."""

    #: threads that decode the clips of a chunk; 1: only the one that collates the chunk.
    decoding: int
    #: chunks that are prepared at a time.
    chunks: int
    pinned: bool
    #: Whether the next pass is launched before the results of the last are fetched.
    ahead: bool


def pace(device: torch.device) -> Pace:
    """On a CPU, decoding takes time from computing, so nothing runs ahead."""
    if device.type == "cpu":
        return Pace(decoding=1, chunks=1, pinned=False, ahead=False)
    # There is one process for each GPU of this machine.
    share = len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count())
    return Pace(decoding=min(max(share, FEWEST), MOST), chunks=2, pinned=True, ahead=True)


@dataclass(kw_only=True)
class Chunk:
    """Clips that are ready for their forward passes."""

    shard: int
    #: clip -> number of its segments, in their order.
    segments: dict[str, int]
    #: clip -> why it has none.
    refused: dict[str, str]
    #: Indices of segments, and these collated: one forward pass each.
    batches: list[tuple[list[int], dict[str, torch.Tensor]]]


def clip_embeddings(
    extractor: Extractor, reader: Reader | MemoryReader, shards: Mapping[int, Iterable[Row]]
) -> Iterator[tuple[int, str, np.ndarray | str]]:
    """Shard, name and embeddings ``(T, D)`` of each clip, or the reason why it has none: shard by shard,
    in any order within a shard."""
    device = next(extractor.parameters()).device
    own = pace(device)
    view = extractor.config.view
    jobs = (
        (shard, rows)
        for shard, stored in shards.items()
        for rows in _chunks(extractor, [row.of_view(view) for row in stored], device)
    )
    with _mapping(own.decoding) as each:
        ready = prefetched(
            partial(_ready, extractor, reader, device, each), jobs, ahead=2, threads=own.chunks
        )
        # It must close before the decoding threads do.
        with closing(ready):
            for chunk, found in _computed(extractor, ready, device):
                for name, reason in chunk.refused.items():
                    yield chunk.shard, name, reason
                for name, embeddings in found.items():
                    yield chunk.shard, name, embeddings


def _chunks(extractor: Extractor, rows: Iterable[Row], device: torch.device) -> list[list[Row]]:
    """Chunks of clips of similar cost, each for several forward passes. No chunk crosses a shard, so
    the bits of its features do not depend on which rank computes which shards."""
    chunks: list[list[Row]] = []
    room = 0.0
    for row in sorted(rows, key=lambda row: (extractor.cost(row), row.name)):
        if room <= 0:
            chunks.append([])
            room = PASSES_OF_A_CHUNK * extractor.budget(device)
        chunks[-1].append(row)
        room -= extractor.cost(row)
    return chunks


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Iterable]]:
    """``map`` on so many threads; with one, on the caller's thread."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _ready(
    extractor: Extractor,
    reader: Reader | MemoryReader,
    device: torch.device,
    each: Callable[..., Iterable],
    job: tuple[int, list[Row]],
) -> Chunk:
    """The clips of a job, read, prepared and collated."""
    shard, rows = job
    segments: list[Any] = []
    counts, refused = {}, {}
    for row, found in zip(rows, each(partial(_pieces, extractor, reader), rows), strict=True):
        if isinstance(found, str):
            refused[row.name] = found
        else:
            counts[row.name] = len(found)
            segments += found
    batches = []
    for positions in fitting_batches(
        [extractor.length(segment) for segment in segments], extractor.budget(device)
    ):
        batch = extractor.collate([segments[position] for position in positions])
        if pace(device).pinned:
            # A thread starts on the first GPU, which other ranks must not use.
            torch.cuda.set_device(device)
            batch = {key: value.pin_memory() for key, value in batch.items()}
        batches.append((positions, batch))
    return Chunk(shard=shard, segments=counts, refused=refused, batches=batches)


def _pieces(extractor: Extractor, reader: Reader | MemoryReader, row: Row) -> list[Any] | str:
    """The segments of a clip, or why it is refused."""
    if extractor.modality in row.missing:
        return NOT_IN_SHARD
    try:
        return extractor.prepare(reader.read(row, extractor.modality))
    except Unusable as error:
        return str(error)


@dataclass(kw_only=True)
class Asked:
    """The results of a forward pass, which may still be in transfer."""

    embeddings: torch.Tensor
    counts: torch.Tensor
    #: The event that ends the transfer; None: the results are here.
    here: torch.cuda.Event | None

    def fetched(self) -> list[np.ndarray]:
        """The embeddings of each segment."""
        if self.here is None:
            embeddings = self.embeddings.numpy()
        else:
            self.here.synchronize()
            # Results are kept until their shard is written and must not hold pinned memory.
            embeddings = self.embeddings.numpy().copy()
        return np.split(embeddings, np.cumsum(self.counts.numpy())[:-1])


def asked(extractor: Extractor, batch: dict[str, torch.Tensor], device: torch.device) -> Asked:
    """Launch a forward pass without waiting, unless the model waits (HuBERT, if lengths differ)."""
    with torch.inference_mode(), products(extractor.config.precision, device):
        on_device = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        embeddings, counts = extractor.embed(**on_device)
        # A non-blocking transfer from a GPU goes to pinned memory.
        found = [result.to("cpu", non_blocking=True) for result in (embeddings.float(), counts)]
    here = None
    if device.type == "cuda":
        here = torch.cuda.Event(blocking=True)
        here.record(torch.cuda.current_stream(device))
    return Asked(embeddings=found[0], counts=found[1], here=here)


def _computed(
    extractor: Extractor, chunks: Iterable[Chunk], device: torch.device
) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
    """Each chunk with the embeddings of its clips; segments of similar length share a pass."""
    passes = _passes(extractor, chunks, device)
    done: dict[int, np.ndarray] = {}
    for chunk, positions, results, last in _one_behind(passes) if pace(device).ahead else passes:
        if results is not None:
            done.update(zip(positions, results.fetched(), strict=True))
        if last:
            ends = np.cumsum([0, *chunk.segments.values()])
            spans = zip(chunk.segments, pairwise(ends), strict=True)
            yield (
                chunk,
                {name: np.concatenate([done[position] for position in range(*span)]) for name, span in spans},
            )
            done = {}


def _passes(
    extractor: Extractor, chunks: Iterable[Chunk], device: torch.device
) -> Iterator[tuple[Chunk, list[int], Asked | None, bool]]:
    """Launch each forward pass: its chunk, segment indices, results, and whether it is the chunk's last."""
    for chunk in chunks:
        if not chunk.batches:
            yield chunk, [], None, True
        for number, (positions, batch) in enumerate(chunk.batches, start=1):
            yield chunk, positions, asked(extractor, batch, device), number == len(chunk.batches)


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each only after the next was produced."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield held.pop(0)
    yield from held
