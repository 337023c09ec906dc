"""Numbers of a model's parameters and of those it trains, from ``config.json`` alone.

The modelling classes of a run are built on torch's meta device: every shape, no memory.
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
from mer_dist.models.classifier import Classifier, base_dtype, trainable
from mer_dist.models.extractor import Extractor
from mer_dist.models.family import FAMILIES, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Bytes of one NF4 weight: half a byte, and a float32 constant for each block of 64.
NF4 = 0.5 + 4 / 64


@dataclass(frozen=True, kw_only=True)
class Size:
    """Counts of parameters, of the backbone unless noted otherwise."""

    parameters: int
    #: of the backbone and the head: adapters and head (LoRA), or everything (full).
    trainable: int
    #: in the linear layers that quantisation replaces.
    linear: int
    #: of the largest single linear layer, which is fully dequantised for a moment.
    largest_linear: int
    #: directly in one module, the unit that ZeRO-3 gathers.
    largest_layer: int
    #: of the embeddings.
    width: int

    def weight_bytes(self, quantize: str, element: int) -> int:
        """Bytes of the base weights as stored, the unquantised ones at ``element`` bytes each."""
        each = {"none": element, "nf4": NF4, "int8": 1}[quantize]
        return int(self.linear * each + (self.parameters - self.linear) * element)


def source(config: ExtractorConfig) -> str:
    """``config.json``, or the name of the published model that replaces a missing folder.

    Raises:
        UserError: there is neither, or it is of another family.
    """
    folder = Path(config.path)
    if folder.is_dir():
        return "config.json"
    published = {name: family for family in FAMILIES for name in FAMILIES[family].published}
    if folder.name not in published:
        raise UserError(
            f"path: there is no folder {folder}, and {folder.name} is no published model "
            f"whose size is known ({', '.join(published)})"
        )
    if published[folder.name] != config.family:
        raise UserError(f"path: {folder.name} is of the family {published[folder.name]}, not {config.family}")
    return folder.name


def settings(config: ExtractorConfig) -> PreTrainedConfig:
    """The configuration of the backbone.

    Raises:
        UserError: see :func:`source`; or its config.json is unreadable.
    """
    family, origin = family_of(config.family, config.path), source(config)
    if origin != "config.json":
        return (
            family.extractor_class()
            .backbone_class(Path(config.path))
            .config_class(**family.published[origin])
        )
    model_folder.check_config(Path(config.path), config.family)
    settings_class = family.extractor_class().backbone_class(Path(config.path)).config_class
    return settings_class.from_pretrained(config.path, local_files_only=True)


def tower(own: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a model's configuration that has the layers of the encoder: some hold those of words beside it."""
    return getattr(own, "vision_config", own)


def bare_extractor(config: ExtractorConfig, dtype: torch.dtype, layers: int | None = None) -> Extractor:
    """The extractor on the meta device, without the tokenizer or preprocessor that real clips need.

    Args:
        layers: of the backbone; None: its own number.

    Raises:
        UserError: see :func:`settings`.
    """
    extractor_class, own = family_of(config.family, config.path).extractor_class(), settings(config)
    if layers is not None:
        tower(own).num_hidden_layers = layers
    with torch.device("meta"):
        backbone_class = extractor_class.backbone_class(Path(config.path))
        return extractor_class(config, backbone_class._from_config(own, dtype=dtype))


def bare_classifier(
    config: ExtractorConfig, classes: int, sharded: bool, layers: int | None = None
) -> Classifier:
    """What :func:`mer_dist.models.classifier.trainable_classifier` builds, on the meta device."""
    dtype = base_dtype(config, sharded)
    with torch.device("meta"):
        classifier = trainable(bare_extractor(config, dtype, layers), classes, sharded)
    if sharded and config.finetuning.method == "lora":
        # peft gives adapters their base's dtype, but not on the meta device.
        classifier.extractor.backbone.to(dtype)
    return classifier


def size(config: ExtractorConfig, classes: int) -> Size:
    """Count an extractor's parameters and, if it is fine-tuned, its trainable ones."""
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
        largest_linear=max(linear, default=0),
        largest_layer=max(own),
        width=bare.width,
    )
