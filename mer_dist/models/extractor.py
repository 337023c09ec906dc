"""What every extractor can do, whatever its modality.

An extractor turns clips into *vectors*: one per frame, audio step or token, ragged over the clips
of a batch. The utterance vector of a clip is the mean of its vectors. Fine-tuning trains exactly
that vector, through a linear head, so what is trained is what is extracted.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mer_dist.config import ExtractorConfig
from mer_dist.errors import UserError

if TYPE_CHECKING:
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
    backbone: nn.Module

    def __init__(self, config: ExtractorConfig, folder: Path, dtype: torch.dtype):
        super().__init__()
        self.config = config
        self.folder = folder
        self.backbone = self.load_backbone(folder, dtype)

    # --- the parts that differ between families ---

    @abstractmethod
    def load_backbone(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The published weights of ``folder``, or of a fully fine-tuned copy."""

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


def read_settings(folder: Path, name: str) -> dict:
    """A json file of a model folder.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is the model folder complete?") from None


def load_pretrained(
    model_class: type, folder: Path, dtype: torch.dtype, quantize: str = "none"
) -> nn.Module:
    """``from_pretrained`` of a local folder: no network, no remote code, weights only.

    Args:
        quantize: ``none``, or ``nf4`` (Dettmers et al. 2023, "QLoRA") or ``int8`` (Dettmers et al.
            2022, "LLM.int8()") for the linear layers, computing in ``dtype``.

    Raises:
        UserError: the folder is missing or its files are not whole.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    if not Path(folder).is_dir():
        raise UserError(f"model folder {folder} is missing; extractors.*.path must name a local folder")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
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
    return model


def _quantization(quantize: str, dtype: torch.dtype):
    from transformers import BitsAndBytesConfig

    if quantize == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantize == "int8" else None
