"""What every extractor can do, whatever its modality.

An extractor turns clips into *vectors*: one per frame, audio step or token, ragged over the clips
of a batch. The utterance vector of a clip is the mean of its vectors. Fine-tuning trains exactly
that vector, through a linear head, so what is trained is what is extracted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mer_dist.config import ExtractorConfig
from mer_dist.errors import UserError
from mer_dist.models import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mer_dist.shards.manifest import Row
    from mer_dist.shards.reader import Sample

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Unusable(Exception):
    """The clip has this modality, but not enough of it to be fed; the message says why."""


class Extractor(nn.Module, ABC):
    """A backbone with its preprocessing. Subclasses fill in the abstract parts."""

    modality: str
    #: LoRA target modules unless the configuration names others.
    lora_targets: list[str]
    #: Files beside the weights that a saved copy needs as well.
    extra_files: tuple[str, ...] = ()
    #: Whether ZeRO-3 may split the weights while they are read, so that no rank holds all of them.
    sharded_as_it_loads = True
    backbone: nn.Module

    def __init__(self, config: ExtractorConfig, folder: Path, dtype: torch.dtype):
        super().__init__()
        checkpoint.check(folder, config.family)
        self.config = config
        self.folder = folder
        with nullcontext() if self.sharded_as_it_loads else _loaded_whole():
            self.backbone = load_pretrained(self.backbone_class(), folder, dtype, config.quantize)

    # --- the parts that differ between families ---

    @staticmethod
    @abstractmethod
    def backbone_class() -> type[PreTrainedModel]:
        """The class that reads the published weights, or those of a fully fine-tuned copy."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Size D of the vectors."""

    @abstractmethod
    def cost(self, row: Row) -> int:
        """What a clip costs, known from the manifest; clips of equal cost share a batch."""

    @abstractmethod
    def prepare(self, sample: Sample) -> Any:
        """The clip as the backbone's input, on the CPU.

        Raises:
            Unusable: there is too little of it.
        """

    @abstractmethod
    def collate(self, items: list[Any]) -> dict[str, torch.Tensor]:
        """Prepared clips as one batch of tensors."""

    @abstractmethod
    def vectors(self, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors ``(F, D)`` of all clips one after the other, and how many each has, ``(B,)``."""

    @abstractmethod
    def batch_rule(self, device: torch.device) -> int:
        """Clips in one forward pass: batching fills a GPU, but on a CPU padding costs more than it
        gains beyond a few."""

    # --- what they share ---

    def note(self) -> str:
        """One line on what was done to the clips prepared so far, for the log; empty: nothing."""
        return ""

    def batch_size(self, device: torch.device) -> int:
        return self.config.batch or self.batch_rule(device)

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Utterance vectors ``(B, D)``: the mean over each clip's vectors."""
        return mean_by_clip(*self.vectors(**batch))


def mean_by_clip(vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean of ragged ``(F, D)`` vectors over each clip's stretch, ``(B, D)``, summed in float32."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=vectors.device), lengths)
    total = vectors.new_zeros((len(lengths), vectors.shape[1]), dtype=torch.float32)
    total = total.index_add(0, owner, vectors.float())
    return total / lengths[:, None]


def sum_of_last_four(hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The challenge baseline's representation of a layered encoder."""
    return torch.stack(hidden_states[-4:]).sum(0)


def load_pretrained(
    model_class: type, folder: Path, dtype: torch.dtype, quantize: str = "none"
) -> nn.Module:
    """``from_pretrained`` of a local folder: no network, no remote code, weights only.

    Args:
        quantize: ``none``, or ``nf4`` (Dettmers et al. 2023, "QLoRA") or ``int8`` (Dettmers et al.
            2022, "LLM.int8()") for the linear layers, computing in ``dtype``.

    Raises:
        UserError: a weight is missing, has another shape than the config says, or cannot be read.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _check_shapes(model_class, folder)
    try:
        model, report = model_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, weights_only=True,
            output_loading_info=True, quantization_config=_quantization(quantize, dtype),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model folder {folder}: {' '.join(str(error).split())[:300]}") from None
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"model folder {folder}: its weights lack {some}; is it the right family?")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such CPUs the first evaluation repacks 4-bit weights in place: gradients then no
            # longer pass them, and parts that ZeRO holds are lost.
            module.support_avx512bf16_for_cpu = False
    return model


def skeleton(model_class: type, folder: Path) -> nn.Module:
    """The model that a folder's config describes, on the meta device: shapes and no weights."""
    with _loaded_whole(), torch.device("meta"):
        return model_class(model_class.config_class.from_pretrained(folder, local_files_only=True))


def _check_shapes(model_class: type, folder: Path) -> None:
    """transformers does not name what does not fit, and under ZeRO-3 rank 0 alone would notice."""
    expected = {name: list(value.shape) for name, value in skeleton(model_class, folder).state_dict().items()}
    for path in checkpoint.weight_files(folder):
        for name, found in checkpoint.shapes(path).items():
            own = name if name in expected else name.removeprefix(f"{model_class.base_model_prefix}.")
            if expected.get(own, found) != found:
                raise UserError(f"{path}: {name} has the shape {found}, by config.json it is {expected[own]}")


@contextmanager
def _loaded_whole() -> Iterator[None]:
    """Keep ZeRO-3 from splitting a model as it is read; it is split when it is prepared."""
    from transformers.integrations import deepspeed

    # This registration alone makes from_pretrained split; Accelerate's own switch leaves it set.
    registered = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = registered


def _quantization(quantize: str, dtype: torch.dtype):
    from transformers import BitsAndBytesConfig

    if quantize == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantize == "int8" else None
