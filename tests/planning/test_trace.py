"""The traced memory of a training step against the same step really run, on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch

from mer_dist.config.section import with_values
from mer_dist.config.sections import ExtractorConfig, FinetuneConfig
from mer_dist.models.classifier import trainable_classifier
from mer_dist.models.extractor import packing
from mer_dist.models.family import FAMILIES
from mer_dist.planning import size, trace

pytestmark = pytest.mark.slow

CLASSES, CLIPS, FRAMES, TOKENS = 6, 2, 3, 40
#: that the small HuBERT makes of a second.
STEPS = 49
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    lines = [f"我说第{row}句话" for row in range(30)]
    return small_models.make(tmp_path_factory.mktemp("models"), lines, SIZES)


def settings(models: Path, family: str, **finetune) -> ExtractorConfig:
    return ExtractorConfig(
        family=family,
        path=str(models / family),
        max_tokens=TOKENS,
        window=1.0,
        finetune=FinetuneConfig(**finetune),
    )


def batch(family: str) -> dict[str, torch.Tensor]:
    """What collate makes of clips that are as long as the settings allow."""
    if family == "clip":
        pixels = torch.zeros(CLIPS * FRAMES, 3, 32, 32, dtype=torch.uint8)
        return {"pixels": pixels, "segments": torch.full((CLIPS,), FRAMES)}
    if family == "hubert":
        return {
            "waves": torch.randn(CLIPS, 16_000),
            "samples": torch.full((CLIPS,), 16_000),
            "segments": torch.ones(CLIPS, dtype=torch.long),
            **packing(torch.ones(CLIPS, STEPS)),
        }
    ids = torch.ones(CLIPS, TOKENS, dtype=torch.long)
    return {"ids": ids, "segments": torch.ones(CLIPS, dtype=torch.long), **packing(ids)}


def measured(config: ExtractorConfig, sharded: bool) -> tuple[int, int]:
    """What autograd saves in a real forward pass, and the most that is alive in the whole step."""
    classifier = trainable_classifier(config, CLASSES, seed=0, sharded=sharded)
    inputs = batch(config.family)
    half = config.finetune.precision == "bf16"
    with trace.saved_bytes(classifier) as saved, trace.LiveBytes(classifier) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=half and not sharded):
            loss = classifier(**inputs).sum()
        kept = sum(saved.values())
        with trace.without_gradients(classifier):
            loss.backward()
    return kept, live.peak


#: Under DeepSpeed everything is in bf16; alone, autocast keeps copies of float32 weights.
def ways() -> list:
    """(method, checkpointing, sharded); training everything is tried in one of them, else in the long suite."""
    kinds = [(False, True), (True, True), (False, False)]
    often = [*(("lora", *kind) for kind in kinds), ("full", *kinds[0])]
    return [*often, *(pytest.param("full", *kind, marks=pytest.mark.long) for kind in kinds[1:])]


@pytest.mark.parametrize("method, checkpointing, sharded", ways())
@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_traced_activations_agree_with_a_real_step(models, family, method, checkpointing, sharded):
    config = settings(models, family, method=method, gradient_checkpointing=checkpointing)
    kept, peak = trace.training(config, CLASSES, sharded, CLIPS, FRAMES)
    real_kept, real_peak = measured(config, sharded)
    print(f"kept {kept / real_kept:.3f}, peak {peak / real_peak:.3f} of the real step")
    assert kept == pytest.approx(real_kept, rel=0.02)
    assert peak == pytest.approx(real_peak, rel=0.02)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_parameters_are_counted_as_the_loaded_model_has_them(models, family, method):
    config = settings(models, family, method=method)
    counted = size.size(config, CLASSES)
    real = trainable_classifier(config, CLASSES, seed=0, sharded=False)
    trained = sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    assert counted.trainable == trained
    frozen = ExtractorConfig(family=family, path=config.path)
    extractor = FAMILIES[family].extractor_class()
    backbone = extractor.from_pretrained(frozen, Path(config.path), torch.float32).backbone
    assert counted.parameters == sum(weight.numel() for weight in backbone.parameters())


def test_lora_targets_of_the_configuration_are_what_is_counted(models):
    config = settings(models, "baichuan")
    config = with_values(config, **{"finetune.lora.rank": 4, "finetune.lora.targets": ["W_pack", "o_proj"]})
    width, layers = SIZES["hidden_size"], SIZES["num_hidden_layers"]
    adapters = layers * 4 * ((width + 3 * width) + (width + width))
    head = CLASSES * width + CLASSES
    assert size.size(config, CLASSES).trainable == adapters + head


def test_checkpointing_is_seen_to_save_most_of_the_activations(models):
    config = settings(models, "baichuan", precision="fp32")
    _, plain = trace.training(config, CLASSES, False, CLIPS, FRAMES)
    config = with_values(config, **{"finetune.gradient_checkpointing": True})
    _, checkpointed = trace.training(config, CLASSES, False, CLIPS, FRAMES)
    assert checkpointed < plain / 2


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_weights_take_what_is_planned(models, quantize):
    config = ExtractorConfig(family="baichuan", path=str(models / "baichuan"), quantize=quantize)
    extractor = FAMILIES["baichuan"].extractor_class()
    real = extractor.from_pretrained(config, Path(config.path), torch.bfloat16).backbone
    held = sum(weight.nbytes for weight in real.parameters())
    for weight in real.parameters():
        state = getattr(weight, "quant_state", None)
        held += state.absmax.nbytes if state else 0
    assert size.size(config, CLASSES).weight_bytes(quantize, 2) == pytest.approx(held, rel=0.02)
