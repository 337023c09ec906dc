"""Vectors that are no finite numbers: why a clip's cannot be kept, and what to set where a model makes them.

What is fed to a model is finite: pixels, samples of sound, tokens. So a vector that is not comes of the
arithmetic, or of the weights. One such clip is left out with its reason; where most are so, the setting is
wrong, and all of them would be lost one by one.
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

#: How the reason of a clip begins whose vectors were computed and cannot be kept.
REFUSED = "its vectors"
COMPUTED = f"{REFUSED} came out of the model as NaN or infinite"
TOO_LARGE = f"{REFUSED} hold values beyond {np.finfo(np.float16).max:g}, too large for extract.storage: fp16"
TOO_SMALL = f"{REFUSED} hold values so small that all are 0 under extract.storage: fp16"


def keepable(
    extractor: Extractor, set_name: str, found: dict[str, np.ndarray], stored: ExtractConfig
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The clips whose vectors ``(T, D)`` can be kept, and why the others' cannot, with what to set."""
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
    """Why a clip's vectors cannot be kept; empty if they can.

    Args:
        embeddings: ``(T, D)`` float32, as computed.
        kept: ``(K, D)``, those of them, or their mean, that are to be stored.
        kind: the type in which they are stored.
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
    """Of the clips of a set that were computed: how many have vectors, and how many have none that can be
    kept."""

    good: int = 0
    refused: int = 0
    #: The reason of one of them.
    why: str = ""

    def add(self, clips: int, missing: dict[str, str]) -> None:
        """A shard of ``clips``; ``missing`` as in its feature file."""
        self.good += clips - len(missing)
        refused = [reason for reason in missing.values() if reason.startswith(REFUSED)]
        self.refused += len(refused)
        self.why = refused[0] if refused else self.why

    def check(self, set_name: str, whole: bool) -> None:
        """
        Raises:
            UserError: it is the setting and not the clips. A single clip is believed only when the set is
                ``whole`` and has no other.
        """
        if self.refused > self.good and (self.refused > 1 or whole):
            clips = self.good + self.refused
            raise UserError(
                f"features {set_name}: {self.refused} of {clips} clips have none that can be kept: {self.why}"
            )


def remedy(extractor: Extractor, name: str, reason: str) -> str:
    """What to set so that the vectors of extractor ``name`` can be kept, which has the ``reason`` now."""
    if reason != COMPUTED:
        return "set extract.storage: fp32"
    config, key = extractor.config, f"extractors.{name}"
    broken = broken_weights(extractor)
    if config.precision == "fp16":
        text = f"{key}.precision is fp16, which holds nothing beyond 65504; set it to bf16 or fp32"
        return text + (f" (should that give the same, its weights are damaged: {broken})" if broken else "")
    if broken:
        return f"its weights are no numbers: {broken}; take the files of {extractor.folder} anew"
    if config.quantize == "int8":
        return f"{key}.quantize: int8 computes in half precision whatever precision is; set it to nf4 or none"
    if config.precision == "bf16" or config.quantize != "none":
        return f"set {key}.precision to fp32" + (" and its quantize to none" * (config.quantize != "none"))
    return f"{key}.precision is {config.precision} already; the model in {extractor.folder} cannot be used as it is"


def broken_weights(extractor: Extractor) -> str:
    """The first weights that hold NaN or infinity, by name; empty if none does."""
    import torch

    named = (
        name for name, weight in extractor.backbone.named_parameters() if not torch.isfinite(weight).all()
    )
    return ", ".join(name for name, _ in zip(named, range(3), strict=False))
