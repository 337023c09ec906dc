"""Embeddings that are not finite: why they cannot be stored, and which setting to change.

The inputs of a model are finite: pixels, audio samples, tokens. So non-finite embeddings come from the
arithmetic or from the weights. A single such clip is left out with its reason; if most clips are affected,
the setting is wrong, and all of them would be lost one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from mer_dist.config.sections import ExtractConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.features.store import STORAGE

if TYPE_CHECKING:
    from mer_dist.models.extractor import Extractor

#: Start of the reason for embeddings that were computed and cannot be stored.
REFUSED = "its vectors"
COMPUTED = f"{REFUSED} came out of the model as NaN or infinite"
TOO_LARGE = f"{REFUSED} hold values beyond {np.finfo(np.float16).max:g}, too large for extract.storage: fp16"
TOO_SMALL = f"{REFUSED} hold values so small that all are 0 under extract.storage: fp16"


def keepable(
    extractor: Extractor, set_name: str, found: dict[str, np.ndarray], stored: ExtractConfig
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The clips whose embeddings ``(T, D)`` can be stored; for the others, why not and what to set."""
    faults = {}
    for name, embeddings in found.items():
        with np.errstate(over="ignore", invalid="ignore"):
            mean = embeddings.mean(0, keepdims=True)
        kept = np.concatenate([mean, embeddings]) if stored.frame_level else mean
        faults[name] = fault(embeddings, kept, STORAGE[stored.storage])
    own = FeatureSetId.parse(set_name).name
    to_do = {reason: remedy(extractor, own, reason) for reason in set(faults.values()) - {""}}
    refused = {name: f"{reason}; {to_do[reason]}" for name, reason in faults.items() if reason}
    return {name: embeddings for name, embeddings in found.items() if name not in refused}, refused


def fault(embeddings: np.ndarray, kept: np.ndarray, kind: DTypeLike) -> str:
    """Why a clip's embeddings cannot be stored; empty if they can.

    Args:
        embeddings: ``(T, D)`` float32, as computed.
        kept: ``(K, D)``, the rows to store: some of them, or their mean.
        kind: the dtype in storage.
    """
    if not (np.isfinite(embeddings).all() and np.isfinite(kept).all()):
        return COMPUTED
    with np.errstate(over="ignore", under="ignore"):
        stored = kept.astype(kind)
    if not np.isfinite(stored).all():
        return TOO_LARGE
    return TOO_SMALL if kept.any() and not stored.any() else ""


@dataclass
class Tally:
    """Counts of the computed clips of a set: with embeddings, and with none that can be stored."""

    good: int = 0
    refused: int = 0
    #: The reason of one of them.
    why: str = ""

    def add(self, clips: int, missing: dict[str, str]) -> None:
        """Add a shard of ``clips``; ``missing`` as in its feature file."""
        self.good += clips - len(missing)
        refused = [reason for reason in missing.values() if reason.startswith(REFUSED)]
        self.refused += len(refused)
        self.why = refused[0] if refused else self.why

    def check(self, set_name: str, whole: bool) -> None:
        """
        Raises:
            UserError: the setting is wrong, not the clips. A single clip counts only when the set is
                ``whole`` (complete) and has no other clip.
        """
        if self.refused > self.good and (self.refused > 1 or whole):
            clips = self.good + self.refused
            raise UserError(
                f"features {set_name}: {self.refused} of {clips} clips have none that can be kept: {self.why}"
            )


def remedy(extractor: Extractor, name: str, reason: str) -> str:
    """The setting that avoids ``reason``, so that embeddings of extractor ``name`` can be stored."""
    if reason != COMPUTED:
        return "set extract.storage: fp32"
    config, key = extractor.config, f"extractors.{name}"
    broken = broken_weights(extractor)
    if config.precision == "fp16":
        text = f"{key}.precision is fp16, which holds nothing beyond 65504; set it to bf16 or fp32"
        return text + (f" (should that give the same, its weights are damaged: {broken})" if broken else "")
    if broken:
        return f"its weights are not finite: {broken}; get the files of {extractor.folder} again"
    if config.quantize == "int8":
        return f"{key}.quantize: int8 computes in half precision whatever precision is; set it to nf4 or none"
    if config.precision == "bf16" or config.quantize != "none":
        return f"set {key}.precision to fp32" + (" and its quantize to none" * (config.quantize != "none"))
    return f"{key}.precision is {config.precision} already; the model in {extractor.folder} cannot be used as it is"


def broken_weights(extractor: Extractor) -> str:
    """Names of the first weights with NaN or infinity; empty if there are none."""
    import torch

    named = (
        name for name, weight in extractor.backbone.named_parameters() if not torch.isfinite(weight).all()
    )
    return ", ".join(name for name, _ in zip(named, range(3), strict=False))
