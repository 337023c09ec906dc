"""Small random models of the architectures that transformers knows, in the layout that its own ``save_pretrained``
writes, with their tokenizers and preprocessors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.models.classifier import load_extractor, merged, save, trainable_classifier

_WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
LINES = [f"我说第{row}句话，今天是{row}号" for row in range(60)]
#: model_type -> settings beside the common ones.
TEXT = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "max_position_embeddings": 82},
    "xlm-roberta": {"type_vocab_size": 1, "max_position_embeddings": 82},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "electra": {"embedding_size": 32},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "llama": {"num_key_value_heads": 2},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "layer_types": None},
    "bloom": {"n_head": 4, "n_layer": 5},
    "mistral": {"num_key_value_heads": 2, "head_dim": 8},
}


#: Of sound, by name of the case: model_type, and settings beside the common ones.
AUDIO = {
    "hubert": ("hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    "hubert base": ("hubert", {"feat_extract_norm": "group"}),
    "wav2vec2": ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    "wav2vec2 base": ("wav2vec2", {"feat_extract_norm": "group"}),
    "wavlm": ("wavlm", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    "wavlm base": ("wavlm", {"feat_extract_norm": "group"}),
    "data2vec-audio": ("data2vec-audio", {"num_conv_pos_embeddings": 2}),
    "unispeech-sat": ("unispeech-sat", {"feat_extract_norm": "group"}),
}


#: Of sound that is heard as a spectrogram: model_type -> settings, and the class and the settings of its preprocessor.
SPECTROGRAM = {
    "whisper": (
        {
            "d_model": 32,
            "encoder_layers": 5,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "vocab_size": 30,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "WhisperFeatureExtractor",
        {"feature_size": 16, "chunk_length": 1},
    ),
    "audio-spectrogram-transformer": (
        _WIDTH | {"num_hidden_layers": 5, "max_length": 96, "num_mel_bins": 36},
        "ASTFeatureExtractor",
        {"max_length": 96, "num_mel_bins": 36},
    ),
    "wav2vec2-bert": (
        _WIDTH
        | {
            "num_hidden_layers": 5,
            "feature_projection_input_dim": 32,
            "position_embeddings_type": "relative_key",
            "conv_depthwise_kernel_size": 5,
        },
        "SeamlessM4TFeatureExtractor",
        {"feature_size": 16, "num_mel_bins": 16},
    ),
}


def audio(folder: Path, case: str, seed: int = 0) -> Path:
    """A model of sound; returns its folder."""
    import transformers
    from transformers import CONFIG_MAPPING, Wav2Vec2FeatureExtractor

    if case in SPECTROGRAM:
        settings, preprocessor, more = SPECTROGRAM[case]
        _save_model(CONFIG_MAPPING[case](**settings), folder, seed)
        getattr(transformers, preprocessor)(**more).save_pretrained(folder)
        return folder
    model_type, more = AUDIO[case]
    common = _WIDTH | {
        "num_hidden_layers": 5,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    _save_model(CONFIG_MAPPING[model_type](**(common | more)), folder, seed)
    normalize = more.get("feat_extract_norm") != "group"
    Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=normalize).save_pretrained(folder)
    return folder


_PIXELS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.45],
    "image_std": [0.25, 0.3, 0.27],
    "resample": 3,
}
CROPPED = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
#: Of images: model_type -> settings beside the common ones, and of its preprocessor.
IMAGE = {
    "vit": ({}, {"size": {"height": 32, "width": 32}, "resample": 2}),
    "dinov2": ({}, CROPPED),
    "dinov3_vit": ({"num_register_tokens": 2}, {"size": {"height": 32, "width": 32}, "resample": 2}),
    "siglip_vision_model": ({}, {"size": {"height": 32, "width": 32}, "resample": 3}),
    "siglip": ({}, {"size": {"height": 32, "width": 32}, "resample": 3}),
    "siglip2_vision_model": ({"num_patches": 16}, {"max_num_patches": 12, "patch_size": 8, "resample": 2}),
    "siglip2": ({"num_patches": 16}, {"max_num_patches": 12, "patch_size": 8, "resample": 2}),
    "clip": ({"projection_dim": 24}, CROPPED),
    "clip_vision_model": ({"projection_dim": 24}, CROPPED),
    "chinese_clip": ({}, {"size": {"height": 32, "width": 32}, "resample": 3}),
}


def image(folder: Path, model_type: str, seed: int = 0) -> Path:
    """An image model; returns its folder."""
    from transformers import CONFIG_MAPPING

    more, preprocessing = IMAGE[model_type]
    common = _WIDTH | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    own = common | more
    if model_type in ("siglip", "siglip2", "clip", "chinese_clip"):
        words = _WIDTH | {"num_hidden_layers": 1, "vocab_size": 30, "projection_size": 32}
        own = {"vision_config": own, "text_config": words, "projection_dim": 24}
    _save_model(CONFIG_MAPPING[model_type](**own), folder, seed, tower=model_type == "clip_vision_model")
    (folder / "preprocessor_config.json").write_text(json.dumps(_PIXELS | preprocessing))
    return folder


#: Of video: model_type -> settings beside the common ones, of its preprocessor, and the name of that file.
VIDEO = {
    "videomae": ({"num_frames": 4, "tubelet_size": 2}, CROPPED, "preprocessor_config.json"),
    "vivit": (
        {"num_frames": 4, "tubelet_size": [2, 8, 8]},
        CROPPED | {"rescale_factor": 1 / 127.5, "offset": True},
        "preprocessor_config.json",
    ),
    "timesformer": ({"num_frames": 4}, CROPPED, "preprocessor_config.json"),
    "vjepa2": (
        {"frames_per_clip": 8, "crop_size": 32, "mlp_ratio": 2.0, "hidden_size": 48}
        | {"pred_hidden_size": 24, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 2},
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32, "resample": 2},
        "video_preprocessor_config.json",
    ),
}


def video(folder: Path, model_type: str, seed: int = 0) -> Path:
    """A model of windows of frames; returns its folder."""
    from transformers import CONFIG_MAPPING

    more, preprocessing, name = VIDEO[model_type]
    common = _WIDTH | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    _save_model(CONFIG_MAPPING[model_type](**(common | more)), folder, seed)
    (folder / name).write_text(json.dumps(_PIXELS | preprocessing))
    return folder


def text(folder: Path, model_type: str, seed: int = 0) -> Path:
    """A text model of this type; returns its folder."""
    from transformers import CONFIG_MAPPING

    words = tokenizer(model_type)
    common = _WIDTH | {
        "vocab_size": len(words) + 3,
        "num_hidden_layers": 5,
        "max_position_embeddings": 80,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "cls_token_id": words.cls_token_id,
        "sep_token_id": words.sep_token_id,
    }
    settings = CONFIG_MAPPING[model_type](
        **{name: value for name, value in (common | TEXT[model_type]).items() if value is not None}
    )
    _save_model(settings, folder, seed)
    words.save_pretrained(folder)
    return folder


def _save_model(settings, folder: Path, seed: int, tower: bool = False) -> None:
    """
    Args:
        tower: CLIP's of images alone, with its projection.
    """
    from transformers import MODEL_MAPPING, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    model = (CLIPVisionModelWithProjection if tower else MODEL_MAPPING[type(settings)])(settings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # As spread as trained ones: at their first values the layers hardly change anything.
            if weight.ndim == 2:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    model.save_pretrained(folder)


def tokenizer(model_type: str):
    """One of characters or, for Qwen, of bytes, with the special tokens that models of this type put around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if model_type.startswith("qwen"):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {name: number for number, name in enumerate([*letters, "<|endoftext|>"])}
        return Qwen2Tokenizer(vocab=vocabulary, merges=[])

    letters = sorted({letter for line in LINES for letter in line} | set("abcdefghijklmnopqrstuvwxyz"))
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {name: number for number, name in enumerate([*special, *letters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    begin, end = ("<s>", 2), ("</s>", 3)
    if model_type in ("llama", "gemma3_text", "mistral"):
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    elif model_type != "bloom":
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[begin, end])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
    )


def noises(*counts: int) -> list[np.ndarray]:
    """Sounds of so many samples."""
    draw = np.random.default_rng(0)
    return [(0.1 * draw.normal(size=count)).astype(np.float32) for count in counts]


def heard(wave: np.ndarray) -> SimpleNamespace:
    """A stored clip with this sound."""
    return SimpleNamespace(name="clip", waveform=lambda: wave)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative distance."""
    return float((one - other).norm() / other.norm())


def config_of(family: str, folder: Path, **options) -> ExtractorConfig:
    return ExtractorConfig(**({"family": family, "path": str(folder), "precision": "fp32"} | options))


@torch.no_grad()
def embedded(extractor, clips: Sequence) -> list[torch.Tensor]:
    """Segment -> (units, D), of all clips in one batch."""
    segments = [segment for clip in clips for segment in extractor.prepare(clip)]
    embeddings, lengths = extractor.embed(**extractor.collate(segments))
    return list(embeddings.split(lengths.tolist()))


def learned(model, clips: Sequence, target: list[int], steps: int = 12, rate: float = 1e-2) -> list[float]:
    """Losses of a few steps of training on one batch: each segment of the clips with its target."""
    segments = [[segment] for clip in clips for segment in model.extractor.prepare(clip)]
    batch = model.extractor.collate_clips(segments)
    optimizer = torch.optim.AdamW([own for own in model.parameters() if own.requires_grad], rate)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(**batch), torch.tensor(target))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def fine_tuned(
    config: ExtractorConfig, method: str, clips: Sequence, target: list[int], folder: Path, rate: float = 1e-2
) -> tuple[Path, list[torch.Tensor]]:
    """Fine-tune a model in a few steps, and check that what it learned loads again.

    Returns:
        A model folder of transformers with what it learned, and its embeddings of the clips.
    """
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0)
    config = replace(config, finetune=FinetuneConfig(method=method, precision="fp32", lora=lora))
    model = trainable_classifier(config, 2, seed=0, sharded=False)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert method == "full" or all("lora_" in name or name.startswith("head.") for name in trained)
    losses = learned(model, clips, target, rate=rate)
    assert losses[-1] < 0.9 * losses[0]
    adapter = folder / "adapter"
    save(model.eval(), {name: weight.detach() for name, weight in trained.items()}, adapter)
    own = embedded(model.extractor, clips)
    again = embedded(load_extractor(config, adapter), clips)
    assert max(apart(after, before) for after, before in zip(again, own, strict=True)) < 1e-4
    if method == "full":
        return adapter, own
    merging, _ = merged(config, adapter, torch.float32)
    merging.save_pretrained(folder / "merged")
    for path in Path(config.path).iterdir():
        if not (folder / "merged" / path.name).exists():
            shutil.copy(path, folder / "merged")
    return folder / "merged", own
