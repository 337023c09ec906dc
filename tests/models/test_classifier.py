"""What fine-tuning trains and saves, in one plain process; ZeRO-3 is in tests/dist."""

from __future__ import annotations

import pytest
import small_models
import torch
from torch.nn.functional import cross_entropy

from mer_dist.config import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.errors import UserError
from mer_dist.models.classifier import load_extractor, save, trainable_classifier

LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    # bitsandbytes packs 4-bit weights in blocks of 64.
    wide = {**small_models.SIZES, "hidden_size": 64, "intermediate_size": 128}
    return small_models.make(tmp_path_factory.mktemp("models"), LINES, wide)


def extractor(folders, family: str = "baichuan", quantize: str = "none", **options) -> ExtractorConfig:
    settings = FinetuneConfig(precision="fp32", lora=LoraConfig(rank=2, dropout=0.0), **options)
    return ExtractorConfig(
        family=family, path=str(folders / family), quantize=quantize, finetune=settings
    )


def train(classifier, steps: int = 5) -> list[float]:
    tokenizer = classifier.extractor.tokenizer
    batch = classifier.extractor.collate([tokenizer.encode(line) for line in LINES])
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(classifier(**batch), torch.tensor([0, 1, 2]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_lora_learns_on_whole_and_quantised_weights_and_loads_again(folders, tmp_path, quantize):
    settings = extractor(folders, quantize=quantize)
    classifier = trainable_classifier(settings, 3, 0, sharded=False)
    layer = classifier.extractor.backbone.base_model.model.layers[0].mlp.up_proj
    kinds = {"none": "Linear", "nf4": "Linear4bit", "int8": "Linear8bitLt"}
    assert type(layer).__name__ == kinds[quantize]
    losses = train(classifier)
    assert losses[-1] < 0.6 * losses[0]

    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    save(classifier, weights, tmp_path)
    again = load_extractor(settings, tmp_path)
    batch = again.collate([again.tokenizer.encode(line) for line in LINES])
    with torch.no_grad():
        trained = classifier.eval().extractor(**batch)
        assert (again(**batch) - trained).abs().max() < 0.05 * trained.abs().max()
        base = load_extractor(settings)(**batch)
        assert (again(**batch) - base).abs().max() > 0.05 * trained.abs().max()


def test_only_adapters_and_head_train_under_lora_and_everything_under_full(folders):
    lora = trainable_classifier(extractor(folders), 3, 0, sharded=False)
    names = {name for name, value in lora.named_parameters() if value.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in names)
    assert sum("W_pack" in name for name in names) == 8
    full = trainable_classifier(extractor(folders, method="full"), 3, 0, sharded=False)
    assert all(value.requires_grad for value in full.parameters())


def test_all_copies_start_from_the_same_weights(folders):
    first, second = (trainable_classifier(extractor(folders), 3, 7, sharded=False) for _ in range(2))
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_gradient_checkpointing_changes_memory_not_gradients(folders):
    gradients = []
    for checkpointing in (False, True):
        settings = extractor(folders, gradient_checkpointing=checkpointing)
        classifier = trainable_classifier(settings, 3, 0, sharded=False)
        batch = classifier.extractor.collate([[5, 6, 7], [8, 9]])
        classifier(**batch).square().sum().backward()
        gradients.append([value.grad for value in classifier.parameters() if value.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None and torch.allclose(plain, checkpointed, atol=1e-6)


def test_lora_targets_that_the_model_lacks_are_refused(folders):
    settings = extractor(folders)
    settings.finetune.lora.targets = ["q_proj"]
    with pytest.raises(UserError, match="lora.targets"):
        trainable_classifier(settings, 3, 0, sharded=False)


def test_quantised_weights_cannot_be_trained_in_full(folders):
    with pytest.raises(UserError, match="quantize"):
        extractor(folders, quantize="nf4", method="full")


def test_an_adapter_of_another_model_is_refused_by_name(folders, tmp_path):
    classifier = trainable_classifier(extractor(folders, "clip"), 3, 0, sharded=False)
    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    save(classifier, weights, tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_extractor(extractor(folders), tmp_path)
