"""Facts about CLIP, without its model."""

from __future__ import annotations

from mer_dist.models.family import FAMILIES, Family

_LARGE_PATCH14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP = Family(
    modality="video",
    model_types=("clip", "clip_vision_model"),
    files=("preprocessor_config.json",),
    # On a CPU a single frame is enough work; larger batches are no faster.
    budgets=(8, 256),
    # Autograd keeps 0.33 GB per frame of CLIP-L/14.
    training_budgets=(16, 32, 128),
    enough=lambda row: row.frames > 0,
    longest_segment=lambda config: 1,
    typical_clip=lambda config, frames: (min(frames, config.frames or frames),) * 2,
    published={"clip-vit-large-patch14": _LARGE_PATCH14},
    extractor="mer_dist.models.clip:ClipExtractor",
)
FAMILIES.add("clip", CLIP, __name__)
