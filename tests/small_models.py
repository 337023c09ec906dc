"""The three architectures, very small, with random weights, in the published layout."""

from __future__ import annotations

from pathlib import Path

import torch

from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
from mer_dist.models.tokenizer import BaichuanTokenizer

#: Families whose models :func:`make` makes; those of many architectures are in any_encoder.py.
FAMILIES = ("clip", "hubert", "baichuan")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}


def make(folder: Path, lines: list[str], sizes: dict[str, int] = SIZES) -> Path:
    """``folder``/{clip, hubert, baichuan}; the tokenizer is trained on ``lines``."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    vision = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    text = {**sizes, "vocab_size": 60, "eos_token_id": 2, "bos_token_id": 1}
    clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    CLIPModel(clip).save_pretrained(folder / "clip")
    crop = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop)
    images.save_pretrained(folder / "clip")
    make_hubert(folder / "hubert", sizes)
    tokenizer = BaichuanTokenizer.train(lines * 20, 285)
    tokenizer.save_pretrained(folder / "baichuan")
    baichuan = BaichuanConfig(vocab_size=len(tokenizer), **sizes)
    BaichuanForCausalLM(baichuan).save_pretrained(folder / "baichuan")
    return folder


def make_hubert(folder: Path, sizes: dict[str, int] = SIZES, **settings) -> Path:
    """Like HuBERT-large unless ``settings`` say otherwise; the positional convolution is as wide."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    config = HubertConfig(
        **sizes,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=16,
        **{**large, **settings},
    )
    HubertModel(config).save_pretrained(folder)
    sound = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    sound.save_pretrained(folder)
    return folder
