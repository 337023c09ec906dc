"""Features of clips as tensors with masks: the input of fusion models.

Shape suffixes: E members, N all clips, T tokens, D features of a set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mer_dist.features.moments import CACHED, NEAR, PLAIN
from mer_dist.fusion.registered import FeatureShape

#: Standard deviations beyond which values are clipped.
LIMIT = 10.0


@dataclass
class FeatureBatch:
    """The tokens of all clips, one entry per feature set, contiguous and on one device."""

    modality: list[str]
    #: each (N, T, D) float; the values of an absent token are never used.
    values: list[Tensor]
    #: each (N, T) bool, True where a token is present.
    mask: list[Tensor]
    #: each (D,), (D,): the values were standardised as (x - shift) / scale; empty before.
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def to(self, device: torch.device | str) -> FeatureBatch:
        values = [values.to(device) for values in self.values]
        return FeatureBatch(self.modality, values, [mask.to(device) for mask in self.mask], self.moments)

    def __getitem__(self, rows: Tensor) -> FeatureBatch:
        """Clips by index; ``rows`` may have any shape, which replaces the dimension N."""
        # Four times as fast as values[rows] on a CPU.
        flat = [values.index_select(0, rows.flatten()) for values in self.values]
        flat = [some.float() if some.dtype is torch.half else some for some in flat]
        values = [some.unflatten(0, rows.shape) for some in flat]
        return FeatureBatch(self.modality, values, [mask[rows] for mask in self.mask])

    def shared(self, members: int) -> FeatureBatch:
        """The same clips for ``members`` members, (E, N, T, D), without a copy for each."""
        values = [values.expand(members, *values.shape) for values in self.values]
        return FeatureBatch(self.modality, values, [mask.expand(members, *mask.shape) for mask in self.mask])

    @property
    def shapes(self) -> list[FeatureShape]:
        """One per feature set."""
        sizes = (values.shape[-2:] for values in self.values)
        return [FeatureShape(name, *size) for name, size in zip(self.modality, sizes, strict=True)]

    @property
    def present(self) -> Tensor:
        """(N,) bool: clips that have at least one modality."""
        return torch.stack([mask.any(-1) for mask in self.mask]).any(0)


def standardize(inputs: FeatureBatch, moments_of: Tensor | None = None) -> FeatureBatch:
    """Every feature with mean 0 and std 1 over the present tokens, absent ones 0; in place.

    This uses no label, so clips to be predicted may be included: moments of a few labelled clips
    alone would be little more than noise. Values beyond :data:`LIMIT` stds are clipped.

    Args:
        moments_of: (N,) bool, the clips that give mean and std; None: all.
    """
    for x_NTD, mask_NT in zip(inputs.values, inputs.mask, strict=True):
        counted = mask_NT if moments_of is None else mask_NT & moments_of[:, None]
        own = _moments(x_NTD.flatten(0, 1), counted.flatten())
        inputs.moments.append(own)
        apply_moments(x_NTD, mask_NT, *own)
    return inputs


def apply_moments(x_NTD: Tensor, mask_NT: Tensor, shift: Tensor, scale: Tensor) -> None:
    """Standardise values with these moments ``(D,)``, in place; absent tokens are 0."""
    reciprocal = 1 / scale
    for x, there in _blocks(x_NTD.flatten(0, 1), mask_NT.flatten()):
        x.sub_(shift).mul_(reciprocal).clamp_(-LIMIT, LIMIT).masked_fill_(~there, 0)


def _blocks(x_ND: Tensor, mask_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parts that fit the cache: the full array would be read from memory a dozen times."""
    rows = max(CACHED // x_ND.shape[1], 1)
    return list(zip(x_ND.split(rows), mask_N[:, None].split(rows), strict=True))


def _moments(x_ND: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the rows that count."""
    blocks = _blocks(x_ND, counted)
    zero = torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    total = max(int(counted.sum()), 1)
    mean = sum((torch.where(own, x, 0).sum(0) for x, own in blocks), zero).div(total).to(x_ND.dtype)
    squares = sum((torch.where(own, x - mean, 0).square().sum(0) for x, own in blocks), zero)
    std = squares.div(max(total - 1, 1)).sqrt().to(x_ND.dtype)
    odd = ~((std > PLAIN) & (std > NEAR * mean.abs()) & std.isfinite())
    if odd.any():
        some = x_ND[:, odd][counted].double()
        center = some.sum(0) / total
        own = (some - center).square().sum(0).div(max(total - 1, 1)).sqrt()
        mean[odd] = center.to(mean.dtype)
        std[odd] = torch.where(own > PLAIN * center.abs(), own, 1).to(std.dtype)
    return mean, std
