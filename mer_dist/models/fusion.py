"""The Audio-Guided Transformer (AGT) and how an ensemble of it is trained.

The model is ours after the roles named in Shi & Gao 2024, "Audio-Guided Fusion Techniques for
Multimodal Emotion Analysis", where the details are open::

    feature sets ── project, + modality and position ──▶ guide tokens, guided tokens
    per guided modality: Context-Based Transformer       guide tokens ask, guided tokens answer
    guide, guide→A, guide→B ── Adaptive Multimodal Fusion ──▶ gates ▶ weighted sum ▶ classifier

Missing is a mask everywhere: an absent token is never a key, an absent channel gets no gate, and
where a clip lacks the guide a learned query asks in its place.

All models of a round (folds × seeds) are one module whose parameters have a leading dimension of
members, so a training step is a few batched matrix products whatever their number. Members share
nothing: each has its own random stream for weights, order and dropout, and comes out as if it
were trained alone. Shape suffixes: E members, B clips, T tokens, Q queries, K keys, D features of
a set, W model width, M channels, C classes, N all clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mer_dist.files import fingerprint
from mer_dist.records import Modality
from mer_dist.settings import FuseConfig

#: Clips × members in one forward pass of prediction.
PREDICT_ROWS = 16384


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
        values = [values[rows] for values in self.values]
        return Inputs(self.modality, values, [mask[rows] for mask in self.mask])

    @property
    def present(self) -> Tensor:
        """(N,) bool: clips that have at least one modality."""
        return torch.stack([mask.any(-1) for mask in self.mask]).any(0)


@dataclass
class Lesson:
    """What one member learns from: clips with a target and a weight, and its seed."""

    #: (n,) int64 clip numbers.
    rows: Tensor
    #: (n, C), rows sum to 1.
    targets: Tensor
    #: (n,) positive.
    weights: Tensor
    #: Everything random in the member's training follows from this number.
    seed: int


def seed_of(*parts: int | str) -> int:
    """A seed that hardly any other combination of parts shares, equal in every process."""
    return int(fingerprint(list(parts)), 16) >> 1


class Streams:
    """One random stream per member, so that a member never depends on its neighbours."""

    def __init__(self, seeds: list[int], device: torch.device):
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """(E, *shape) in [0, 1)."""
        draw = [torch.rand(shape, generator=own, device=self.device) for own in self.generators]
        return torch.stack(draw)

    def order(self, member: int, count: int, length: int) -> Tensor:
        """``length`` of the numbers below ``count``: each once in random order, then over again."""
        own = self.generators[member]
        rounds = -(-length // count)
        draw = [torch.randperm(count, generator=own, device=self.device) for _ in range(rounds)]
        return torch.cat(draw)[:length]


class Linear(nn.Module):
    """A linear layer per member: ``(E, ..., in)`` to ``(E, ..., out)``."""

    def __init__(self, streams: Streams, inputs: int, outputs: int):
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter((2 * streams.uniform(inputs, outputs) - 1) * bound)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])


class Dropout(nn.Module):
    def __init__(self, streams: Streams, chance: float):
        super().__init__()
        self.streams, self.chance = streams, chance

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.chance:
            return x
        return x * (self.streams.uniform(*x.shape[1:]) >= self.chance) / (1 - self.chance)


def norm(x: Tensor) -> Tensor:
    """Layer normalisation; gain and offset would be absorbed by the linear layer after it."""
    return F.layer_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Multi-head attention as plain matrix products: over so few tokens nothing is faster."""

    def __init__(self, streams: Streams, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query = Linear(streams, width, width)
        self.key_value = Linear(streams, width, 2 * width)
        self.out = Linear(streams, width, width)
        self.dropout = Dropout(streams, dropout)

    def forward(self, x_EBQW: Tensor, y_EBKW: Tensor, mask_EBK: Tensor) -> Tensor:
        query = self._split(self.query(x_EBQW))
        key, value = map(self._split, self.key_value(y_EBKW).chunk(2, -1))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        # Finite, so that a clip without any key gives finite numbers; its channel gets no gate.
        scores = scores.masked_fill(~mask_EBK[..., None, None, :], torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
        return self.dropout(self.out(mixed))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class ContextBasedTransformer(nn.Module):
    """Cross-attention from guide to guided tokens, then self-attention, then feed-forward."""

    def __init__(self, streams: Streams, width: int, heads: int, dropout: float):
        super().__init__()
        self.cross = Attention(streams, width, heads, dropout)
        self.within = Attention(streams, width, heads, dropout)
        self.feed_forward = nn.Sequential(
            Linear(streams, width, 2 * width), nn.GELU(), Dropout(streams, dropout),
            Linear(streams, 2 * width, width), Dropout(streams, dropout),
        )

    def forward(self, x_EBQW: Tensor, x_mask: Tensor, y_EBKW: Tensor, y_mask: Tensor) -> Tensor:
        x_EBQW = x_EBQW + self.cross(norm(x_EBQW), norm(y_EBKW), y_mask)
        normed = norm(x_EBQW)
        x_EBQW = x_EBQW + self.within(normed, normed, x_mask)
        return x_EBQW + self.feed_forward(norm(x_EBQW))


class AdaptiveMultimodalFusion(nn.Module):
    """Gates over the channels, computed from all of them, softmax over those that are valid."""

    def __init__(self, streams: Streams, channels: int, width: int, dropout: float):
        super().__init__()
        members = len(streams.generators)
        self.absent = nn.Parameter(torch.zeros(members, 1, channels, width, device=streams.device))
        self.gate = Linear(streams, channels * width, channels)
        self.dropout = Dropout(streams, dropout)

    def forward(self, x_EBMW: Tensor, valid_EBM: Tensor) -> Tensor:
        x_EBMW = torch.where(valid_EBM[..., None], x_EBMW, self.absent)
        gates = self.gate(self.dropout(x_EBMW).flatten(-2))
        gates = gates.masked_fill(~valid_EBM, torch.finfo(gates.dtype).min).softmax(-1)
        return (gates[..., None] * x_EBMW).sum(-2)


class AGT(nn.Module):
    """Members of the Audio-Guided Transformer over any feature sets; sets may share a modality."""

    def __init__(self, inputs: Inputs, classes: int, config: FuseConfig, seeds: list[int]):
        super().__init__()
        self.streams = streams = Streams(seeds, inputs.values[0].device)
        width, dropout = config.width, config.dropout
        self.modality_dropout, self.guide = config.modality_dropout, str(config.guide)
        others = [str(name) for name in Modality if name in inputs.modality and name != self.guide]
        self.channels = [self.guide, *others]
        sizes = [values.shape[1:] for values in inputs.values]
        for place, (_, features) in enumerate(sizes):
            self.register_buffer(f"shift_{place}", streams.uniform(1, features) * 0)
            self.register_buffer(f"scale_{place}", streams.uniform(1, features) * 0 + 1)
        self.feature_dropout = Dropout(streams, config.feature_dropout)
        self.project = nn.ModuleList(Linear(streams, features, width) for _, features in sizes)
        # One vector per set and token: it says the modality and the place in time.
        self.place = nn.ParameterList(
            0.04 * (streams.uniform(1, tokens, width) - 0.5) for tokens, _ in sizes
        )
        self.stand_in = nn.Parameter(streams.uniform(1, 1, width) - 0.5)
        self.context = nn.ModuleDict(
            {
                name: ContextBasedTransformer(streams, width, config.heads, dropout)
                for name in others
            }
        )
        self.fuse = AdaptiveMultimodalFusion(streams, len(self.channels), width, dropout)
        self.classify = nn.Sequential(Dropout(streams, dropout), Linear(streams, width, classes))

    @torch.no_grad()
    def standardize(self, member: int, inputs: Inputs) -> None:
        """Give a member the mean and deviation per feature of the present tokens of ``inputs``."""
        for place, (values, mask) in enumerate(zip(inputs.values, inputs.mask, strict=True)):
            tokens = values[mask].float()
            if len(tokens) > 1:
                deviation, mean = torch.std_mean(tokens, 0)
                getattr(self, f"shift_{place}")[member] = mean
                scale = torch.where(deviation > 1e-6, deviation, 1)
                getattr(self, f"scale_{place}")[member] = scale

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        tokens, masks = self._tokens(inputs)
        guide, asks = self._guide(tokens, masks)
        pooled, valid = [_mean(guide, asks)], [masks[self.guide].any(-1)]
        for name in self.channels[1:]:
            guided = self.context[name](guide, asks, tokens[name], masks[name])
            pooled.append(_mean(guided, asks))
            valid.append(masks[name].any(-1))
        return self.classify(self.fuse(torch.stack(pooled, -2), torch.stack(valid, -1)))

    def _tokens(self, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Per modality the projected tokens ``(E, B, T, W)`` of its sets and ``(E, B, T)``."""
        tokens: dict[str, list] = {}
        masks: dict[str, list] = {}
        for place, (name, values) in enumerate(zip(inputs.modality, inputs.values, strict=True)):
            shift, scale = (getattr(self, f"{key}_{place}")[:, None] for key in ("shift", "scale"))
            x_EBTD = (values.to(shift.dtype) - shift) / scale
            x_EBTD = self.feature_dropout(x_EBTD.masked_fill(~inputs.mask[place][..., None], 0))
            projected = self.project[place](x_EBTD) + self.place[place]
            tokens.setdefault(name, []).append(projected)
            masks.setdefault(name, []).append(inputs.mask[place])
        joined = {name: torch.cat(parts, -1) for name, parts in masks.items()}
        if self.training and self.modality_dropout:
            joined = self._hide(joined)
        return {name: torch.cat(parts, -2) for name, parts in tokens.items()}, joined

    def _hide(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hide modalities at random, but never all that a clip has."""
        clips = next(iter(masks.values())).shape[1]
        keep = self.streams.uniform(clips, len(masks)) >= self.modality_dropout
        hidden = {name: mask & keep[..., [row]] for row, (name, mask) in enumerate(masks.items())}
        left = torch.stack([mask.any(-1) for mask in hidden.values()]).any(0)[..., None]
        return {name: torch.where(left, hidden[name], masks[name]) for name in masks}

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


def _mean(x_EBTW: Tensor, mask_EBT: Tensor) -> Tensor:
    weight = mask_EBT[..., None].to(x_EBTW.dtype)
    return (x_EBTW * weight).sum(-2) / weight.sum(-2)


def train(
    inputs: Inputs, lessons: list[Lesson], config: FuseConfig, steps: int = 0
) -> tuple[AGT, Tensor]:
    """Train one member per lesson from scratch, side by side.

    Feature statistics come from a lesson's own rows, so nothing of a held-out clip is seen.

    Args:
        steps: optimizer steps in an epoch; 0: as many as show the longest lesson once.

    Returns:
        The model, and its mean loss ``(E, epochs)``.
    """
    steps = steps or max(-(-len(lesson.rows) // config.batch) for lesson in lessons)
    classes = lessons[0].targets.shape[1]
    model = AGT(inputs, classes, config, [lesson.seed for lesson in lessons])
    for member, lesson in enumerate(lessons):
        model.standardize(member, inputs[lesson.rows])
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model.train()
    curves = []
    for epoch in range(config.epochs):
        rows, targets, weights = _epoch(lessons, model.streams, steps * config.batch)
        losses = []
        for step in range(steps):
            part = slice(step * config.batch, (step + 1) * config.batch)
            log_p = F.log_softmax(model(inputs[rows[:, part]]), -1)
            # A smoothed target spreads a little of its mass evenly over the classes.
            evenly, smooth = log_p.mean(-1), config.label_smoothing
            gain = (1 - smooth) * (targets[:, part] * log_p).sum(-1) + smooth * evenly
            loss = -(weights[:, part] * gain).mean(-1)
            optimizer.zero_grad()
            loss.sum().backward()
            done = (epoch * steps + step) / (config.epochs * steps)
            optimizer.param_groups[0]["lr"] = config.learning_rate * _warm_cosine(done)
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses).mean(0))
    return model.eval(), torch.stack(curves, 1).cpu()


def _epoch(lessons: list[Lesson], streams: Streams, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each member's rows ``(E, length)`` of an epoch in its own order, targets and weights."""
    orders = [streams.order(own, len(les.rows), length) for own, les in enumerate(lessons)]
    pairs = list(zip(lessons, orders, strict=True))
    return (
        torch.stack([lesson.rows[order] for lesson, order in pairs]),
        torch.stack([lesson.targets[order] for lesson, order in pairs]),
        torch.stack([(lesson.weights / lesson.weights.mean())[order] for lesson, order in pairs]),
    )


def _warm_cosine(done: float, warm: float = 0.1) -> float:
    """Learning-rate factor after the part ``done`` of all steps: linear rise, cosine to 0."""
    return min((done + 1e-3) / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def predict(model: AGT, inputs: Inputs, rows: Tensor) -> Tensor:
    """Log probabilities ``(E, n, C)`` of the ``(n,)`` rows, float32 on the CPU."""
    members = len(model.streams.generators)
    parts = [
        F.log_softmax(model(inputs[part.expand(members, -1)]).float(), -1).cpu()
        for part in rows.split(max(PREDICT_ROWS // members, 1))
    ]
    return torch.cat(parts, 1)
