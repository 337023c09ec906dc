"""Fusion models as ensemble members: all computed at once, or any ``nn.Module``, one after the other.

Shape suffixes: E members, B clips, T tokens, D features of a set, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import UserError
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.fusion import registered
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.layers import RngStreams
from mer_dist.fusion.registered import FeatureShape


class FusionModel(nn.Module):
    """Maps a batch of rows ``(E, B)`` to logits ``(E, B, C)``; every parameter has E in front."""

    streams: RngStreams
    #: Whether a training step may be recorded on a GPU, see :class:`mer_dist.fusion.cuda_graph.CudaGraphStep`.
    capturable = True


def build(
    inputs: FeatureBatch,
    classes: int,
    config: FuseConfig,
    seeds: list[int],
    dropout: list[float] | None = None,
) -> FusionModel:
    """``fuse.model`` for inputs of these shapes with one member per seed.

    Args:
        dropout: rate per member; None: the first of ``fuse.dropout``, which only training needs.

    Raises:
        UserError: a user's model does not keep to the interface in :class:`MemberModules`.
    """
    some = inputs.values[0]
    dtype = some.dtype if some.dtype is torch.float64 else torch.float32
    streams = RngStreams(seeds, some.device, dtype)
    model = FUSION_MODELS[config.model]
    options = {name: getattr(config, name) for name in model.options}
    each = dropout or config.dropout[:1] * len(seeds)
    if model.batched:
        own = {"dropout": each} if "dropout" in options else {}
        return model.make(inputs.shapes, classes, streams, **options | own)
    return MemberModules(model, inputs.shapes, classes, streams, options, each)


class MemberModules(FusionModel):
    """An ordinary module per member: ``make(sets, classes, **options)``. It maps the values ``(B, T, D)`` of
    each feature set and masks ``(B, T)``, True where a token is present, to logits ``(B, C)``.

    Members run one after the other, so the module may use convolutions, recurrence, batch statistics and
    control flow. Their parameters and buffers are stacked, as in the models that compute all members at once,
    so one optimizer trains them, and they are saved, split and joined in the same way. Everything a member
    draws from torch's own generators, weights and dropout included, depends on its seed alone.
    """

    capturable = False  # a recording cannot draw from torch's own generators

    def __init__(
        self,
        model: registered.RegisteredModel,
        sets: list[FeatureShape],
        classes: int,
        streams: RngStreams,
        options: dict[str, Any],
        dropout: list[float],
    ):
        super().__init__()
        self.streams = streams
        #: For initial weights, and for draws of a module on the host beside a GPU.
        self.on_host = streams.generators
        if streams.device.type != "cpu":
            self.on_host = [torch.Generator().manual_seed(seed) for seed in streams.seeds]
        made = []
        for member, rate in enumerate(dropout):
            own = {"dropout": rate} if "dropout" in options else {}
            with self._drawing(member):
                made.append(_made(model, sets, classes, options | own).to(streams.dtype))
        self.module, others = made[0], made[1:]
        _stack(self.module, others)
        self.module.to(streams.device)
        # Not registered: only their other attributes are used, such as their own dropout rate.
        self._others = [other.to(streams.device) for other in others]

    def train(self, mode: bool = True) -> MemberModules:
        for other in self._others:
            other.train(mode)
        return super().train(mode)

    def forward(self, inputs: FeatureBatch) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        # Unbound at once: the gradient of each single slice would be as large as the full tensor.
        tensors = {name: stacked.unbind() for name, stacked in self.module.named_parameters()}
        buffers = {name: stacked.unbind() for name, stacked in self.module.named_buffers()}
        logits = []
        for member, module in enumerate([self.module, *self._others]):
            own = {name: parts[member] for name, parts in (tensors | buffers).items()}
            values = [values[member] for values in inputs.values]
            masks = [mask[member] for mask in inputs.mask]
            with self._drawing(member):
                logits.append(functional_call(module, own, (values, masks)))
            for name, parts in buffers.items():
                if own[name] is not parts[member]:  # the module assigned a new buffer
                    parts[member].copy_(own[name])
        return torch.stack(logits)

    @contextmanager
    def _drawing(self, member: int) -> Iterator[None]:
        """Within it, torch's default generators continue those of the member."""
        with ExitStack() as both:
            both.enter_context(_from(self.on_host[member], torch.default_generator))
            if self.streams.device.type == "cuda":
                own = self.streams.generators[member]
                both.enter_context(_from(own, torch.cuda.default_generators[own.device.index or 0]))
            yield


@contextmanager
def _from(own: torch.Generator, default: torch.Generator) -> Iterator[None]:
    before = default.get_state()
    default.set_state(own.get_state())
    try:
        yield
    finally:
        own.set_state(default.get_state())
        default.set_state(before)


def _stack(module: nn.Module, others: list[nn.Module]) -> None:
    """Stack every parameter and buffer of all members in ``module``, (E, ...); free those of ``others``."""
    for kind in ("named_parameters", "named_buffers"):
        named = [dict(getattr(one, kind)()) for one in (module, *others)]
        for name, first in named[0].items():
            first.data = torch.stack([own[name].data for own in named])
            for own in named[1:]:
                own[name].data = own[name].data.new_empty(0)


def _made(
    model: registered.RegisteredModel, sets: list[FeatureShape], classes: int, options: dict[str, Any]
) -> nn.Module:
    """A member, after a trial run: it finds errors before training, and lazy layers get their sizes.

    The rows of the trial are a clip with all feature sets and, with several sets, one without each.
    """
    module = model.make(sets, classes, **options)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"fuse.model {model.name}: the registered callable returns a {type(module).__name__}, no nn.Module"
        )
    module.eval()
    missing = [None, *(range(len(sets)) if len(sets) > 1 else ())]
    values = [torch.linspace(-1, 1, one.dims).expand(len(missing), one.tokens, -1).clone() for one in sets]
    masks = [torch.ones(len(missing), one.tokens, dtype=torch.bool) for one in sets]
    for row, absent in enumerate(missing):
        if absent is not None:
            values[absent][row], masks[absent][row] = 0, False
    with torch.no_grad():
        logits = module(values, masks)
    if not isinstance(logits, Tensor) or logits.shape != (len(missing), classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"fuse.model {model.name}: forward must return logits (B, C), here {(len(missing), classes)}, and returned "
            f"{found}"
        )
    for row, absent in zip(logits, missing, strict=True):
        if not row.isfinite().all():
            what = (
                "has all feature sets"
                if absent is None
                else f"lacks set {absent + 1}, {sets[absent].modality}"
            )
            raise UserError(
                f"fuse.model {model.name}: the logits of a clip that {what}, are not finite; the masks are False where "
                "a token is absent, and a mean or softmax over no token must be finite, too"
            )
    return module
