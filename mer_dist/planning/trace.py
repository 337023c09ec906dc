"""Memory of a forward and backward pass at full size, measured without running it.

The pass runs on *fake* tensors: torch's own fake mode keeps shapes, types and lifetimes, and no
numbers. So the modelling code itself says what autograd keeps, with and without LoRA, autocast and
checkpointing, and no formula can fall behind it. Attention is the fused kernel of the CPU, which
keeps what the fused kernels of a GPU keep. Not seen: what quantised layers keep beyond ordinary
ones, and the workspaces of GPU libraries.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models.classifier import Classifier
from mer_dist.models.extractor import DTYPES, Extractor, sum_of_last_four
from mer_dist.models.hubert import SAMPLE_RATE
from mer_dist.planning.size import backbone, bare_classifier, bare_extractor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Traced instead of all, for an answer in seconds; the features need the last four.
FEW_LAYERS = (4, 5)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are still alive; ``peak`` is the most."""

    def __init__(self, without: nn.Module):
        super().__init__()
        #: Weights are there already.
        self.known = {weight.untyped_storage()._cdata for weight in _weights(without)}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextmanager
def saved_bytes(model: nn.Module):
    """Yield a dict that fills with storage -> bytes of all that autograd saves, weights excepted."""
    weights = {weight.untyped_storage()._cdata for weight in _weights(model)}
    saved: dict[int, int] = {}
    # Held, because a freed storage's address may be given to the next one.
    held = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
            held.append(storage)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield saved


def training(
    config: ExtractorConfig, classes: int, sharded: bool, clips: int, frames: int
) -> tuple[int, int]:
    """What one micro-batch of ``clips`` takes beside weights and gradients.

    Args:
        frames: that each clip has in the shards.

    Returns:
        Bytes that autograd keeps from the forward pass, and bytes alive at the peak of the step.
    """

    def traced(layers: int) -> tuple[int, int]:
        return _train(config, bare_classifier(config, classes, sharded, layers), sharded, clips, frames)

    kept, peak = zip(*map(traced, FEW_LAYERS), strict=True)
    return _with_all_layers(config, *kept), _with_all_layers(config, *peak)


def extraction(config: ExtractorConfig, pieces: int) -> int:
    """Bytes alive at the peak of a forward pass over the longest pieces, beside the weights."""

    def traced(layers: int) -> int:
        return _extract(config, bare_extractor(config, DTYPES[config.precision], layers), pieces)

    return _with_all_layers(config, *map(traced, FEW_LAYERS))


def _with_all_layers(config: ExtractorConfig, few: int, more: int) -> int:
    """The layers of these models are alike, so each one more adds the same."""
    layers = backbone(config, torch.float32).config.num_hidden_layers
    return few + (layers - FEW_LAYERS[0]) * (more - few)


def _train(
    config: ExtractorConfig, classifier: Classifier, sharded: bool, clips: int, frames: int
) -> tuple[int, int]:
    half = config.finetuning.precision == "bf16"
    with _faked(classifier), saved_bytes(classifier) as saved:
        inputs = _inputs(config, classifier.extractor.backbone, clips, frames)
        with LiveBytes(classifier) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=half and not sharded):
                vectors = _vectors(config, classifier.extractor.backbone, inputs)
                # As the mean over each clip's vectors, of which autograd keeps the float32 copy.
                owner = torch.zeros(len(vectors), dtype=torch.long)
                total = vectors.new_zeros((clips, vectors.shape[1]), dtype=torch.float32)
                total = total.index_add(0, owner, vectors.float())
                utterance = F.layer_norm(total, (classifier.width,))
                loss = classifier.head(utterance.to(classifier.head.weight.dtype)).float().sum()
                del vectors, total, utterance
            kept = sum(saved.values())
            with without_gradients(classifier):
                loss.backward()
    return kept, live.peak


def _extract(config: ExtractorConfig, extractor: Extractor, pieces: int) -> int:
    with _faked(extractor.eval()), torch.no_grad():
        inputs = _inputs(config, extractor.backbone, pieces, frames=1)
        with LiveBytes(extractor) as live:
            _vectors(config, extractor.backbone, inputs)
    return live.peak


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _faked(model: nn.Module) -> FakeTensorMode:
    """Give every weight of a meta model a fake tensor of the CPU, in place."""
    mode = FakeTensorMode()
    with mode:
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(empty, value.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    return mode


@contextmanager
def without_gradients(model: nn.Module):
    """Drop each gradient as soon as it is ready: gradients are counted with the weights."""

    def drop(weight: torch.Tensor) -> None:
        weight.grad = None

    hooks = [
        weight.register_post_accumulate_grad_hook(drop)
        for weight in model.parameters()
        if weight.requires_grad
    ]
    yield
    for hook in hooks:
        hook.remove()


def _inputs(config: ExtractorConfig, model: PreTrainedModel, clips: int, frames: int) -> dict:
    """A batch of the longest clips that the settings allow."""
    if config.family == "clip":
        side, used = model.config.image_size, min(frames, config.frames or frames)
        pixels = torch.empty(clips * used, 3, side, side, dtype=model.dtype)
        return {"pixel_values": pixels}
    if config.family == "hubert":
        samples = round(config.window * SAMPLE_RATE)
        return {"input_values": torch.empty(clips, samples, dtype=model.dtype)}
    return {"input_ids": torch.zeros(clips, config.max_tokens, dtype=torch.long), "use_cache": False}


def _vectors(config: ExtractorConfig, model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    """As the extractors take them, of clips without padding: which clip owns a vector is data."""
    if config.family == "clip":
        return model(**inputs).image_embeds
    states = model(**inputs, output_hidden_states=4 if config.family == "baichuan" else True).hidden_states
    return sum_of_last_four(states).flatten(0, 1)
