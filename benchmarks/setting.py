"""What the benchmarks run on: generated clips in shards, and models large enough that Python is not
the limit, with random weights, in the published layout."""

from __future__ import annotations

from pathlib import Path

import encoders
import numpy as np
import torch

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.demo import corpus
from mer_dist.demo.models import CLIP_MEAN, CLIP_STD
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

LABELED, UNLABELED = 30, 30
#: Transcripts of the text job, and quantiles (minimum, 5 %, 25 %, ... maximum) of their characters,
#: as in MELD.
LINES = 1000
LENGTHS = ((0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1), (1, 3, 7, 13, 21, 30, 36, 47, 106))

CLIPS = """
run: {{folder: {folder}/clips}}
corpus: {{path: {folder}/demo/corpus}}
shard: {{clips: 6, frames: 8, image_size: 224, faces: none}}
extractors:
  clip: {{family: clip, path: {folder}/models/clip}}
  hubert: {{family: hubert, path: {folder}/models/hubert}}
  siglip2: {{family: image, path: {folder}/models/siglip2}}
  wavlm: {{family: audio, path: {folder}/models/wavlm}}
"""
TEXT = """
run: {{folder: {folder}/text}}
corpus: {{format: manifest, path: {folder}/lines.csv}}
shard: {{clips: 500}}
extractors:
  baichuan: {{family: baichuan, path: {folder}/models/baichuan}}
  qwen3: {{family: text, path: {folder}/models/qwen3}}
"""


def prepare(folder: Path) -> tuple[Path, Path]:
    """The models and shards, made once; returns the YAML files of the clips and of the text job."""
    lines = transcripts()
    if not files.read_marker(folder / "models"):
        make_models(folder / "models", lines)
        encoders.make(folder / "models", lines, encoders.LARGE, 224)
        files.write_marker(folder / "models", "benchmarks")
    corpus.make(folder / "demo", LABELED, UNLABELED)
    emotions = corpus.EMOTIONS
    rows = [f"line{number:05d},,,{line},{emotions[number % 6]},labeled" for number, line in enumerate(lines)]
    files.write_text(folder / "lines.csv", "\n".join(["name,video,audio,transcript,label,split", *rows]))
    paths = folder / "clips.yaml", folder / "text.yaml"
    for path, text in zip(paths, (CLIPS, TEXT), strict=True):
        files.write_text(path, text.format(folder=folder))
        config = configuration.load(path)
        shard(config)
        configuration.save(config, Run(config.run.folder).config)
    return paths


def transcripts() -> list[str]:
    """Generated lines, cut or repeated to lengths like those of real transcripts."""
    draw = np.random.default_rng(0)
    lengths = np.interp(draw.random(LINES), *LENGTHS).round().astype(int)
    return [(line * 20)[:length] for line, length in zip(corpus.lines(LINES), lengths, strict=True)]


def make_models(folder: Path, lines: list[str]) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, HubertConfig, HubertModel

    from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
    from mer_dist.models.tokenizer import BaichuanTokenizer

    torch.manual_seed(0)
    tower = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    side = 224
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(**tower, image_size=side, patch_size=16, projection_dim=256)
    ).save_pretrained(folder / "clip")
    files.write_json(
        folder / "clip" / "preprocessor_config.json",
        {
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    HubertModel(
        HubertConfig(
            **tower, conv_dim=(512,) * 7, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
        )
    ).save_pretrained(folder / "hubert")
    files.write_json(folder / "hubert" / "preprocessor_config.json", {"do_normalize": True})
    tokenizer = BaichuanTokenizer.train(lines, 600)
    tokenizer.save_pretrained(folder / "baichuan")
    BaichuanForCausalLM(
        BaichuanConfig(
            vocab_size=8000,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            architectures=["BaichuanForCausalLM"],
        )
    ).save_pretrained(folder / "baichuan")


def load(path: Path, *overrides: str) -> Config:
    return configuration.load(path, overrides)
