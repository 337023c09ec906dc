"""Models that turn the feature sets of a clip into an emotion: AGT and the baselines beside it.

The Audio-Guided Transformer is ours after the roles named in Shi & Gao 2024, "Audio-Guided Fusion
Techniques for Multimodal Emotion Analysis", where the details are open::

    feature sets ── project, + modality and position ──▶ guide tokens, guided tokens
    each set: feed-forward                               before they meet
    per guided modality: Context-Based Transformer       guide tokens ask, guided tokens answer
    guide, guide→A, guide→B ── Adaptive Multimodal Fusion ──▶ gates ▶ weighted sum
    weighted sum ── feed-forward ── linear ──▶ logits
    feature sets ── linear shortcut ──────────────────────────────────────────────▶ + logits

Missing is a mask everywhere: an absent token is never a key, an absent channel gets no gate, and
where a clip lacks the guide a learned query asks in its place.

Every model here is an ensemble of members, see :mod:`mer_dist.fusion.layers`. Shape suffixes: E
members, B clips, T tokens, D features of a set, W model width, M channels, C classes, N all clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mer_dist.config.sections import FuseConfig
from mer_dist.core.records import Modality
from mer_dist.fusion.layers import Attention, Dropout, FeedForward, Linear, Streams, masked_mean, norm

#: Numbers that stay in a processor's cache.
CACHED = 2**18


@dataclass
class Inputs:
    """The tokens of all clips, one entry per feature set, contiguous and on one device."""

    modality: list[str]
    #: each (N, T, D) float; what stands at an absent token is never used.
    values: list[Tensor]
    #: each (N, T) bool, True where a token is present.
    mask: list[Tensor]

    def to(self, device: torch.device | str) -> Inputs:
        values = [values.to(device) for values in self.values]
        return Inputs(self.modality, values, [mask.to(device) for mask in self.mask])

    def __getitem__(self, rows: Tensor) -> Inputs:
        """Clips by number; ``rows`` may have any shape, which then stands in the place of N."""
        # Four times as fast as values[rows] on a CPU.
        flat = [values.index_select(0, rows.flatten()) for values in self.values]
        flat = [some.float() if some.dtype is torch.half else some for some in flat]
        values = [some.unflatten(0, rows.shape) for some in flat]
        return Inputs(self.modality, values, [mask[rows] for mask in self.mask])

    def shared(self, members: int) -> Inputs:
        """The same clips for so many members, (E, N, T, D), without a copy for each."""
        values = [values.expand(members, *values.shape) for values in self.values]
        return Inputs(self.modality, values, [mask.expand(members, *mask.shape) for mask in self.mask])

    @property
    def present(self) -> Tensor:
        """(N,) bool: clips that have at least one modality."""
        return torch.stack([mask.any(-1) for mask in self.mask]).any(0)


def standardize(inputs: Inputs, moments_of: Tensor | None = None, limit: float = 10.0) -> Inputs:
    """Every feature with mean 0 and deviation 1 over the present tokens, absent ones 0; in place.

    No label enters, so the clips that are to be predicted may take part: with a few labelled clips
    their own moments would be little more than noise. Values beyond ``limit`` deviations are cut.

    Args:
        moments_of: (N,) bool, the clips that mean and deviation come from; None: all.
    """
    for x_NTD, mask_NT in zip(inputs.values, inputs.mask, strict=True):
        counted = mask_NT if moments_of is None else mask_NT & moments_of[:, None]
        _standardize(x_NTD.flatten(0, 1), mask_NT.flatten(), counted.flatten(), limit)
    return inputs


def _standardize(x_ND: Tensor, present: Tensor, counted: Tensor, limit: float) -> None:
    """In blocks that fit the cache: the whole would be read from memory a dozen times."""
    rows = max(CACHED // x_ND.shape[1], 1)
    parts = (x_ND, present[:, None], counted[:, None])
    blocks = list(zip(*(part.split(rows) for part in parts), strict=True))
    zero = torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    total = max(int(counted.sum()), 1)
    mean = sum((torch.where(own, x, 0).sum(0) for x, _, own in blocks), zero).div(total).to(x_ND.dtype)
    squares = sum((torch.where(own, x - mean, 0).square().sum(0) for x, _, own in blocks), zero)
    deviation = squares.div(max(total - 1, 1)).sqrt().to(x_ND.dtype)
    scale = 1 / torch.where(deviation > 1e-6, deviation, 1)
    for x, there, _ in blocks:
        x.sub_(mean).mul_(scale).clamp_(-limit, limit).masked_fill_(~there, 0)


class ContextBasedTransformer(nn.Module):
    """Cross-attention from guide to guided tokens, then self-attention, then feed-forward."""

    def __init__(self, streams: Streams, width: int, heads: int, dropout: list[float]):
        super().__init__()
        self.cross = Attention(streams, width, heads, dropout)
        self.within = Attention(streams, width, heads, dropout)
        self.feed_forward = FeedForward(streams, width, dropout)

    def forward(self, x_EBTW: Tensor, x_mask: Tensor, y_EBTW: Tensor, y_mask: Tensor) -> Tensor:
        x_EBTW = x_EBTW + self.cross(norm(x_EBTW), norm(y_EBTW), y_mask)
        normed = norm(x_EBTW)
        x_EBTW = x_EBTW + self.within(normed, normed, x_mask)
        return x_EBTW + self.feed_forward(norm(x_EBTW))


class Fusion(nn.Module):
    """Channels ``(E, B, M, W)`` and which are valid ``(E, B, M)`` to one vector ``(E, B, W)``.

    ``gates`` is Adaptive Multimodal Fusion: a weight per channel, computed from all of them,
    softmax over those that are valid.
    """

    def __init__(self, streams: Streams, channels: int, config: FuseConfig, dropout: list[float]):
        super().__init__()
        members, width = len(streams.generators), config.width
        self.kind = config.fusion
        if self.kind != "mean":
            absent = torch.zeros(members, 1, channels, width, dtype=streams.dtype, device=streams.device)
            self.absent = nn.Parameter(absent)
            outputs = channels if self.kind == "gates" else width
            self.mix = Linear(streams, channels * width, outputs)
        self.dropout = Dropout(streams, dropout)

    def forward(self, x_EBMW: Tensor, valid_EBM: Tensor) -> Tensor:
        if self.kind == "mean":
            return masked_mean(x_EBMW, valid_EBM)
        x_EBMW = torch.where(valid_EBM[..., None], x_EBMW, self.absent)
        mixed = self.mix(self.dropout(x_EBMW).flatten(-2))
        if self.kind == "concatenate":
            return mixed
        gates = mixed.masked_fill(~valid_EBM, torch.finfo(mixed.dtype).min).softmax(-1)
        return (gates[..., None] * x_EBMW).sum(-2)


class AGT(nn.Module):
    """The Audio-Guided Transformer over any feature sets; sets may share a modality."""

    def __init__(
        self, inputs: Inputs, classes: int, config: FuseConfig, streams: Streams, dropout: list[float]
    ):
        super().__init__()
        self.streams = streams
        width, self.guide = config.width, str(config.guide)
        self.modality_dropout = streams.chance(config.modality_dropout)
        others = [str(name) for name in Modality if name in inputs.modality and name != self.guide]
        self.channels = [self.guide, *others]
        sizes = [values.shape[1:] for values in inputs.values]
        self.feature_dropout = Dropout(streams, config.feature_dropout)
        self.project = nn.ModuleList(Linear(streams, features, width) for _, features in sizes)
        # One vector per set and token: it says the modality and the place in time.
        self.place = nn.ParameterList(0.04 * (streams.uniform(1, tokens, width) - 0.5) for tokens, _ in sizes)
        self.encode = nn.ModuleList(FeedForward(streams, width, dropout) for _ in sizes)
        self.stand_in = nn.Parameter(streams.uniform(1, 1, width) - 0.5)
        self.context = nn.ModuleDict(
            {
                name: ContextBasedTransformer(streams, width, config.heads, dropout)
                for name in (others if config.context else ())
            }
        )
        self.fuse = Fusion(streams, len(self.channels), config, dropout)
        self.refine = FeedForward(streams, width, dropout)
        self.classify = nn.Sequential(Dropout(streams, dropout), Linear(streams, width, classes))
        self.shortcut = nn.ModuleList(
            Linear(streams, features, classes) for _, features in (sizes if config.shortcut else ())
        )
        for direct in self.shortcut:
            nn.init.zeros_(direct.get_parameter("weight"))

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        hidden = self._hide(inputs) if self.training and self.modality_dropout.some else inputs.mask
        values = [self.feature_dropout(values) for values in inputs.values]
        tokens, masks = self._tokens(inputs.modality, values, hidden)
        guide, asks = self._guide(tokens, masks)
        pooled, valid = [masked_mean(guide, asks)], [masks[self.guide].any(-1)]
        for name in self.channels[1:]:
            if name in self.context:
                guided = self.context[name](guide, asks, tokens[name], masks[name])
                pooled.append(masked_mean(guided, asks))
            else:
                pooled.append(masked_mean(tokens[name], masks[name]))
            valid.append(masks[name].any(-1))
        fused = self.fuse(torch.stack(pooled, -2), torch.stack(valid, -1))
        logits = self.classify(fused + self.refine(norm(fused)))
        for direct, of_set, mask in zip(self.shortcut, values, hidden, strict=False):
            logits = logits + masked_mean(direct(of_set), mask)
        return logits

    def _tokens(self, modality: list[str], values: list[Tensor], hidden: list[Tensor]) -> tuple[dict, dict]:
        """Per modality the projected tokens ``(E, B, T, W)`` of its sets and ``(E, B, T)``."""
        tokens: dict[str, list] = {}
        masks: dict[str, list] = {}
        for place, name in enumerate(modality):
            projected = self.project[place](values[place]) + self.place[place]
            tokens.setdefault(name, []).append(projected + self.encode[place](norm(projected)))
            masks.setdefault(name, []).append(hidden[place])
        return (
            {name: torch.cat(parts, -2) for name, parts in tokens.items()},
            {name: torch.cat(parts, -1) for name, parts in masks.items()},
        )

    def _hide(self, inputs: Inputs) -> list[Tensor]:
        """The masks with modalities hidden at random, but never all that a clip has."""
        kinds = list(dict.fromkeys(inputs.modality))
        clips = inputs.mask[0].shape[1]
        keep = self.streams.kept(self.modality_dropout, clips, len(kinds)).split(1, -1)
        hidden = [
            mask & keep[kinds.index(name)] for name, mask in zip(inputs.modality, inputs.mask, strict=True)
        ]
        left = torch.stack([mask.any(-1) for mask in hidden]).any(0)[..., None]
        return [torch.where(left, some, mask) for some, mask in zip(hidden, inputs.mask, strict=True)]

    def _guide(self, tokens: dict, masks: dict) -> tuple[Tensor, Tensor]:
        """The asking tokens, with the learned query in first place where a clip has none."""
        if self.guide not in tokens:  # no feature set of that modality at all
            some = next(iter(masks.values()))[..., :1]
            masks[self.guide] = torch.zeros_like(some)
            tokens[self.guide] = self.stand_in.expand(*some.shape, -1)
        mask = masks[self.guide]
        first = torch.arange(mask.shape[-1], device=mask.device) == 0
        asks = mask | (first & ~mask.any(-1, keepdim=True))
        return torch.where(mask[..., None], tokens[self.guide], self.stand_in), asks


class AttentionFusion(nn.Module):
    """The challenge baseline's ``attention`` model: an encoder per set, weights from all of them.

    After MERTools (Lian et al. 2024, MER2024 baseline): utterance vectors, three layers each, the
    weights without softmax, zeros for what is absent.
    """

    def __init__(
        self, inputs: Inputs, classes: int, config: FuseConfig, streams: Streams, dropout: list[float]
    ):
        super().__init__()
        self.streams, width, sets = streams, config.width, len(inputs.values)
        sizes = [values.shape[-1] for values in inputs.values]
        self.encode = nn.ModuleList(_perceptron(streams, size, width, dropout) for size in sizes)
        self.look = _perceptron(streams, sets * width, width, dropout)
        self.weigh, self.classify = Linear(streams, width, sets), Linear(streams, width, classes)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        parts = [encode(x) for encode, x in zip(self.encode, _utterances(inputs), strict=True)]
        weights = self.weigh(self.look(torch.cat(parts, -1)))
        return self.classify((weights[..., None] * torch.stack(parts, -2)).sum(-2))


def _perceptron(streams: Streams, inputs: int, width: int, dropout: list[float]) -> nn.Sequential:
    return nn.Sequential(
        Dropout(streams, dropout),
        Linear(streams, inputs, width),
        nn.ReLU(),
        Linear(streams, width, width),
        nn.ReLU(),
        Linear(streams, width, width),
        nn.ReLU(),
    )


def _utterances(inputs: Inputs) -> list[Tensor]:
    """One vector per clip and set, ``(E, B, D)``."""
    return [masked_mean(values, mask) for values, mask in zip(inputs.values, inputs.mask, strict=True)]


class Concatenation(nn.Sequential):
    """All utterance vectors side by side through one hidden layer, or through none."""

    def __init__(
        self, inputs: Inputs, classes: int, config: FuseConfig, streams: Streams, dropout: list[float]
    ):
        features, width = sum(values.shape[-1] for values in inputs.values), config.width
        layers: list[nn.Module] = [Dropout(streams, config.feature_dropout)]
        if config.model == "mlp":
            layers += [Linear(streams, features, width), nn.ReLU(), Dropout(streams, dropout)]
            features = width
        super().__init__(*layers, Linear(streams, features, classes))
        self.streams = streams

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        return super().forward(torch.cat(_utterances(inputs), -1))


Model: TypeAlias = AGT | AttentionFusion | Concatenation
KINDS: dict[str, type[Model]] = {
    "agt": AGT,
    "attention": AttentionFusion,
    "mlp": Concatenation,
    "linear": Concatenation,
}


def build(
    inputs: Inputs, classes: int, config: FuseConfig, seeds: list[int], dropout: list[float] | None = None
) -> Model:
    """``fuse.model`` for inputs of these shapes with one member per seed.

    Args:
        dropout: chance per member; None: the first of ``fuse.dropout``, which only training needs.
    """
    some = inputs.values[0]
    dtype = some.dtype if some.dtype is torch.float64 else torch.float32
    streams = Streams(seeds, some.device, dtype)
    return KINDS[config.model](inputs, classes, config, streams, dropout or config.dropout[:1] * len(seeds))
