"""Adapters that were never trained: drawn at random, saved as a training saves them."""

from __future__ import annotations

from pathlib import Path

import torch

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models.classifier import save, trainable_classifier


def trained(config: ExtractorConfig, folder: Path) -> Path:
    """An adapter that changes what the model says a good deal."""
    classifier = trainable_classifier(config, 3, 0, sharded=False)
    random = torch.Generator().manual_seed(1)
    weights = {
        name: 0.1 * torch.randn(value.shape, generator=random)
        for name, value in classifier.named_parameters()
        if value.requires_grad
    }
    save(classifier, weights, folder)
    return folder


@torch.no_grad()
def embeddings(backbone, family: str) -> torch.Tensor:
    """What the backbone alone makes of one input, as plain transformers would call it."""
    random = torch.Generator().manual_seed(0)
    dtype = backbone.get_submodule("base_model.model" if hasattr(backbone, "peft_config") else "").dtype
    if family == "clip":
        return backbone(
            pixel_values=torch.randn(3, 3, 32, 32, generator=random).to(dtype)
        ).image_embeds.float()
    if family == "hubert":
        return backbone(torch.randn(2, 3200, generator=random).to(dtype)).last_hidden_state.float()
    ids = torch.randint(3, 200, (2, 9), generator=random)
    return backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Difference over the spread of what was expected."""
    return float(
        (found - expected).norm() / (expected - expected.mean((0, 1) if expected.dim() > 2 else 0)).norm()
    )


def nothing(config: ExtractorConfig, folder: Path) -> Path:
    """An adapter that adds nothing."""
    classifier = trainable_classifier(config, 3, 0, sharded=False)
    save(
        classifier,
        {
            name: torch.zeros_like(value)
            for name, value in classifier.named_parameters()
            if value.requires_grad
        },
        folder,
    )
    return folder
