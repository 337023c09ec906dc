"""Memory of a forward and backward pass at full size, measured without running it.

The pass runs on *fake* tensors: torch's own fake mode keeps shapes, dtypes and lifetimes without
values. So the modelling code itself shows what autograd keeps, with and without LoRA, autocast and
checkpointing, and no formula can become outdated. Attention is the fused kernel of the CPU, which
keeps the same as the fused kernels of a GPU. Not seen: what quantised layers keep beyond ordinary
ones, and the workspaces of GPU libraries.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models.classifier import Classifier
from mer_dist.models.extractor import DTYPES, Extractor
from mer_dist.models.family import family_of
from mer_dist.planning.size import bare_classifier, bare_extractor, settings, tower

#: Numbers of layers to trace instead of all, for a result in seconds; the features need the last four.
FEW_LAYERS = (4, 5)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were created inside it; ``peak`` is the maximum."""

    def __init__(self, without: nn.Module):
        super().__init__()
        #: Weights exist already.
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
    """Yield a dict that fills with storage -> bytes of all that autograd saves, except weights."""
    weights = {weight.untyped_storage()._cdata for weight in _weights(model)}
    saved: dict[int, int] = {}
    # Kept alive, because the address of a freed storage may be reused.
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
    """Memory of one micro-batch of ``clips`` besides weights and gradients.

    Args:
        frames: that each clip has in the shards.

    Returns:
        Bytes that autograd keeps from the forward pass, and bytes alive at the peak of the step.
    """

    segments, _ = family_of(config.family, config.path).typical_clip(config, frames)

    def traced(layers: int | None) -> torch.Tensor:
        return _train(bare_classifier(config, classes, sharded, layers), sharded, clips, clips * segments)

    kept, peak = _with_all_layers(config, traced).tolist()
    return kept, peak


def extraction(config: ExtractorConfig, segments: int) -> int:
    """Peak bytes of a forward pass over the longest segments, besides the weights."""

    def traced(layers: int | None) -> torch.Tensor:
        return _extract(bare_extractor(config, DTYPES[config.precision], layers), segments)

    return int(_with_all_layers(config, traced))


def _with_all_layers(config: ExtractorConfig, traced: Callable[[int | None], torch.Tensor]) -> torch.Tensor:
    """The layers of a transformer are alike, so each further one adds the same."""
    layers = getattr(tower(settings(config)), "num_hidden_layers", None)
    if layers is None:
        return traced(None)
    few, more = map(traced, FEW_LAYERS)
    return few + (layers - FEW_LAYERS[0]) * (more - few)


def _train(classifier: Classifier, sharded: bool, clips: int, segments: int) -> torch.Tensor:
    """Bytes kept and at the peak, ``(2,)``."""
    extractor = classifier.extractor
    half = extractor.config.finetuning.precision == "bf16"
    batch = extractor.dummy_batch(segments)
    with _faked(classifier) as mode, saved_bytes(classifier) as saved:
        batch = {name: mode.from_tensor(value) for name, value in batch.items()}
        with LiveBytes(classifier) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=half and not sharded):
                embeddings, _ = extractor.embed(**batch)
                # Like the mean over each clip's embeddings, whose float32 copy autograd keeps.
                owner = torch.zeros(len(embeddings), dtype=torch.long)
                total = embeddings.new_zeros((clips, embeddings.shape[1]), dtype=torch.float32)
                total = total.index_add(0, owner, embeddings.float())
                utterance = F.layer_norm(total, (classifier.width,))
                loss = classifier.head(utterance.to(classifier.head.weight.dtype)).float().sum()
                del embeddings, total, utterance
            kept = sum(saved.values())
            with without_gradients(classifier):
                loss.backward()
    return torch.tensor([kept, live.peak])


def _extract(extractor: Extractor, segments: int) -> torch.Tensor:
    """Bytes at the peak, ``()``."""
    batch = extractor.dummy_batch(segments)
    with _faked(extractor.eval()) as mode, torch.no_grad():
        batch = {name: mode.from_tensor(value) for name, value in batch.items()}
        with LiveBytes(extractor) as live:
            extractor.embed(**batch)
    return torch.tensor(live.peak)


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@cache
def _mode() -> FakeTensorMode:
    """One for all traces: some models keep tensors from pass to pass, for instance the positions of DINOv3, and those of
    another mode are refused."""
    return FakeTensorMode()


def _faked(model: nn.Module) -> FakeTensorMode:
    """Give every weight of a meta model a fake tensor of the CPU, in place."""
    mode = _mode()
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
