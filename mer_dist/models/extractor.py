"""The interface of extractors of every modality.

A clip is prepared as *segments*, the smallest inputs of the backbone: a frame, a window of audio, the
transcript. An extractor maps segments to *embeddings*: one per frame, audio step or token. The
utterance embedding of a clip is the mean of its embeddings. Fine-tuning trains exactly that mean
through a linear head, so training and extraction use the same features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.log import progress
from mer_dist.models import model_folder
from mer_dist.models.family import PASS, Family

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from mer_dist.shards.reader import Sample
    from mer_dist.shards.shard_index import Row

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Unusable(Exception):
    """The clip has too little of this modality for the backbone; the message gives the reason."""


class Extractor(nn.Module, ABC):
    """A backbone with its preprocessing. Subclasses implement the abstract methods."""

    family: Family
    #: Unit of a segment's length.
    unit: str
    #: Default LoRA target modules.
    lora_targets: list[str]
    #: Files that are saved with an adapter or fine-tuned model if there are any, besides ``family.files``.
    extra_files: tuple[str, ...] = ()
    #: Valid values of ``pooling``, the default first; empty: there is nothing to choose.
    poolings: tuple[str, ...] = ()
    #: Whether ``layers`` may be chosen.
    chooses_layers = False
    #: Whether a ``prompt`` may be given.
    reads_prompts = False
    #: Whether ZeRO-3 may split the weights while they are loaded, so that no rank holds all of them.
    sharded_as_it_loads = True
    #: Inside peft's wrapper while an adapter is not merged.
    backbone: PreTrainedModel | PeftModel

    def __init__(self, config: ExtractorConfig, backbone: PreTrainedModel, folder: Path | None = None):
        """Wrap a backbone, which has its weights or is on the meta device.

        Args:
            folder: of the model; None: ``config.path``.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.folder = folder or Path(config.path)
        if config.pooling and config.pooling not in self.poolings:
            choice = f"one of {', '.join(self.poolings)}" if self.poolings else "not of this family"
            raise UserError(f"extractors.*.pooling is {config.pooling!r}; for {self.folder} it is {choice}")
        if config.layers and not self.chooses_layers:
            raise UserError(f"extractors.*.layers: the family {config.family} has no layers to choose")
        if config.prompt and not self.reads_prompts:
            raise UserError(f"extractors.*.prompt: the family {config.family} reads none")
        states = getattr(backbone.config, "num_hidden_layers", 0) + 1
        if wrong := [layer for layer in config.layers if not -states <= layer < states]:
            raise UserError(
                f"extractors.*.layers names {wrong[0]}; {self.folder} has the hidden states 0 to {states - 1}"
            )

    @property
    def pooling(self) -> str:
        """``pooling``, or the family's convention."""
        return self.config.pooling or next(iter(self.poolings), "")

    @classmethod
    def from_pretrained(
        cls, config: ExtractorConfig, folder: Path, dtype: torch.dtype, device: torch.device | None = None
    ) -> Self:
        """Load the weights and the preprocessing of a model folder.

        Args:
            device: where the weights go; None: host memory.

        Raises:
            UserError: a file is missing, incomplete, or belongs to another model.
        """
        model_folder.check(folder, config.family)
        with nullcontext() if cls.sharded_as_it_loads else _loaded_whole():
            backbone = load_pretrained(
                cls.backbone_class(folder), folder, dtype, config.quantize, device, cls.unused_weights(config)
            )
        extractor = cls(config, backbone, folder)
        extractor.read_preprocessing(folder)
        return extractor

    # --- the parts that differ between families ---

    @staticmethod
    @abstractmethod
    def backbone_class(folder: Path) -> type[PreTrainedModel]:
        """The class that loads the weights in this folder, published or fully fine-tuned; families of one
        architecture have one, whatever the folder."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Size D of the embeddings."""

    @abstractmethod
    def cost(self, row: Row) -> float:
        """Approximate total length of a clip's segments, from the shard index."""

    @abstractmethod
    def prepare(self, sample: Sample) -> list[Any]:
        """The clip's segments in time order, on the CPU.

        Raises:
            Unusable: the clip is too short.
        """

    @abstractmethod
    def length(self, segment: Any) -> float:
        """Length of a segment, in :attr:`unit`."""

    @abstractmethod
    def collate(self, segments: list[Any]) -> dict[str, torch.Tensor]:
        """Segments of any clips as one batch of tensors."""

    @abstractmethod
    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        """A batch as from :meth:`collate`: so many of the longest segments that the settings allow, of any
        values. ``plan`` traces memory with it; :meth:`read_preprocessing` was not called."""

    @abstractmethod
    def embed(self, *_: Any, **batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(F, D)`` of all segments in order, and how many each has, ``(P,)``.

        The parameters are the keys of :meth:`collate`.
        """

    @classmethod
    def unused_weights(cls, config: ExtractorConfig) -> tuple[str, ...]:
        """Beginnings of the names of weights that a folder may lack, as embeddings do not depend on them; by default
        none."""
        return ()

    def read_preprocessing(self, folder: Path) -> None:
        """Read the settings that :meth:`prepare` needs from the model folder; by default none.

        Raises:
            UserError: a setting is missing.
        """

    # --- what they share ---

    @property
    def modality(self) -> str:
        return self.family.modality

    def note(self) -> str:
        """One line for the log on how the clips prepared so far were changed; empty: they were not."""
        return ""

    def budget(self, device: torch.device) -> float:
        """Largest length of one forward pass on ``device``, in :attr:`unit`."""
        return self.config.batch_budget or self.family.budgets[device.type != "cpu"]

    def shape(self, row: Row) -> tuple[int, float]:
        """Number of a clip's segments and length of the longest, from the index."""
        longest, cost = self.family.longest_segment(self.config), self.cost(row)
        return max(1, math.ceil(cost / longest)), min(cost, longest)

    def collate_clips(self, clips: list[list[Any]]) -> dict[str, torch.Tensor]:
        """The segments of complete clips as one batch for :meth:`forward`."""
        batch = self.collate([segment for segments in clips for segment in segments])
        return {"segments": torch.tensor([len(segments) for segments in clips]), **batch}

    def forward(self, segments: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        """Utterance embeddings ``(B, D)``: the mean over each clip's embeddings.

        Args:
            segments: ``(B,)``, number per clip.
        """
        embeddings, lengths = self.embed(**batch)
        of_clips = torch.segment_reduce(lengths.float(), "sum", lengths=segments, unsafe=True)
        return mean_by_clip(embeddings, of_clips.long())


def fitting_batches(lengths: list[float], budget: float) -> list[list[int]]:
    """Positions of segments in batches of the least total cost.

    A batch costs its count times its longest segment, padding included, plus :data:`PASS` of the budget
    for the forward pass itself; a segment beyond ``budget`` goes alone. Only neighbours by length share
    a batch, so dynamic programming finds the cheapest cut exactly.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best, start = np.zeros(len(order) + 1), np.zeros(len(order) + 1, int)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        counts = np.arange(1, min(end, max(1, int(budget // longest))) + 1)
        costs = best[end - counts] + counts * longest + PASS * budget
        chosen = costs.argmin()
        best[end], start[end] = costs[chosen], end - counts[chosen]
    batches, end = [], len(order)
    while end:
        batches.append(order[start[end] : end])
        end = start[end]
    return batches[::-1]


def mean_by_clip(embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean of ragged ``(F, D)`` embeddings over each clip, ``(B, D)``, summed in float32 in time order.

    The sums are deterministic on a GPU, too, and the host does not wait for them.
    """
    # A check would read the lengths back from the device.
    total = torch.segment_reduce(embeddings.float(), "sum", lengths=lengths, unsafe=True)
    return total / lengths[:, None]


def packing(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """``(P,)`` lengths of padded rows and ``(F,)`` flat indices of real positions, from mask ``(P, L)``.

    Computed on the CPU: the number of indices would have to be fetched from a device.
    """
    return {"lengths": mask.sum(1), "real": mask.flatten().nonzero()[:, 0]}


def packed(rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The embeddings ``(F, D)`` at the real positions of padded ``(P, L, D)`` rows."""
    return rows.flatten(0, 1).index_select(0, real)


def load_pretrained(
    model_class: type[PreTrainedModel],
    folder: Path,
    dtype: torch.dtype,
    quantize: str = "none",
    device: torch.device | None = None,
    unused: tuple[str, ...] = (),
) -> PreTrainedModel:
    """``from_pretrained`` of a local folder: no network, no remote code, weights only.

    Args:
        quantize: ``none``, or ``nf4`` (Dettmers et al. 2023, "QLoRA") or ``int8`` (Dettmers et al.
            2022, "LLM.int8()") for the linear layers, computing in ``dtype``.
        device: where each weight goes as it is read, so that the host never holds the model; not under
            ZeRO-3. None: host memory.
        unused: beginnings of the names of weights that may be missing.

    Raises:
        UserError: a weight is missing, unreadable, or of another shape than in the config.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _check_shapes(model_class, folder)
    hook = logging.set_tqdm_hook(partial(_progress_hook, folder))
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            quantization_config=_quantization(quantize, dtype),
            device_map=None if device is None else {"": device},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model folder {folder}: {' '.join(str(error).split())[:300]}") from None
    finally:
        logging.set_tqdm_hook(hook)
    if missing := [name for name in report["missing_keys"] if not name.startswith(unused)]:
        some = ", ".join(sorted(missing)[:3])
        raise UserError(f"model folder {folder}: its weights lack {some}; is it the right family?")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such CPUs the first evaluation repacks 4-bit weights in place: gradients then no
            # longer flow through them, and ZeRO loses its partitions.
            module.support_avx512bf16_for_cpu = False
    return model


def _progress_hook(folder: Path, factory: Callable, args: tuple, kwargs: dict) -> Any:
    """Replaces transformers' progress bar for reading weights by this program's own."""
    if len(args) == 1 and isinstance(args[0], Sized) and isinstance(args[0], Iterable):
        return progress(args[0], len(args[0]), f"reading {folder.name}", "weights")
    return factory(*args, **kwargs)


def skeleton(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """The model of a folder's config on the meta device: shapes without weights."""
    with _loaded_whole(), torch.device("meta"):
        return model_class(model_class.config_class.from_pretrained(folder, local_files_only=True))


def _check_shapes(model_class: type[PreTrainedModel], folder: Path) -> None:
    """transformers does not name a weight of the wrong shape, and under ZeRO-3 only rank 0 notices."""
    expected = {name: list(value.shape) for name, value in skeleton(model_class, folder).state_dict().items()}
    for path in model_folder.weight_files(folder):
        for name, found in model_folder.shapes(path).items():
            own = name if name in expected else name.removeprefix(f"{model_class.base_model_prefix}.")
            if expected.get(own, found) != found:
                raise UserError(f"{path}: {name} has the shape {found}, by config.json it is {expected[own]}")


@contextmanager
def _loaded_whole() -> Iterator[None]:
    """Keep ZeRO-3 from splitting a model while it is loaded; preparing the model splits it."""
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
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantize == "int8" else None
