"""Facts about Baichuan, without its model."""

from __future__ import annotations

import re

from mer_dist.models.family import FAMILIES, TOKENS, Family

#: Keys that only other architectures under Baichuan's ``model_type`` have.
_FOREIGN = re.compile(r"max_position_embeddings|num_key_value_heads|sliding_window|(rope|rotary)_\w+")


def not_baichuan_13b(settings: dict) -> str:
    """Why a config with ``model_type: baichuan`` is not Baichuan-13B v1; empty if it is.

    Other models use that type; run as v1, they would give wrong numbers and no error.
    """
    only = "only Baichuan-13B v1 is supported"
    architectures = settings.get("architectures") or []
    if "BaiChuanForCausalLM" in architectures:
        return f"this is Baichuan-7B (rotary positions); {only}"
    if settings.get("vocab_size") == 125696 or "z_loss_weight" in settings:
        return f"this is Baichuan2 (normalised head); {only}"
    if foreign := next(filter(_FOREIGN.fullmatch, settings), None):
        return f"the key {foreign} belongs to another architecture than Baichuan-13B v1; {only}"
    if unknown := [name for name in architectures if not name.startswith("Baichuan")]:
        return f"the architecture {unknown[0]} is unknown; {only}"
    if settings.get("hidden_act", "silu") != "silu" or settings.get("tie_word_embeddings"):
        return f"hidden_act or tie_word_embeddings differ from Baichuan-13B v1; {only}"
    width, heads = settings.get("hidden_size", 5120), settings.get("num_attention_heads", 40)
    if width % heads:
        return f"hidden_size {width} is no multiple of num_attention_heads {heads}"
    return ""


_13B = {
    "vocab_size": 64000,
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
BAICHUAN = Family(
    modality="text",
    model_types=("baichuan",),
    files=("tokenizer.model",),
    refuse_settings=not_baichuan_13b,
    budgets=(512, 8192),
    # Autograd keeps 8.8 MB per token of Baichuan-13B. 4096 tokens are the 32 lines of a step in one
    # pass; on two GPUs of 24 GB, half of the model leaves room for 512.
    training_budgets=(512, 512, 4096),
    enough=lambda row: bool((row.transcript or "").strip()),
    longest_segment=lambda config: config.max_tokens,
    typical_clip=lambda config, frames: (1, min(TOKENS, config.max_tokens)),
    published={"Baichuan-13B-Base": _13B, "Baichuan-13B-Chat": _13B},
    extractor="mer_dist.models.baichuan_extractor:BaichuanExtractor",
)
FAMILIES.add("baichuan", BAICHUAN, __name__)
