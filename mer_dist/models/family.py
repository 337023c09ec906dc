"""What is known of each family of encoders without its model: planning a stage needs no torch.

A family that comes with this program has a module of facts, ``<name>_family``, which imports no torch, and
one of its :class:`~mer_dist.models.extractor.Extractor`. A family of a plugin is one class with
:func:`register` above it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mer_dist.core.errors import UserError
from mer_dist.core.records import Modality
from mer_dist.core.registry import ENCODERS, Registry

if TYPE_CHECKING:
    from mer_dist.config.sections import ExtractorConfig
    from mer_dist.models.extractor import Extractor
    from mer_dist.shards.shard_index import Row

#: Why a clip has no features if the shard stage has already put it in quarantine.
NOT_IN_SHARD = "not in the shard"
#: Forward passes' worth of clips that are prepared together, so that they can be sorted by length.
PASSES_OF_A_CHUNK = 8
#: What a forward pass costs besides its length, as a part of the budget.
PASS = 1 / 16
#: Bytes of GPU memory from which on a card counts as large: those of 80 GB, not those of 24 to 48.
LARGE = 64 * 10**9
#: Seconds and tokens of a typical clip of MER2024, for disk and never for memory.
SECONDS, TOKENS = 5.0, 40

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts that decide which clips an extractor sees, which of them share a forward pass, and what a
    run will need.

    What autograd keeps in bf16 decides the budgets of training, with half of a card or more left for weights
    and states: 5 to 11 GB on a GPU of 24, 36 to 46 GB on one of 80. There it is also work enough: published
    weights are read in a fraction of the time that the pass computes.
    """

    #: ``audio``, ``video`` or ``text``.
    modality: str
    #: ``model_type`` that config.json of a model folder may name.
    model_types: tuple[str, ...]
    #: Files that a model folder needs beside config.json and the weights.
    files: tuple[str, ...] = ()
    #: Why config.json is none of this family though its ``model_type`` is; empty: it is.
    refuse_settings: Callable[[dict], str] = lambda settings: ""
    #: Length of all segments in one forward pass, padding included, on a CPU and on a GPU: enough to
    #: keep the device busy (docs/benchmarks.md).
    budgets: tuple[float, float]
    #: The same of a pass forward and backward, on a CPU, on a GPU, and on a large one.
    training_budgets: tuple[float, float, float]
    #: Whether a clip that has the modality has enough of it to be fed, by the index.
    enough: Callable[[Row], bool]
    #: Length of the longest segment that the settings allow.
    longest_segment: Callable[[ExtractorConfig], float]
    #: Segments that a typical clip of so many stored frames is cut into, and its embeddings in all.
    typical_clip: Callable[[ExtractorConfig, int], tuple[int, int]]
    #: Folder name of a published model -> settings of the backbone's configuration class, by its config.json:
    #: a run can be planned before the model is downloaded.
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The class, or ``module:class`` of one whose module imports torch.
    extractor: type[Extractor] | str
    #: Hash of the file of a plugin: what was made with other code is made again. Empty for the families of
    #: this program.
    code: tuple[str, ...] = ()

    def training_budget(self, memory: float | None) -> float:
        """Of the device with so many bytes to plan with; None: of a CPU."""
        return self.training_budgets[0 if memory is None else 1 + (memory >= LARGE)]

    def extractor_class(self) -> type[Extractor]:
        """Imports torch."""
        if isinstance(self.extractor, str):
            module, _, name = self.extractor.partition(":")
            return getattr(importlib.import_module(module), name)
        return self.extractor


#: Every family by its name in ``extractors.*.family``.
FAMILIES: Registry[Family] = ENCODERS


def register(name: str, **facts: Any) -> Callable[[Class], Class]:
    """Make the :class:`~mer_dist.models.extractor.Extractor` below it the encoder family ``name``.

    Args:
        facts: fields of :class:`Family`.

    Raises:
        UserError: the name is taken, or the class lacks a part.
    """

    def registered(extractor: Class) -> Class:
        if faults := _faults(extractor, facts):
            raise UserError(f"the encoder family {name!r}: {extractor.__name__} {faults}")
        own = Family(extractor=extractor, code=(_hash(extractor),), **facts)
        FAMILIES.add(name, own, extractor.__module__)
        extractor.family = own  # type: ignore[attr-defined]  # importing the class would import torch
        return extractor

    return registered


def _faults(extractor: type, facts: dict[str, Any]) -> str:
    """Why a class cannot be an encoder family; empty: it can."""
    if not hasattr(extractor, "from_pretrained"):
        return "is no subclass of mer_dist.models.extractor.Extractor"
    missing = [name for name in ("unit", "lora_targets") if not hasattr(extractor, name)]
    missing += sorted(getattr(extractor, "__abstractmethods__", ()))
    needed = (one.name for one in fields(Family) if one.default is MISSING and one.default_factory is MISSING)
    missing += [f"{name}=… in register" for name in needed if name not in (*facts, "extractor")]
    if not missing and facts["modality"] not in set(Modality):
        return f"has the modality {facts['modality']!r}; it must be one of: {', '.join(Modality)}"
    return f"lacks {', '.join(missing)}" if missing else ""


def _hash(extractor: type) -> str:
    return hashlib.sha256(Path(inspect.getfile(extractor)).read_bytes()).hexdigest()
