"""The whole job of the demo with other encoders, exchanged by nothing but YAML: SigLIP 2, WavLM and Qwen3. ::

    python benchmarks/encoders.py --folder runs/encoders

The models are small and have random weights, in the layout of transformers; SigLIP 2 and Qwen3 are fine-tuned by LoRA,
by two processes under ZeRO-3. A second call does only what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import torch
import yaml

from mer_dist.demo import corpus
from mer_dist.storage import files

Size = dict[str, int]
#: As the other models of the benchmarks, and as those of the demo.
LARGE: Size = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
SMALL: Size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
CODES = 0, 3  # done, and done but for the damaged clips of the demo
TUNED = {
    "method": "lora",
    "lora": {"rank": 32, "alpha": 64},
    "epochs": 14,
    "batch": 16,
    "micro_batch": 8,
    "learning_rate": 3e-3,
    "precision": "fp32",
}


def make(folder: Path, lines: list[str], size: Size, side: int) -> None:
    """The three models.

    Args:
        lines: that the tokenizer is trained on.
        side: of the frames, in pixels.
    """
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, WavLMConfig, WavLMModel

    torch.manual_seed(0)
    patches = (side // 16) ** 2
    tower = Siglip2VisionConfig(**size, num_patches=patches, patch_size=16)
    Siglip2VisionModel(tower).save_pretrained(folder / "siglip2")
    files.write_json(
        folder / "siglip2" / "preprocessor_config.json",
        {
            "max_num_patches": patches,
            "patch_size": 16,
            "resample": 2,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    WavLMModel(
        WavLMConfig(
            **size,
            conv_dim=(size["hidden_size"],) * 7,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            conv_bias=True,
        )
    ).save_pretrained(folder / "wavlm")
    files.write_json(folder / "wavlm" / "preprocessor_config.json", {"do_normalize": True})
    _make_qwen3(folder / "qwen3", lines, size)


def _make_qwen3(folder: Path, lines: list[str], size: Size) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=letters, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    Qwen3Model(
        Qwen3Config(**size, vocab_size=made.get_vocab_size(), num_key_value_heads=2, head_dim=32)
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/encoders"))
    folder = parser.parse_args().folder
    command = [sys.executable, "-m", "mer_dist"]
    subprocess.run([*command, "demo", folder / "demo"], check=True)
    if not files.read_marker(folder / "models"):
        make(folder / "models", corpus.lines(400), SMALL, 64)
        files.write_marker(folder / "models", "benchmarks")
    # Equal objects would become aliases, which a configuration may not have.
    job = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text("utf-8"))
    models = (folder / "models").absolute()
    job["run"]["folder"] = str(folder / "run")
    job["corpus"]["path"] = str(folder / "demo" / "corpus")
    job["extractors"] = {
        "siglip2": {
            "family": "image",
            "path": str(models / "siglip2"),
            "frames": 4,
            "finetune": deepcopy(TUNED),
        },
        "wavlm": {"family": "audio", "path": str(models / "wavlm")},
        "qwen3": {"family": "text", "path": str(models / "qwen3"), "finetune": deepcopy(TUNED)},
    }
    files.write_text(folder / "job.yaml", yaml.safe_dump(job, sort_keys=False))
    done = subprocess.run([*command, "run", folder / "job.yaml"], check=False)
    if done.returncode not in CODES:
        sys.exit(done.returncode)
    subprocess.run([*command, "verify", folder / "run"], check=True)
    subprocess.run([*command, "score", folder / "run", folder / "demo" / "truth.csv"], check=True)


if __name__ == "__main__":
    main()
