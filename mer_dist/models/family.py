"""What is known of each family of extractors without its model: planning a stage needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mer_dist.config.sections import ExtractorConfig
    from mer_dist.shards.manifest import Row

#: Samples of sound that one output step of HuBERT looks at; less audio gives no step at all.
RECEPTIVE_FIELD = 400
#: Why a clip has no features if the shard stage has already put it in quarantine.
NOT_IN_SHARD = "not in the shard"
#: Forward passes' worth of clips that are prepared together, so that they can be sorted by length.
PASSES_OF_A_CHUNK = 8
#: What a forward pass costs besides its length, as a part of the budget.
PASS = 1 / 16
#: Bytes of GPU memory from which on a card counts as large: those of 80 GB, not those of 24 to 48.
LARGE = 64 * 10**9


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts that decide which clips an extractor sees, and which of them share a forward pass."""

    modality: str
    #: Length of all pieces in one forward pass, padding included, on a CPU and on a GPU: enough to
    #: keep the device busy (docs/benchmarks.md).
    budgets: tuple[float, float]
    #: The same of a pass forward and backward, on a CPU, on a GPU, and on a large one.
    training_budgets: tuple[float, float, float]
    #: Whether a clip that has the modality has enough of it to be fed, by the manifest.
    enough: Callable[[Row], bool]

    def training_budget(self, memory: float | None) -> float:
        """Of the device with so many bytes to plan with; None: of a CPU."""
        return self.training_budgets[0 if memory is None else 1 + (memory >= LARGE)]


# What autograd keeps in bf16 decides the budgets of training, with half of a card or more left for weights and
# states: 5 to 11 GB on a GPU of 24, 36 to 46 GB on one of 80. There it is also work enough: published weights
# are read in a fraction of the time that the pass computes.
FAMILIES = {
    # On a CPU a single frame is work enough, and larger batches are no faster.
    "clip": Family(
        modality="video",
        budgets=(8, 256),
        # CLIP-L/14 keeps 0.33 GB a frame.
        training_budgets=(16, 32, 128),
        enough=lambda row: row.frames > 0,
    ),
    # On a CPU every window runs alone: the convolutions of one fill it, and padding would cost more
    # than a batch gains.
    "hubert": Family(
        modality="audio",
        budgets=(0, 120),
        # HuBERT-large keeps 0.19 GB a second.
        training_budgets=(10, 60, 240),
        enough=lambda row: row.samples >= RECEPTIVE_FIELD,
    ),
    "baichuan": Family(
        modality="text",
        budgets=(512, 8192),
        # Baichuan-13B keeps 8.8 MB a token. Four thousand are the 32 lines of a step in one pass; on two
        # GPUs of 24 GB five hundred is what half of the model leaves room for.
        training_budgets=(512, 512, 4096),
        enough=lambda row: bool((row.transcript or "").strip()),
    ),
}


def longest_piece(config: ExtractorConfig) -> float:
    """Length of the longest piece that the settings allow, in the family's unit."""
    return {"clip": 1, "hubert": config.window, "baichuan": config.max_tokens}[config.family]
