"""An extractor with a head: fine-tuning trains and saves it, and extraction loads it.

An adapter is saved in the PEFT layout, fully fine-tuned weights in the Hugging Face layout, with
``head.safetensors`` and the tokenizer or preprocessor files in the same folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mer_dist.config.sections import ExtractorConfig, LoraConfig
from mer_dist.core.errors import UserError
from mer_dist.models import model_folder, precision
from mer_dist.models.extractor import DTYPES, Extractor, skeleton
from mer_dist.models.family import family_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: peft's word for the linear layers of any architecture.
ALL_LINEAR = "all-linear"


def _class(config: ExtractorConfig) -> type[Extractor]:
    return family_of(config.family, config.path).extractor_class()


def check_files(config: ExtractorConfig, adapter: Path | None = None) -> None:
    """Inspect the files of :func:`load_extractor` without reading any weight.

    Raises:
        UserError: a file is missing, incomplete, or belongs to another model.
    """
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        return model_folder.check(adapter, config.family)
    model_folder.check(Path(config.path), config.family)
    if adapter is not None:
        _check_adapter(adapter, _class(config).backbone_class(Path(config.path)), Path(config.path))


def check_choices(config: ExtractorConfig) -> None:
    """Whether the model of an extractor's folder can do what its settings ask for, and has a tokenizer or preprocessor of
    its own; no weight is read.

    Raises:
        UserError: it cannot.
    """
    family, folder = _class(config), Path(config.path)
    family(config, skeleton(family.backbone_class(folder), folder), folder).read_preprocessing(folder)


def load_extractor(
    config: ExtractorConfig, adapter: Path | None = None, device: torch.device | None = None
) -> Extractor:
    """The extractor in evaluation mode, as published or as fine-tuned in ``adapter``.

    Args:
        config: ``precision: auto`` becomes the precision that suits this machine.
        device: where the weights go; None: host memory.

    Raises:
        UserError: a file is missing, incomplete, or belongs to another model.
    """
    check_files(config, adapter)
    if config.precision == precision.AUTO:
        config = precision.settled(config, precision.of_this_machine())
    family, dtype = _class(config), DTYPES[config.precision]
    if adapter is None or not (adapter / "adapter_config.json").exists():
        return family.from_pretrained(config, adapter or Path(config.path), dtype, device).eval()
    extractor = family.from_pretrained(config, Path(config.path), dtype, device)
    loaded = _with_adapter(extractor.backbone, adapter)
    # Merging is faster, but 4 or 8 bits would round the adapter away, and of split weights there are only parts.
    merge = config.quantize == "none" and not config.split
    extractor.backbone = loaded.merge_and_unload() if merge else loaded
    return extractor.eval()


def merged(config: ExtractorConfig, adapter: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, float]:
    """The backbone with the adapter merged into it, as plain weights of ``dtype`` on the CPU.

    Weights of 4 or 8 bits are dequantised first, one layer at a time: an adapter compensates for their
    rounding and fits no other weights. The sum is not quantised again, which would lose the adapter.

    Returns:
        The backbone, and the part of the adapter that is lost when the sums are rounded to ``dtype``:
        the norm of the rounding error over the norm of the adapter's update.

    Raises:
        UserError: a file is missing, incomplete, or belongs to another model.
    """
    check_files(config, adapter)
    base = precision.settled(config, precision.ELSEWHERE)
    backbone = _class(config).from_pretrained(base, Path(config.path), DTYPES[base.precision]).backbone
    if config.quantize != "none":
        _dequantize(backbone, dtype)
    loaded = _with_adapter(backbone.to("cpu", dtype), adapter)
    lost = _lost_to_rounding(loaded)
    return loaded.merge_and_unload().eval(), lost


def _dequantize(backbone: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace every quantised layer by a plain one of ``dtype`` on the CPU."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    kinds = (Linear4bit, Linear8bitLt)
    # Names, because a list of the layers would keep all of them in memory.
    for name in [name for name, layer in backbone.named_modules() if isinstance(layer, kinds)]:
        layer: Any = backbone.get_submodule(name)
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
        plain.weight, plain.bias = nn.Parameter(weight.to("cpu", dtype)), layer.bias
        backbone.set_submodule(name, plain)
    backbone.hf_quantizer.remove_quantization_config(backbone)


@torch.no_grad()
def _lost_to_rounding(loaded: PeftModel) -> float:
    from peft.tuners.lora import LoraLayer

    lost = added = 0.0
    for layer in loaded.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            if weight.dtype == torch.float32:
                continue
            delta = layer.get_delta_weight(layer.active_adapters[0])
            exact = weight.float() + delta.float()
            lost += float((exact.to(weight.dtype).float() - exact).square().sum())
            added += float(delta.float().square().sum())
    return (lost / added) ** 0.5 if added else 0.0


def _check_adapter(adapter: Path, backbone_class: type[PreTrainedModel], base: Path) -> None:
    """Compare the adapter's shapes with those of its base model's config."""
    settings = model_folder.read_settings(adapter, "adapter_config.json")
    path = adapter / "adapter_model.safetensors"
    header = model_folder.safetensors_header(path)
    if settings.get("peft_type") != "LORA" or not header:
        # Others may load further files, by any path or name.
        raise UserError(f"{adapter / 'adapter_config.json'}: no LoRA adapter; only these are supported")
    layers = dict(skeleton(backbone_class, base).named_modules())
    for key, entry in header.items():
        name, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        layer = layers.get(name)
        if part not in ("A.weight", "B.weight"):
            raise UserError(f"{path}: {key} is no LoRA weight; only LoRA adapters are supported")
        side = ("in_features", entry.shape[1]) if part[0] == "A" else ("out_features", entry.shape[0])
        if getattr(layer, side[0], None) != side[1]:
            raise UserError(
                f"{path}: {key} {entry.shape} does not fit {base}; it was trained on another base model"
            )


def _with_adapter(backbone: PreTrainedModel, adapter: Path) -> PeftModel:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(backbone, adapter, autocast_adapter_dtype=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"adapter {adapter} does not fit its base model: {str(error)[:200]}") from None


class Classifier(nn.Module):
    """Extractor, layer norm of its utterance embedding, linear head."""

    def __init__(self, extractor: Extractor, classes: int):
        super().__init__()
        self.extractor = extractor
        self.width = extractor.width
        self.head = nn.Linear(self.width, classes)

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, classes)`` in float32."""
        utterance = F.layer_norm(self.extractor(**batch), (self.width,))
        return self.head(utterance.to(self.head.weight.dtype)).float()


def trainable_classifier(config: ExtractorConfig, classes: int, seed: int, sharded: bool) -> Classifier:
    """The classifier of ``config.finetune``, in training mode.

    The head and LoRA weights are drawn from ``seed`` alone, so that the adapters of an extractor
    start from the same point and their spaces stay comparable.

    Args:
        sharded: under DeepSpeed, which keeps float32 masters itself and needs one dtype for all
            trainable weights; otherwise these are float32.
    """
    extractor = _class(config).from_pretrained(config, Path(config.path), base_dtype(config, sharded))
    torch.manual_seed(seed)
    return trainable(extractor, classes, sharded)


def base_dtype(config: ExtractorConfig, sharded: bool) -> torch.dtype:
    """The dtype of an extractor's weights during fine-tuning."""
    settings = config.finetuning
    half = settings.precision == "bf16" and (sharded or settings.method == "lora")
    return torch.bfloat16 if half else torch.float32


def trainable(extractor: Extractor, classes: int, sharded: bool) -> Classifier:
    """An extractor, loaded or on the meta device, with the adapter and the head of its configuration, both
    newly drawn."""
    settings = extractor.config.finetuning
    half = settings.precision == "bf16"
    if settings.gradient_checkpointing:
        # Reentrant checkpointing would cut the graph at the frozen base model.
        extractor.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.method == "full":
        # Some classes freeze a part, as Whisper its positions; read whole it is trained, split by ZeRO-3 it would be lost.
        extractor.backbone.requires_grad_(True)
    if settings.method == "lora":
        extractor.backbone = _with_lora(extractor, settings.lora, sharded)
    classifier = Classifier(extractor, classes)
    classifier.head.to(torch.bfloat16 if half and sharded else torch.float32)
    return classifier.train()


def _with_lora(extractor: Extractor, settings: LoraConfig, sharded: bool) -> PeftModel:
    import peft

    adapter = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(settings.targets or extractor.lora_targets),
    )
    try:
        return peft.get_peft_model(extractor.backbone, adapter, autocast_adapter_dtype=not sharded)
    except ValueError as error:
        raise UserError(f"lora.targets does not fit {extractor.folder}: {str(error)[:200]}") from None


def _targets(names: list[str]) -> list[str] | str:
    """peft takes the word for all linear layers by itself."""
    return ALL_LINEAR if names == [ALL_LINEAR] else names


def save(classifier: Classifier, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter or fine-tuned weights to ``folder``.

    Args:
        weights: complete trainable tensors by their name in ``classifier``; under ZeRO-3 the module
            holds only parts.
    """
    backbone, prefix = classifier.extractor.backbone, "extractor.backbone."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for adapter in getattr(backbone, "peft_config", {}).values():
        # It is a set: its order would differ from process to process.
        adapter.target_modules = sorted(adapter.target_modules)
    backbone.save_pretrained(folder, state_dict=own)
    head = {name: value.float() for name, value in weights.items() if name.startswith("head.")}
    save_file(head, folder / "head.safetensors")
    for name in (*classifier.extractor.family.files, *classifier.extractor.extra_files):
        source = classifier.extractor.folder / name
        if source.exists():
            shutil.copyfile(source, folder / name)
