"""The models that test_zero3 and test_resume train: small, without the dropout that ranks draw otherwise."""

from __future__ import annotations

from pathlib import Path

import small_models
import torch
import zero3_worker

from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
from mer_dist.models.tokenizer import BaichuanTokenizer


def make(folder: Path) -> Path:
    sizes = {**small_models.SIZES, "num_hidden_layers": 2}
    small_models.make(folder, [f"我说第{row}句话" for row in range(34)], sizes)
    # Ranks draw other dropouts than one process.
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    small_models.make_hubert(folder / "hubert", sizes, **dict.fromkeys(dropouts, 0.0))
    tokenizer = BaichuanTokenizer.train(zero3_worker.lines()[0] * 4, 400)
    tokenizer.save_pretrained(folder / "baichuan")
    torch.manual_seed(0)
    # bitsandbytes packs 4-bit weights in blocks of 64; six heads have the slopes of no power of two.
    config = BaichuanConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=6,
        initializer_range=0.05,
    )
    BaichuanForCausalLM(config).save_pretrained(folder / "baichuan")
    return folder
