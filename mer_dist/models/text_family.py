"""Facts about the text models that transformers knows, without any of them."""

from __future__ import annotations

from mer_dist.models.family import FAMILIES, TOKENS, Family, asks_for_code

#: ``model_type`` of encoders, which see a token from both sides.
ENCODERS = ("bert", "roberta", "xlm-roberta", "deberta-v2", "electra", "modernbert")
#: Of decoders, in which a token sees those before it.
DECODERS = ("qwen2", "qwen3", "llama", "gemma3_text", "bloom", "mistral")


def _refuse(settings: dict) -> str:
    """Why a config with a valid ``model_type`` cannot be used; empty if it can."""
    if settings.get("is_encoder_decoder"):
        return "this is an encoder with a decoder; give a model of one of the two"
    return asks_for_code(settings)


TEXT = Family(
    modality="text",
    model_types=(*ENCODERS, *DECODERS),
    files=("tokenizer_config.json",),
    refuse_settings=_refuse,
    budgets=(512, 8192),
    # As for Baichuan-13B; smaller models keep less.
    training_budgets=(512, 512, 4096),
    enough=lambda row: bool((row.transcript or "").strip()),
    longest_segment=lambda config: config.max_tokens,
    typical_clip=lambda config, frames: (1, min(TOKENS, config.max_tokens)),
    extractor="mer_dist.models.text:TextExtractor",
)
FAMILIES.add("text", TEXT, __name__)
