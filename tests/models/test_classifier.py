"""What fine-tuning trains and saves, in one plain process; ZeRO-3 is in tests/dist."""

from __future__ import annotations

import pytest
import small_models
import torch
from torch.nn.functional import cross_entropy

from mer_dist.config.section import with_values
from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.core.errors import UserError
from mer_dist.models.classifier import load_extractor, save, trainable_classifier

pytestmark = pytest.mark.slow

LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    # bitsandbytes packs 4-bit weights in blocks of 64.
    wide = {**small_models.SIZES, "hidden_size": 64, "intermediate_size": 128}
    return small_models.make(tmp_path_factory.mktemp("models"), LINES, wide)


def extractor(folders, family: str = "baichuan", quantize: str = "none", **options) -> ExtractorConfig:
    settings = FinetuneConfig(precision="fp32", lora=LoraConfig(rank=2, dropout=0.0), **options)
    return ExtractorConfig(family=family, path=str(folders / family), quantize=quantize, finetune=settings)


def train(classifier, batch: dict[str, torch.Tensor], steps: int = 5, rate: float = 1e-2) -> list[float]:
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
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
    tokenizer = classifier.extractor.tokenizer
    batch = classifier.extractor.collate_clips([[tokenizer.encode(line)] for line in LINES])
    losses = train(classifier, batch)
    assert losses[-1] < 0.6 * losses[0]

    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    save(classifier, weights, tmp_path)
    again = load_extractor(settings, tmp_path)
    with torch.no_grad():
        trained = classifier.eval().extractor(**batch)
        assert (again(**batch) - trained).abs().max() < 0.05 * trained.abs().max()
        base = load_extractor(settings)(**batch)
        assert (again(**batch) - base).abs().max() > 0.05 * trained.abs().max()


def test_the_adapters_config_is_the_same_from_every_process(folders, tmp_path):
    """The library holds the modules as a set, whose order follows from a process's own hashes."""
    classifier = trainable_classifier(extractor(folders, "clip"), 3, 0, sharded=False)
    (adapter,) = classifier.extractor.backbone.peft_config.values()
    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    written = []
    for modules in (sorted(adapter.target_modules), sorted(adapter.target_modules, reverse=True)):
        adapter.target_modules = modules
        save(classifier, weights, tmp_path)
        written.append((tmp_path / "adapter_config.json").read_bytes())
    assert len(modules) > 1 and written[0] == written[1]


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


def batch_for(loaded) -> dict[str, torch.Tensor]:
    """Three clips of different length."""
    draw = torch.Generator().manual_seed(0)
    if loaded.modality == "text":
        return loaded.collate_clips([[[5, 6, 7]], [[8, 9]], [[10]]])
    if loaded.modality == "audio":
        waves = [torch.randn(length, generator=draw) for length in (9000, 4000, 800)]
        return loaded.collate_clips([[wave] for wave in waves])
    frames = [torch.randint(0, 255, (count, 3, 32, 32), generator=draw) for count in (3, 1, 2)]
    return loaded.collate_clips([list(frame.byte()) for frame in frames])


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_gradient_checkpointing_changes_memory_not_gradients(folders, family, method):
    gradients = []
    for checkpointing in (False, True):
        settings = extractor(folders, family, method=method, gradient_checkpointing=checkpointing)
        classifier = trainable_classifier(settings, 3, 0, sharded=False)
        batch = batch_for(classifier.extractor)
        torch.manual_seed(1)  # for dropout
        classifier(**batch).square().sum().backward()
        trainable = [(name, value) for name, value in classifier.named_parameters() if value.requires_grad]
        gradients.append({name: value.grad for name, value in trainable if value.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and sum("head" in name for name in plain) == 2
    # SpecAugment is off, so nothing reaches its mask.
    assert {name for name, _ in trainable} - plain.keys() <= {"extractor.backbone.masked_spec_embed"}
    for name in plain:
        assert torch.allclose(plain[name], checkpointed[name], atol=1e-6), name


def hubert_with(folder, **settings) -> ExtractorConfig:
    kinds = ("hidden", "attention", "activation", "feat_proj")
    quiet = {f"{kind}_dropout": 0.0 for kind in kinds}
    small_models.make_hubert(folder / "hubert", **quiet, **settings)
    return extractor(folder, "hubert")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_hubert_learns_and_loads_again(tmp_path, method):
    settings = hubert_with(tmp_path)
    settings = with_values(settings, **{"finetune.method": method})
    classifier = trainable_classifier(settings, 3, 0, sharded=False)
    batch = batch_for(classifier.extractor)
    losses = train(classifier, batch, steps=12, rate=3e-3)
    assert losses[-1] < 0.6 * losses[0]
    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    save(classifier, weights, tmp_path / "copy")
    again = load_extractor(settings, tmp_path / "copy")
    with torch.no_grad():
        assert (again(**batch) - classifier.eval().extractor(**batch)).abs().max() < 1e-4


def test_hubert_skips_no_layer_and_masks_no_step_while_it_trains(tmp_path):
    settings = hubert_with(tmp_path, layerdrop=0.9, mask_time_prob=0.5, mask_feature_prob=0.5)
    classifier = trainable_classifier(settings, 3, 0, sharded=False)
    batch = batch_for(classifier.extractor)
    logits = classifier(**batch)
    logits.square().sum().backward()
    adapters = [value.grad for name, value in classifier.named_parameters() if "lora_B" in name]
    assert len(adapters) == 4 * 4 and all(gradient.any() for gradient in adapters)
    assert torch.allclose(logits, classifier.eval()(**batch), atol=1e-5)


def test_a_group_norm_hubert_trains_on_several_clips_as_on_each_alone(tmp_path):
    settings = hubert_with(tmp_path, feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
    settings = with_values(settings, **{"finetune.method": "full"})
    classifier = trainable_classifier(settings, 3, 0, sharded=False)
    name = "extractor.backbone.feature_extractor.conv_layers.0.layer_norm.weight"
    norm = dict(classifier.named_parameters())[name]
    batch = batch_for(classifier.extractor)
    classifier(**batch).square().sum().backward()
    together, norm.grad = norm.grad, None
    for wave, samples in zip(batch["waves"], batch["samples"], strict=True):
        alone = classifier.extractor.collate_clips([[wave[:samples]]])
        classifier(**alone).square().sum().backward()
    assert together.any() and torch.allclose(together, norm.grad, rtol=1e-3, atol=1e-5)


def test_lora_targets_that_the_model_lacks_are_refused(folders):
    settings = extractor(folders)
    settings = with_values(settings, **{"finetune.lora.targets": ["q_proj"]})
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
