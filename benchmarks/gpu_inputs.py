"""What the GPU check runs on: shards of drawn clips, and full-size models with random weights."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from gpu import Check

EMOTIONS = ("happy", "sad")
#: Clips with pictures and sound, transcripts, how many of each are labelled, and the clips of the plain loop.
COUNTS = {"clips": 200, "lines": 3000, "labeled": 96, "loop": 40}
TINY_COUNTS = {"clips": 20, "lines": 40, "labeled": 16, "loop": 4}
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY_CLIP = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
BAICHUAN = {
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 64000,
}
TINY_BAICHUAN = {
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 5,
    "num_attention_heads": 10,
    "vocab_size": 2048,
}
#: The published files are of at most so many bytes each.
FILE_BYTES = 10**10
#: Characters that the drawn transcripts use.
CHARACTERS = [chr(0x4E00 + number) for number in range(500)]


def counts(check: Check) -> dict[str, int]:
    return TINY_COUNTS if check.tiny else COUNTS


def baichuan_shape(check: Check) -> dict[str, int]:
    return TINY_BAICHUAN if check.tiny else BAICHUAN


def drawn_line(random: np.random.Generator) -> str:
    """A transcript as long as those of the challenge: 16 characters in the median, few over 60."""
    count = int(min(110, max(2, random.lognormal(2.8, 0.7))))
    return "".join(random.choice(CHARACTERS, count))


def _clip(number: int):
    """A clip as the shard stage leaves it: 16 smooth pictures, 2 to 8 s of sound, a line."""
    import cv2

    from mer_dist.shards.encode import RATE

    cv2.setNumThreads(1)
    random = np.random.default_rng(number)
    coarse = random.integers(0, 255, (16, 14, 14, 3), dtype=np.uint8)
    frames = [cv2.resize(frame, (224, 224), interpolation=cv2.INTER_CUBIC) for frame in coarse]
    seconds = float(random.uniform(2, 8))
    time = np.arange(int(RATE * seconds))
    sound = random.standard_normal(len(time)) * 3000 * np.abs(np.sin(time / 900))
    return _encoded(f"clip{number:05d}", number, drawn_line(random), frames, sound.astype(np.int16), seconds)


def _line(number: int):
    return _encoded(
        f"line{number:05d}", number, drawn_line(np.random.default_rng(10**6 + number)), [], None, 0.0
    )


def _encoded(name: str, number: int, transcript: str, frames, samples, seconds: float):
    from mer_dist.core.records import Clip
    from mer_dist.shards.encode import encode

    labeled = number < int(os.environ["GPU_LABELED"])
    clip = Clip(
        name=name,
        video=None,
        audio=None,
        transcript=transcript,
        label=EMOTIONS[number % 2] if labeled else None,
        split="labeled" if labeled else "unlabeled",
    )
    missing = [] if frames else ["audio", "video"]
    return encode(
        clip, frames=frames, samples=samples, seconds=seconds, face=True, missing=missing, problems=[]
    )


def step_shards(check: Check) -> None:
    """Shards of clips and of lines, as the shard stage writes them."""
    from mer_dist.config.sections import ShardConfig
    from mer_dist.shards import shard_index, writer
    from mer_dist.shards.settings import settings_fingerprint
    from mer_dist.storage import files
    from mer_dist.storage.run_folder import Run, ShardFolder

    # As if by the settings of the runs, which have no section shard.
    fingerprint = settings_fingerprint(ShardConfig())
    os.environ["GPU_LABELED"] = str(counts(check)["labeled"])
    for kind, make, size in (("clips", _clip, 80), ("lines", _line, 1000)):
        folder = Run(check.work / kind).shards
        folder.mkdir(parents=True, exist_ok=True)
        with get_context("spawn").Pool(min(12, os.cpu_count() or 1)) as pool:
            clips = pool.map(make, range(counts(check)[kind]), chunksize=8)
        rows = []
        for number, first in enumerate(range(0, len(clips), size)):
            batch = clips[first : first + size]
            sources = {clip.clip.name: "drawn" for clip in batch}
            rows += writer.write(folder, number, batch, fingerprint=fingerprint, sources=sources)
        shard_index.write_rows(ShardFolder(folder).index, rows)
        files.write_marker(folder, "drawn", clips=len(clips))


def step_models(check: Check) -> None:
    """CLIP-ViT-L/14, HuBERT-large and Baichuan-13B with random weights, drawn on the device."""
    import torch
    from gpu_device import device
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, HubertConfig, HubertModel

    from mer_dist.demo.models import CLIP_MEAN, CLIP_STD

    torch.manual_seed(0)
    shape, root = TINY_CLIP if check.tiny else CLIP, check.work / "models"
    patch = 56 if check.tiny else 14
    with device():
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                **shape, image_size=224, patch_size=patch, projection_dim=48 if check.tiny else 768
            )
        )
        hubert = HubertModel(
            HubertConfig(
                **shape,
                conv_dim=(32 if check.tiny else 512,) * 7,
                conv_bias=True,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
            )
        )
    clip.cpu().save_pretrained(root / "clip")
    hubert.cpu().save_pretrained(root / "hubert")
    pictures = {"size": 224, "crop_size": 224, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps(pictures))
    (root / "hubert" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    _save_baichuan(root / "baichuan", baichuan_shape(check))


def _save_baichuan(folder: Path, shape: dict[str, int]) -> None:
    """The published layout: .bin files in bf16 with an index, and the tokenizer."""
    from mer_dist.models.tokenizer import BaichuanTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = total = 0
    for name, dims in _weights(shape):
        own = 2 * math.prod(dims)
        if size + own > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append((name, dims))
        size, total = size + own, total + own
    place = {}
    for number, part in enumerate(files, 1):
        file = f"pytorch_model-{number:05d}-of-{len(files):05d}.bin"
        _draw(folder / file, part)
        place |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    random = np.random.default_rng(0)
    BaichuanTokenizer.train([drawn_line(random) for _ in range(400)], 900).save_pretrained(folder)
    published = {
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "hidden_act": "silu",
        "model_max_length": 4096,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps({**shape, **published}))


def _weights(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, words = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    yield "model.embed_tokens.weight", (words, width)
    for layer in range(shape["num_hidden_layers"]):
        for name, dims in (
            ("self_attn.W_pack", (3 * width, width)),
            ("self_attn.o_proj", (width, width)),
            ("mlp.gate_proj", (inner, width)),
            ("mlp.down_proj", (width, inner)),
            ("mlp.up_proj", (inner, width)),
            ("input_layernorm", (width,)),
            ("post_attention_layernorm", (width,)),
        ):
            yield f"model.layers.{layer}.{name}.weight", dims
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (words, width)


def _draw(path: Path, part: list[tuple[str, tuple[int, ...]]]) -> None:
    import torch
    from gpu_device import device

    state = OrderedDict()
    for name, dims in part:
        if len(dims) == 1:
            state[name] = torch.ones(dims, dtype=torch.bfloat16)
        else:
            state[name] = (torch.randn(dims, device=device(), dtype=torch.bfloat16) * 0.02).cpu()
    torch.save(state, path)
