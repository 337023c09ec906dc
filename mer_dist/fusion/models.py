"""Models that predict an emotion from the feature sets of a clip: AGT and its baselines.

This Audio-Guided Transformer follows the roles in Shi & Gao 2024, "Audio-Guided Fusion Techniques
for Multimodal Emotion Analysis", which leaves the details open::

    feature sets ── project, + modality and position ──▶ tokens of each modality
    each set: feed-forward                               before fusion
    per other modality: Context-Based Transformer        query tokens attend to key/value tokens
    query, query→A, query→B ── Adaptive Multimodal Fusion ──▶ gates ▶ weighted sum
    weighted sum ── feed-forward ── linear ──▶ logits
    feature sets ── linear skip ──────────────────────────────────────────────────▶ + logits

Masks mark missing data everywhere: an absent token is never a key, an absent channel gets no gate,
and a learned query replaces the query modality where a clip lacks it.

Every model here is an ensemble of members, see :mod:`mer_dist.fusion.layers`. Shape suffixes: E
members, B clips, T tokens, D features of a set, W model width, M channels, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mer_dist.core.records import Modality
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.layers import Attention, Dropout, FeedForward, Linear, RngStreams, masked_mean, norm
from mer_dist.fusion.members import FusionModel
from mer_dist.fusion.registered import FeatureShape, register


class ContextBasedTransformer(nn.Module):
    """Cross-attention from query to key/value tokens, then self-attention, then feed-forward."""

    def __init__(self, streams: RngStreams, width: int, heads: int, dropout: list[float]):
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
    """Combines channels ``(E, B, M, W)`` with validity ``(E, B, M)`` into a vector ``(E, B, W)``.

    ``gating`` is Adaptive Multimodal Fusion: a weight per channel, computed from all channels,
    with a softmax over the valid ones.
    """

    def __init__(self, streams: RngStreams, channels: int, width: int, fusion: str, dropout: list[float]):
        super().__init__()
        members = len(streams.generators)
        self.kind = fusion
        if self.kind != "mean":
            absent = torch.zeros(members, 1, channels, width, dtype=streams.dtype, device=streams.device)
            self.absent = nn.Parameter(absent)
            outputs = channels if self.kind == "gating" else width
            self.mix = Linear(streams, channels * width, outputs)
        self.dropout = Dropout(streams, dropout)

    def forward(self, x_EBMW: Tensor, valid_EBM: Tensor) -> Tensor:
        if self.kind == "mean":
            return masked_mean(x_EBMW, valid_EBM)
        x_EBMW = torch.where(valid_EBM[..., None], x_EBMW, self.absent)
        if self.kind == "concatenate":
            return self._mixed(x_EBMW)
        return (self._softmax(self._mixed(x_EBMW), valid_EBM)[..., None] * x_EBMW).sum(-2)

    def gates(self, x_EBMW: Tensor, valid_EBM: Tensor) -> Tensor:
        """The weight of each channel, ``(E, B, M)``, of kind ``gating``."""
        return self._softmax(self._mixed(torch.where(valid_EBM[..., None], x_EBMW, self.absent)), valid_EBM)

    def _mixed(self, x_EBMW: Tensor) -> Tensor:
        return self.mix(self.dropout(x_EBMW).flatten(-2))

    @staticmethod
    def _softmax(mixed: Tensor, valid_EBM: Tensor) -> Tensor:
        return mixed.masked_fill(~valid_EBM, torch.finfo(mixed.dtype).min).softmax(-1)


@register("agt", batched=True)
class AGT(FusionModel):
    """The Audio-Guided Transformer over any feature sets; sets may share a modality.

    Args:
        dropout: rate per member.
        feature_dropout: probability that a single feature is dropped.
        modality_dropout: probability that a modality of a training clip with others is dropped.
        query_modality: its tokens are the queries of the cross-attention.
        cross_attention: False: every modality goes to the fusion directly.
        fusion: ``gating``, ``concatenate`` or ``mean``.
        linear_skip: a linear path from the features to the logits beside the transformer.
    """

    def __init__(
        self,
        sets: list[FeatureShape],
        classes: int,
        streams: RngStreams,
        *,
        width: int,
        heads: int,
        dropout: list[float],
        feature_dropout: float,
        modality_dropout: float,
        query_modality: str = "audio",
        cross_attention: bool = True,
        fusion: str = "gating",
        linear_skip: bool = True,
    ):
        super().__init__()
        self.streams, self.query_modality = streams, query_modality
        self.modality_dropout = streams.rate(modality_dropout)
        present = {one.modality for one in sets}
        others = [str(name) for name in Modality if name in present and name != query_modality]
        self.channels = [query_modality, *others]
        self.feature_dropout = Dropout(streams, feature_dropout)
        self.project = nn.ModuleList(Linear(streams, one.dims, width) for one in sets)
        # One vector per set and token: it encodes the modality and the position in time.
        self.position = nn.ParameterList(0.04 * (streams.uniform(1, one.tokens, width) - 0.5) for one in sets)
        self.encode = nn.ModuleList(FeedForward(streams, width, dropout) for _ in sets)
        self.learned_query = nn.Parameter(streams.uniform(1, 1, width) - 0.5)
        self.cross_attention = nn.ModuleDict(
            {
                name: ContextBasedTransformer(streams, width, heads, dropout)
                for name in (others if cross_attention else ())
            }
        )
        self.fuse = Fusion(streams, len(self.channels), width, fusion, dropout)
        self.refine = FeedForward(streams, width, dropout)
        self.classify = nn.Sequential(Dropout(streams, dropout), Linear(streams, width, classes))
        self.linear_skips = nn.ModuleList(
            Linear(streams, one.dims, classes) for one in (sets if linear_skip else ())
        )
        for direct in self.linear_skips:
            nn.init.zeros_(direct.get_parameter("weight"))

    def forward(self, inputs: FeatureBatch) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        hidden = self._hide(inputs) if self.training and self.modality_dropout.some else inputs.mask
        values = [self.feature_dropout(values) for values in inputs.values]
        tokens, masks = self._tokens(inputs.modality, values, hidden)
        query, query_mask = self._query(tokens, masks)
        pooled, valid = [masked_mean(query, query_mask)], [masks[self.query_modality].any(-1)]
        for name in self.channels[1:]:
            if name in self.cross_attention:
                attended = self.cross_attention[name](query, query_mask, tokens[name], masks[name])
                pooled.append(masked_mean(attended, query_mask))
            else:
                pooled.append(masked_mean(tokens[name], masks[name]))
            valid.append(masks[name].any(-1))
        fused = self.fuse(torch.stack(pooled, -2), torch.stack(valid, -1))
        logits = self.classify(fused + self.refine(norm(fused)))
        for direct, of_set, mask in zip(self.linear_skips, values, hidden, strict=False):
            logits = logits + masked_mean(direct(of_set), mask)
        return logits

    def _tokens(self, modality: list[str], values: list[Tensor], hidden: list[Tensor]) -> tuple[dict, dict]:
        """Per modality the projected tokens ``(E, B, T, W)`` of its sets and masks ``(E, B, T)``."""
        tokens: dict[str, list] = {}
        masks: dict[str, list] = {}
        for index, name in enumerate(modality):
            projected = self.project[index](values[index]) + self.position[index]
            tokens.setdefault(name, []).append(projected + self.encode[index](norm(projected)))
            masks.setdefault(name, []).append(hidden[index])
        return (
            {name: torch.cat(parts, -2) for name, parts in tokens.items()},
            {name: torch.cat(parts, -1) for name, parts in masks.items()},
        )

    def _hide(self, inputs: FeatureBatch) -> list[Tensor]:
        """The masks with modalities dropped at random, but never all those of a clip."""
        kinds = list(dict.fromkeys(inputs.modality))
        clips = inputs.mask[0].shape[1]
        keep = self.streams.kept(self.modality_dropout, clips, len(kinds)).split(1, -1)
        hidden = [
            mask & keep[kinds.index(name)] for name, mask in zip(inputs.modality, inputs.mask, strict=True)
        ]
        left = torch.stack([mask.any(-1) for mask in hidden]).any(0)[..., None]
        return [torch.where(left, some, mask) for some, mask in zip(hidden, inputs.mask, strict=True)]

    def _query(self, tokens: dict, masks: dict) -> tuple[Tensor, Tensor]:
        """The query tokens, with the learned query in first position where a clip has none."""
        if self.query_modality not in tokens:  # no feature set of that modality at all
            some = next(iter(masks.values()))[..., :1]
            masks[self.query_modality] = torch.zeros_like(some)
            tokens[self.query_modality] = self.learned_query.expand(*some.shape, -1)
        mask = masks[self.query_modality]
        first = torch.arange(mask.shape[-1], device=mask.device) == 0
        query_mask = mask | (first & ~mask.any(-1, keepdim=True))
        return torch.where(mask[..., None], tokens[self.query_modality], self.learned_query), query_mask


@register("attention", batched=True)
class AttentionFusion(FusionModel):
    """The challenge baseline's ``attention`` model: an encoder per set, weights from all of them.

    After MERTools (Lian et al. 2024, MER2024 baseline): utterance embeddings, three layers each,
    weights without softmax, zeros for absent sets.
    """

    def __init__(
        self, sets: list[FeatureShape], classes: int, streams: RngStreams, *, width: int, dropout: list[float]
    ):
        super().__init__()
        self.streams = streams
        self.encode = nn.ModuleList(_perceptron(streams, one.dims, width, dropout) for one in sets)
        self.look = _perceptron(streams, len(sets) * width, width, dropout)
        self.weigh, self.classify = Linear(streams, width, len(sets)), Linear(streams, width, classes)

    def forward(self, inputs: FeatureBatch) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        parts = [encode(x) for encode, x in zip(self.encode, _utterances(inputs), strict=True)]
        weights = self.weigh(self.look(torch.cat(parts, -1)))
        return self.classify((weights[..., None] * torch.stack(parts, -2)).sum(-2))


def _perceptron(streams: RngStreams, inputs: int, width: int, dropout: list[float]) -> nn.Sequential:
    return nn.Sequential(
        Dropout(streams, dropout),
        Linear(streams, inputs, width),
        nn.ReLU(),
        Linear(streams, width, width),
        nn.ReLU(),
        Linear(streams, width, width),
        nn.ReLU(),
    )


def _utterances(inputs: FeatureBatch) -> list[Tensor]:
    """One embedding per clip and set, ``(E, B, D)``."""
    return [masked_mean(values, mask) for values, mask in zip(inputs.values, inputs.mask, strict=True)]


class _Concatenation(FusionModel, nn.Sequential):
    """These layers on the concatenated utterance embeddings."""

    def __init__(self, streams: RngStreams, *layers: nn.Module):
        super().__init__(*layers)
        self.streams = streams

    def forward(self, inputs: FeatureBatch) -> Tensor:
        """Logits ``(E, B, C)`` of inputs whose rows are ``(E, B)``."""
        return super().forward(torch.cat(_utterances(inputs), -1))


@register("mlp", batched=True)
class MLP(_Concatenation):
    """One hidden layer."""

    def __init__(
        self,
        sets: list[FeatureShape],
        classes: int,
        streams: RngStreams,
        *,
        width: int,
        dropout: list[float],
        feature_dropout: float,
    ):
        super().__init__(
            streams,
            Dropout(streams, feature_dropout),
            Linear(streams, sum(one.dims for one in sets), width),
            nn.ReLU(),
            Dropout(streams, dropout),
            Linear(streams, width, classes),
        )


@register("linear", batched=True)
class LinearFusion(_Concatenation):
    """No hidden layer."""

    def __init__(
        self, sets: list[FeatureShape], classes: int, streams: RngStreams, *, feature_dropout: float
    ):
        dims = sum(one.dims for one in sets)
        super().__init__(streams, Dropout(streams, feature_dropout), Linear(streams, dims, classes))
