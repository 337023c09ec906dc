"""The fusion models by name, without importing one.

A model is registered where its class is written::

    @register("mine")
    class Mine(nn.Module):
        def __init__(self, sets: list[FeatureShape], classes: int, width: int = 64, dropout: float = 0.1): ...

        def forward(self, values: list[Tensor], masks: list[Tensor]) -> Tensor: ...

Its constructor takes the shapes of the feature sets and the number of labels, and by their names those
of :data:`OPTIONS` that it has a use for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mer_dist.core.errors import UserError
from mer_dist.core.registry import FUSION_MODELS

#: Keys of ``fuse`` that a constructor may ask for by their names; docs/fusion.md explains these.
OPTIONS = (
    "width",
    "heads",
    "dropout",
    "feature_dropout",
    "modality_dropout",
    "query_modality",
    "cross_attention",
    "fusion",
    "linear_skip",
)

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class FeatureShape:
    """What a fusion model must know of a feature set before it sees a clip."""

    #: ``audio``, ``video`` or ``text``; several sets may share one.
    modality: str
    #: T, tokens of a clip, of which some may be absent; 1 with ``fuse.level: utterance``.
    tokens: int
    #: D, features of a token.
    dims: int


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model."""

    name: str
    #: The class, or another callable that makes one.
    make: Callable[..., Any]
    #: Whether one module computes all members at once, see :mod:`mer_dist.fusion.layers`.
    batched: bool
    #: Those of :data:`OPTIONS` that ``make`` takes.
    options: tuple[str, ...]


def register(name: str, *, batched: bool = False) -> Callable[[Made], Made]:
    """Make the decorated class known as ``fuse.model: name``.

    Args:
        batched: the class computes all members of an ensemble at once: its constructor takes their
            ``RngStreams`` in third place, its forward a ``FeatureBatch`` of rows ``(E, B)``.

    Raises:
        UserError: another model has this name, or the constructor needs what nothing gives it.
    """

    def add(make: Made) -> Made:
        FUSION_MODELS.add(
            name, RegisteredModel(name, make, batched, _options(make, 3 if batched else 2)), make.__module__
        )
        return make

    return add


def _title(make: Callable[..., Any]) -> str:
    return f"{make.__module__}.{make.__qualname__}"


def _options(make: Callable[..., Any], given: int) -> tuple[str, ...]:
    """The options among the parameters behind the first ``given`` ones, which every model gets."""
    parameters = list(inspect.signature(make).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(positional) < given and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        raise UserError(
            f"the fusion model {_title(make)} must take the shapes of the feature sets (a list of FeatureShape) and "
            f"the number of labels{', and RngStreams' if given == 3 else ''}"
        )
    rest = [one for one in parameters if one not in positional[:given]]
    rest = [one for one in rest if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    for one in rest:
        if one.name not in OPTIONS and one.default is one.empty:
            raise UserError(
                f"the fusion model {_title(make)} asks for {one.name!r}, which nothing gives it: name one of "
                f"{', '.join(OPTIONS)}, or give it a default"
            )
    return tuple(one.name for one in rest if one.name in OPTIONS)


def code_of(name: str) -> str:
    """The source of the module that a model is in; empty of those of this package, which has versions, and
    where there is no source."""
    if name in FUSION_MODELS.built_in:
        return ""
    make = FUSION_MODELS[name].make
    try:
        return inspect.getsource(inspect.getmodule(make) or make)
    except (OSError, TypeError):
        return ""
