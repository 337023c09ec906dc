"""The fusion models by name, without importing any.

A model is registered where its class is defined::

    @register("mine")
    class Mine(nn.Module):
        def __init__(self, sets: list[FeatureShape], classes: int, width: int = 64, dropout: float = 0.1): ...

        def forward(self, values: list[Tensor], masks: list[Tensor]) -> Tensor: ...

Its constructor takes the shapes of the feature sets, the number of labels, and as named parameters those
of :data:`OPTIONS` that it uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mer_dist.core.errors import UserError
from mer_dist.core.registry import FUSION_MODELS

#: Keys of ``fuse`` that a constructor may take as named parameters; docs/fusion.md explains them.
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
    """The shape of a feature set, which a fusion model needs before it sees a clip."""

    #: ``audio``, ``video`` or ``text``; several sets may share one.
    modality: str
    #: T, tokens of a clip; some may be absent; 1 with ``fuse.level: utterance``.
    tokens: int
    #: D, features of a token.
    dims: int


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model."""

    name: str
    #: The class, or another callable that returns a model.
    make: Callable[..., Any]
    #: Whether one module computes all members at once, see :mod:`mer_dist.fusion.layers`.
    batched: bool
    #: Those of :data:`OPTIONS` that ``make`` takes.
    options: tuple[str, ...]


def register(name: str, *, batched: bool = False) -> Callable[[Made], Made]:
    """Register the decorated class as ``fuse.model: name``.

    Args:
        batched: the class computes all members of an ensemble at once: its constructor takes their
            ``RngStreams`` as third argument, its forward a ``FeatureBatch`` of rows ``(E, B)``.

    Raises:
        UserError: another model has this name, or the constructor has an unknown required parameter.
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
    """The options among the parameters after the first ``given`` ones, which every model gets."""
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
                f"the fusion model {_title(make)} requires the unknown option {one.name!r}: use one of "
                f"{', '.join(OPTIONS)}, or give it a default"
            )
    return tuple(one.name for one in rest if one.name in OPTIONS)


def code_of(name: str) -> str:
    """The source of a model's module; empty for models of this package, which has versions, and where
    there is no source."""
    if name in FUSION_MODELS.built_in:
        return ""
    make = FUSION_MODELS[name].make
    try:
        return inspect.getsource(inspect.getmodule(make) or make)
    except (OSError, TypeError):
        return ""
