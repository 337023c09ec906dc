"""Facts about each encoder family that need neither its model nor torch, for planning a stage.

A built-in family has a module of facts, ``<name>_family``, which does not import torch, and a module
with its :class:`~mer_dist.models.extractor.Extractor`. A plugin's family is one class decorated with
:func:`register`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
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

#: Reason for missing features if the shard stage has already put the clip in quarantine.
NOT_IN_SHARD = "not in the shard"
#: Forward passes in a chunk: their clips are prepared together, so that they can be sorted by length.
PASSES_OF_A_CHUNK = 8
#: Fixed cost of a forward pass, as a fraction of the budget.
PASS = 1 / 16
#: A GPU with at least so many bytes counts as large: 80 GB does, 24 to 48 GB do not.
LARGE = 64 * 10**9
#: Seconds and tokens of a typical MER2024 clip, for estimates of disk, never of memory.
SECONDS, TOKENS = 5.0, 40

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts that decide which clips an extractor sees, which of them share a forward pass, and what a
    run needs.

    The training budgets follow from what autograd keeps in bf16, with half of a GPU or more left for weights
    and states: 5 to 11 GB of 24, 36 to 46 GB of 80. The latter also keeps a GPU busy: reading published
    weights takes a fraction of the computing time of a pass.
    """

    #: ``audio``, ``video`` or ``text``.
    modality: str
    #: Valid values of ``model_type`` in the config.json of a model folder.
    model_types: tuple[str, ...]
    #: Files that a model folder needs besides config.json and the weights.
    files: tuple[str, ...] = ()
    #: Files of which it needs one.
    one_of_files: tuple[str, ...] = ()
    #: Why a config.json with a valid ``model_type`` is not of this family; empty: it is.
    refuse_settings: Callable[[dict], str] = lambda settings: ""
    #: Length of all segments in one forward pass, padding included, on a CPU and on a GPU: enough to
    #: keep the device busy (docs/benchmarks.md).
    budgets: tuple[float, float]
    #: The same for one forward and backward pass, on a CPU, a GPU, and a large GPU.
    training_budgets: tuple[float, float, float]
    #: Whether a clip has enough of the modality for the model, by the index.
    enough: Callable[[Row], bool]
    #: Length of the longest segment that the settings allow.
    longest_segment: Callable[[ExtractorConfig], float]
    #: Numbers of segments and of embeddings of a typical clip with so many stored frames.
    typical_clip: Callable[[ExtractorConfig, int], tuple[int, int]]
    #: Folder name of a published model -> arguments of the backbone's configuration class, from its
    #: config.json, so that a run can be planned before the model is downloaded.
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The class, or ``module:class`` of one whose module imports torch.
    extractor: type[Extractor] | str
    #: ``model_type`` -> its own facts, where they differ from these.
    by_type: dict[str, Family] = field(default_factory=dict)
    #: Hash of a plugin's file: features of another version of it are computed again. Empty for built-in
    #: families.
    code: tuple[str, ...] = ()

    def training_budget(self, memory: float | None) -> float:
        """The budget of a GPU with so many usable bytes; None: of a CPU."""
        return self.training_budgets[0 if memory is None else 1 + (memory >= LARGE)]

    def extractor_class(self) -> type[Extractor]:
        """The class itself; imports torch."""
        if isinstance(self.extractor, str):
            module, _, name = self.extractor.partition(":")
            return getattr(importlib.import_module(module), name)
        return self.extractor


#: Every family by its name in ``extractors.*.family``.
FAMILIES: Registry[Family] = ENCODERS


def asks_for_code(settings: dict) -> str:
    """Why a config that asks for code in its folder is refused; empty if it does not."""
    if settings.get("auto_map"):
        return "it asks for code of its own (auto_map), which is never run; take the model in the layout of transformers"
    return ""


def family_of(family: str, folder: str | Path) -> Family:
    """The facts that hold for the model in this folder: of its family, or of its ``model_type``."""
    own = FAMILIES[family]
    if not own.by_type:
        return own
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return own.by_type.get(settings["model_type"], own)
    except (OSError, ValueError, TypeError, KeyError):
        return own  # model_folder.check says what is wrong with it


def register(name: str, **facts: Any) -> Callable[[Class], Class]:
    """Register the decorated :class:`~mer_dist.models.extractor.Extractor` as the encoder family ``name``.

    Args:
        facts: fields of :class:`Family`.

    Raises:
        UserError: the name is taken, or the class is incomplete.
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
    """Why a class cannot be an encoder family; empty if it can."""
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
