"""Facts about HuBERT, without its model."""

from __future__ import annotations

from mer_dist.models.family import FAMILIES, SECONDS, Family

SAMPLE_RATE = 16_000
#: Audio samples that one output step sees; shorter audio has no step.
RECEPTIVE_FIELD = 400
#: Output steps a second.
STEPS = 50
_CHINESE_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "conv_dim": (512,) * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
HUBERT = Family(
    modality="audio",
    model_types=("hubert",),
    files=("preprocessor_config.json",),
    # On a CPU every window runs alone: one is enough work, and padding would cost more than a batch
    # gains.
    budgets=(0, 120),
    # Autograd keeps 0.19 GB per second of audio in HuBERT-large.
    training_budgets=(10, 60, 240),
    enough=lambda row: row.samples >= RECEPTIVE_FIELD,
    longest_segment=lambda config: config.window,
    typical_clip=lambda config, frames: (1, round(SECONDS * STEPS)),
    published={"chinese-hubert-large": _CHINESE_LARGE},
    extractor="mer_dist.models.hubert:HubertExtractor",
)
FAMILIES.add("hubert", HUBERT, __name__)
