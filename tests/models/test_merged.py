"""An adapter belongs to the weights that it was trained on: what is exported gives the features of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch
from small_adapters import embeddings, nothing, off, trained
from transformers import BitsAndBytesConfig

from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.models import extractor as extractors
from mer_dist.models.classifier import load_extractor, merged

LINES = [f"我说第{row}句话" for row in range(20)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return small_models.make(tmp_path_factory.mktemp("models"), LINES)


def settings(models: Path, family: str, **options) -> ExtractorConfig:
    tuned = FinetuneConfig(precision="fp32", lora=LoraConfig(rank=4, alpha=8))
    return ExtractorConfig(**{"family": family, "path": str(models / family), "finetune": tuned, **options})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_an_adapter_is_merged_into_the_weights_of_four_bits_that_it_was_trained_on(models, tmp_path, family):
    config = settings(models, family, quantize="nf4")
    adapter = trained(config, tmp_path / "adapter")
    of_run = embeddings(load_extractor(config, adapter).backbone, family)
    backbone, lost = merged(config, adapter, torch.float32)
    assert lost == 0 and {value.dtype for value in backbone.parameters()} == {torch.float32}
    assert off(embeddings(backbone, family), of_run) < 5e-6
    backbone.save_pretrained(tmp_path / "plain")
    again = type(backbone).from_pretrained(tmp_path / "plain")
    assert not hasattr(again.config, "quantization_config")
    assert torch.equal(embeddings(again.eval(), family), embeddings(backbone, family))
    published, _ = merged(settings(models, family), adapter, torch.float32)
    assert off(embeddings(published, family), of_run) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
        {"bnb_4bit_quant_type": "fp4"},
    ],
    ids=["twice", "stored as bf16", "fp4"],
)
def test_other_ways_to_four_bits_are_turned_back_as_well(models, tmp_path, monkeypatch, way):
    def quantization(quantize: str, dtype: torch.dtype):
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **way)

    monkeypatch.setattr(extractors, "_quantization", quantization)
    config = settings(models, "clip", quantize="nf4")
    adapter = trained(config, tmp_path / "adapter")
    of_run = embeddings(load_extractor(config, adapter).backbone, "clip")
    assert off(embeddings(merged(config, adapter, torch.float32)[0], "clip"), of_run) < 5e-6


@pytest.mark.slow
def test_of_eight_bits_only_the_rounding_of_a_layers_input_is_left(models, tmp_path):
    config = settings(models, "clip", quantize="int8")
    adapter = trained(config, tmp_path / "adapter")
    of_run = embeddings(load_extractor(config, adapter).backbone, "clip")
    assert off(embeddings(merged(config, adapter, torch.float32)[0], "clip"), of_run) < 0.03
    weight = load_extractor(config).backbone.vision_model.encoder.layers[0].mlp.fc1.weight
    plain = merged(config, adapter, torch.float32)[0].vision_model.encoder.layers[0].mlp.fc1.weight
    assert torch.allclose(plain, weight.data.float() * weight.SCB[:, None] / 127, atol=1e-7)


@pytest.mark.slow
def test_what_rounding_the_merged_weights_loses_is_measured(models, tmp_path):
    config = settings(models, "clip", quantize="nf4", precision="bf16")
    adapter = trained(config, tmp_path / "adapter")
    exact, none = merged(config, adapter, torch.float32)
    rounded, lost = merged(config, adapter, torch.bfloat16)
    base, _ = merged(config, nothing(config, tmp_path / "nothing"), torch.float32)
    pairs = [
        (exact.get_parameter(name), rounded.get_parameter(name), value)
        for name, value in base.named_parameters()
        if name.endswith(("_proj.weight",)) and "visual" not in name
    ]
    away = sum(float((one - other.float()).square().sum()) for one, other, _ in pairs) ** 0.5
    added = sum(float((one - value).square().sum()) for one, _, value in pairs) ** 0.5
    assert none == 0 and lost == pytest.approx(away / added, rel=0.2)
    assert off(embeddings(exact, "clip"), embeddings(load_extractor(config, adapter).backbone, "clip")) < 0.03
