"""What is known of each family of extractors without its model: planning a stage needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mer_dist.shards.manifest import Row

#: Samples of sound that one output step of HuBERT looks at; less audio gives no step at all.
RECEPTIVE_FIELD = 400
#: Why a clip has no features if the shard stage has already put it in quarantine.
NOT_IN_SHARD = "not in the shard"
#: Forward passes' worth of clips that are prepared together, so that they can be sorted by length.
PASSES_OF_A_CHUNK = 8
#: What a forward pass costs besides its length, as a part of the budget.
PASS = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts that decide which clips an extractor sees, and which of them share a forward pass."""

    modality: str
    #: Length of all pieces in one forward pass, padding included, on a CPU and on a GPU: enough to
    #: keep the device busy (docs/benchmarks.md).
    budgets: tuple[float, float]
    #: Whether a clip that has the modality has enough of it to be fed, by the manifest.
    enough: Callable[[Row], bool]


FAMILIES = {
    # On a CPU a single frame is work enough, and larger batches are no faster.
    "clip": Family(modality="video", budgets=(8, 256), enough=lambda row: row.frames > 0),
    # On a CPU every window runs alone: the convolutions of one fill it, and padding would cost more
    # than a batch gains.
    "hubert": Family(modality="audio", budgets=(0, 120), enough=lambda row: row.samples >= RECEPTIVE_FIELD),
    "baichuan": Family(
        modality="text", budgets=(512, 8192), enough=lambda row: bool((row.transcript or "").strip())
    ),
}
