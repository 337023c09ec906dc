"""Small random-weight models in the real architectures, in the published Hugging Face layout.

They stand in for CLIP-ViT-L, HuBERT-large and Baichuan-13B where those cannot run: every stage
loads them through the same code path. A linear classifier can read a part of the emotion from the
features of a frozen random network, and fine-tuning so small a network on 160 clips finds more.
The scale of the random weights decides both; it was chosen on the demo corpus.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mer_dist.core.log import logger
from mer_dist.processes.threads import torch_threads
from mer_dist.storage import files

if TYPE_CHECKING:
    from mer_dist.models.baichuan import BaichuanConfig

#: Frames are square of this side; configs/demo.yaml stores them at this size.
IMAGE_SIZE = 64
VOCABULARY = 600

#: Threads of torch on any machine: another number sums in another order, and the last bits of the
#: weights decide the first digits of a fusion that is trained on their features.
THREADS = 2

#: Mean and standard deviation of pixels, as published with CLIP.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def make(folder: Path, lines: list[str] | None = None, seed: int = 0) -> None:
    """Write ``clip``, ``hubert`` and ``baichuan`` below ``folder`` unless they are there.

    Args:
        lines: what Baichuan's tokenizer is trained on; default: lines like those of the demo.
    """
    from transformers.utils import logging

    from mer_dist.demo import corpus

    logging.disable_progress_bar()
    folder = Path(folder)
    lines = lines or corpus.lines(2000, seed)
    fingerprint = files.fingerprint_of([seed, lines, files.digest(Path(__file__))])
    if files.read_marker(folder, fingerprint):
        logger.info("the small models are there: %s", folder)
        return
    for number, (name, write) in enumerate(
        (("clip", _write_clip), ("hubert", _write_hubert), ("baichuan", _write_baichuan))
    ):
        with files.atomic_folder(folder / name) as temporary, torch.random.fork_rng(), torch_threads(THREADS):
            torch.manual_seed(1000 * seed + number)
            write(temporary, lines)
    files.write_marker(folder, fingerprint)


def _write_clip(folder: Path, lines: list[str]) -> None:
    from transformers import CLIPConfig, CLIPModel

    # Three times the usual spread: at the usual one the blocks hardly change their input, and 160
    # clips train them slowly. Frozen features are a little worse (0.37 WAF against 0.40 at twice
    # and 0.48 at once the spread), tuned ones a little better (0.55 against 0.53 and 0.52).
    tower = {"num_attention_heads": 4, "initializer_factor": 3.0}
    config = CLIPConfig(
        projection_dim=96,
        vision_config={
            **tower,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
            "projection_dim": 96,
        },
        # Extraction uses the vision tower; the other one only completes the layout.
        text_config={
            **tower,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "vocab_size": 64,
            "max_position_embeddings": 16,
            "projection_dim": 96,
            "bos_token_id": 62,
            "eos_token_id": 63,
            "pad_token_id": 63,
        },
    )
    CLIPModel(config).save_pretrained(folder)
    side = IMAGE_SIZE
    files.write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "rescale_factor": 1 / 255,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )


def _write_hubert(folder: Path, lines: list[str]) -> None:
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        feat_proj_layer_norm=True,
        conv_dim=[64] * 7,
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=8,
        initializer_range=0.09,
        vocab_size=32,
    )
    model = HubertModel(config)
    _carry_the_spectrum(model.feature_extractor.conv_layers[1:])
    model.save_pretrained(folder)
    files.write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": True,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0,
            "return_attention_mask": True,
            "sampling_rate": 16_000,
        },
    )


@torch.no_grad()
def _carry_the_spectrum(layers) -> None:
    """Make each convolution a rotation of the channels, averaged over its kernel, plus noise.

    The first layer is a random filter bank. Six layers of plain random filters behind it blur what
    it heard: a linear classifier then reads 0.35 WAF from their output, and 0.5 from this one.
    """
    for layer in layers:
        weight = layer.conv.weight
        rotation = torch.nn.init.orthogonal_(torch.empty(weight.shape[:2]))
        average = rotation[:, :, None].expand_as(weight) / weight.shape[2]
        weight.copy_(average + 0.5 * weight * average.std() / weight.std())


def _write_baichuan(folder: Path, lines: list[str]) -> None:
    from mer_dist.models.baichuan import BaichuanForCausalLM
    from mer_dist.models.tokenizer import BaichuanTokenizer

    tokenizer = BaichuanTokenizer.train(lines, VOCABULARY)
    tokenizer.save_pretrained(folder)
    BaichuanForCausalLM(_baichuan_config(len(tokenizer))).save_pretrained(folder)


def _baichuan_config(vocabulary: int) -> BaichuanConfig:
    from mer_dist.models.baichuan import BaichuanConfig

    return BaichuanConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        model_max_length=512,
        initializer_range=0.03,
        use_cache=False,
        architectures=["BaichuanForCausalLM"],
    )
