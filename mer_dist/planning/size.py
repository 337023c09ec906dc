"""How many parameters a model has and trains, from ``config.json`` alone.

The modelling classes that a run uses are built on torch's meta device: every shape, no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.models import model_folder
from mer_dist.models.classifier import FAMILIES, Classifier, _with_lora
from mer_dist.models.extractor import Extractor
from mer_dist.planning.published import PUBLISHED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Bytes of one NF4 weight: half a byte, and a float32 constant for each block of 64.
NF4 = 0.5 + 4 / 64


@dataclass(frozen=True, kw_only=True)
class Size:
    """Counts of parameters, of the backbone unless said otherwise."""

    parameters: int
    #: of the backbone and the head: adapters and head (LoRA), or everything (full).
    trainable: int
    #: in the linear layers that quantisation replaces.
    linear: int
    #: of the largest single linear layer; dequantised, it is whole for a moment.
    largest_linear: int
    #: held directly by one module, the unit that ZeRO-3 gathers.
    largest_layer: int
    #: of the feature vectors.
    width: int

    def weight_bytes(self, quantize: str, element: int) -> int:
        """The base weights as they are held, the unquantised ones at ``element`` bytes each."""
        each = {"none": element, "nf4": NF4, "int8": 1}[quantize]
        return int(self.linear * each + (self.parameters - self.linear) * element)


def source(config: ExtractorConfig) -> str:
    """``config.json``, or the name of the published model that stands in for a missing folder.

    Raises:
        UserError: neither is there, or they are of another family.
    """
    folder = Path(config.path)
    if folder.is_dir():
        return "config.json"
    family, _ = PUBLISHED.get(folder.name, (None, None))
    if family is None:
        raise UserError(
            f"path: there is no folder {folder}, and {folder.name} is no published model "
            f"whose size is known ({', '.join(PUBLISHED)})"
        )
    if family != config.family:
        raise UserError(f"path: {folder.name} is of the family {family}, not {config.family}")
    return folder.name


def backbone(config: ExtractorConfig, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
    """The backbone on the meta device, with ``layers`` layers instead of its own number.

    Raises:
        UserError: see :func:`source`; or its config.json is unreadable.
    """
    model_class = FAMILIES[config.family].backbone_class()
    settings_class, origin = model_class.config_class, source(config)
    if origin == "config.json":
        model_folder.check_config(Path(config.path), config.family)
        settings = settings_class.from_pretrained(config.path, local_files_only=True)
    else:
        settings = settings_class(**PUBLISHED[origin][1])
    settings.num_hidden_layers = layers or settings.num_hidden_layers
    if config.family == "hubert":
        # As the extractor sets them.
        settings.layerdrop, settings.apply_spec_augment = 0.0, False
    with torch.device("meta"):
        built = model_class._from_config(settings, dtype=dtype)
    if config.family == "hubert":
        built.feature_extractor._requires_grad = False
    return built


def bare_extractor(config: ExtractorConfig, dtype: torch.dtype, layers: int | None = None) -> Extractor:
    """The extractor on the meta device, without the tokenizer or preprocessor that real clips need."""
    family = FAMILIES[config.family]
    extractor = family.__new__(family)
    nn.Module.__init__(extractor)
    extractor.config, extractor.folder = config, Path(config.path)
    extractor.backbone = backbone(config, dtype, layers)
    return extractor


def bare_classifier(
    config: ExtractorConfig, classes: int, sharded: bool, layers: int | None = None
) -> Classifier:
    """What :func:`mer_dist.models.classifier.trainable_classifier` builds, on the meta device."""
    settings = config.finetuning
    half = settings.precision == "bf16"
    base_dtype = torch.bfloat16 if half and (sharded or settings.method == "lora") else torch.float32
    with torch.device("meta"):
        extractor = bare_extractor(config, base_dtype, layers)
        if settings.gradient_checkpointing:
            extractor.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if settings.method == "lora":
            extractor.backbone = _with_lora(extractor, settings.lora, sharded)
            if sharded:
                # peft gives adapters their base's type, but not on the meta device.
                extractor.backbone.to(base_dtype)
        classifier = Classifier(extractor, classes)
    classifier.head.to(torch.bfloat16 if half and sharded else torch.float32)
    return classifier.train()


def size(config: ExtractorConfig, classes: int) -> Size:
    """Count an extractor and, if it is fine-tuned, what is trained of it."""
    from transformers.quantizers.base import get_keys_to_not_convert

    bare = bare_extractor(config, torch.float32)
    kept = set(get_keys_to_not_convert(bare.backbone))
    linear = [
        module.weight.numel()
        for name, module in bare.backbone.named_modules()
        if isinstance(module, nn.Linear) and name not in kept
    ]
    own = [
        sum(weight.numel() for weight in module.parameters(recurse=False))
        for module in bare.backbone.modules()
    ]
    trainable = 0
    if config.finetune is not None:
        classifier = bare_classifier(config, classes, sharded=False)
        trainable = sum(weight.numel() for weight in classifier.parameters() if weight.requires_grad)
    return Size(
        parameters=sum(weight.numel() for weight in bare.backbone.parameters()),
        trainable=trainable,
        linear=sum(linear),
        largest_linear=max(linear),
        largest_layer=max(own),
        width=bare.width,
    )
