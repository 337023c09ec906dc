"""Extraction at full size: clips a second, against the forward pass alone and the published way, one by one."""

from __future__ import annotations

import math

import numpy as np
import torch
from gpu import Check
from gpu_device import busy, device, syncs, timed
from gpu_inputs import counts
from gpu_runs import runs

from mer_dist.config import config as configuration
from mer_dist.features import extraction, store
from mer_dist.models.extractor import Extractor, fitting_batches
from mer_dist.models.precision import products
from mer_dist.shards.reader import Reader
from mer_dist.stages import extract
from mer_dist.storage.run_folder import Run


def step_extract_text(check: Check) -> None:
    _measure(check, "extract_text", "bf16")


def step_extract_nf4(check: Check) -> None:
    _measure(check, "extract_nf4", "bf16", loop=False)


def step_extract_frames(check: Check) -> None:
    _measure_each(check, "extract_frames")


def step_extract_sound(check: Check) -> None:
    _measure_each(check, "extract_sound")


def _measure_each(check: Check, run: str) -> None:
    """In the three precisions, and how far apart the features are."""
    found = {"bf16": _measure(check, run, "bf16")}
    found |= {precision: _measure(check, run, precision, loop=False) for precision in ("tf32", "fp32")}
    for precision in ("bf16", "tf32"):
        check.tell("error", run=run, precision=precision, **_apart(found[precision], found["fp32"]))


def _apart(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of features (N, D): the smallest cosine, and the largest difference as a part of the deviation of the
    feature over the clips, which is what a standardised feature is told in."""
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    std = other.std(0) + 1e-12
    parts = np.abs(one - other) / std
    return {
        "smallest_cosine": float(cosines.min()),
        "median_in_deviations": float(np.median(parts)),
        "largest_in_deviations": float(parts.max()),
    }


def _measure(check: Check, run: str, precision: str, loop: bool = True) -> np.ndarray:
    """Time the whole stage, the forward pass alone, and the loop; returns the features (N, D)."""
    path = runs(check)[run]
    family = configuration.load(path).extractors.popitem()[0]
    config = configuration.load(path, (f"extractors.{family}.precision={precision}",))
    (work,) = extract.planned(config)
    work.folder = check.work / "features" / f"{run}-{precision}"
    where = device()
    load, extractor = timed(lambda: extraction.loaded(work, config))
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    reader = Reader(Run(config.run.folder).shards)

    def whole() -> None:
        for _ in extraction.Pass([work], config).over(extractor, reader, sorted(work.shards)):
            pass

    cold = timed(whole)[0] if loop else math.nan
    warm, _ = timed(whole)
    rows = [row for own in work.shards.values() for row in own if extractor.modality not in row.missing]
    batches, flops = _batches(extractor, reader, rows, where)

    def forward() -> None:
        with torch.inference_mode(), products(precision, where):
            for batch in batches:
                extractor.embed(**batch)

    _once(extractor, batches[0])
    alone, _ = timed(forward)
    peak = check.measured("device", precision, math.nan)
    facts = {
        "load_s": load,
        "cold": len(rows) / cold,
        "clips_s": len(rows) / warm,
        "forward_clips_s": len(rows) / alone,
        "of_forward": alone / warm,
        "of_peak": flops / warm / 1e12 / peak,
        "forward_of_peak": flops / alone / 1e12 / peak,
        "busy": busy(forward) if loop else None,
        "syncs": syncs(lambda: _once(extractor, batches[len(batches) // 2])),
    }
    if where.type == "cuda":
        facts["gpu_gb"] = torch.cuda.max_memory_reserved() / 1e9
        facts["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
    found = _features(work)
    if loop:
        with products(precision, where):
            facts |= _against_loop(
                extractor, reader, rows[: counts(check)["loop"]], where, found, len(rows) / warm
            )
    check.tell("extract", run=run, precision=precision, clips=len(rows), **facts)
    return np.stack(list(found.values()))


def _batches(extractor: Extractor, reader: Reader, rows: list, where: torch.device) -> tuple[list, float]:
    """The forward passes of all clips, on the device, and the operations that their matrix products need."""
    segments = [
        segment for row in rows for segment in extractor.prepare(reader.read(row, extractor.modality))
    ]
    lengths = [extractor.length(segment) for segment in segments]
    batches = [
        {
            name: value.to(where)
            for name, value in extractor.collate([segments[place] for place in batch]).items()
        }
        for batch in fitting_batches(lengths, extractor.budget(where))
    ]
    return batches, _flops(extractor, lengths)


def _once(extractor: Extractor, batch: dict) -> None:
    with torch.inference_mode():
        extractor.embed(**batch)


def _features(work: extract.Work) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for shard in work.shards:
        read = store.StoredShard.open(work.file(shard), frames=False)
        found |= dict(zip(read.names, read.utterance.astype(float), strict=True))
    return found


def _against_loop(extractor, reader, rows, where, found, clips_s: float) -> dict[str, float]:
    """The published way: one clip at a time through the same model."""

    @torch.inference_mode()
    def one_by_one() -> list[np.ndarray]:
        alone = []
        for row in rows:
            batch = extractor.collate(extractor.prepare(reader.read(row, extractor.modality)))
            embeddings, _ = extractor.embed(**{name: value.to(where) for name, value in batch.items()})
            alone.append(embeddings.float().cpu().numpy().mean(0))
        return alone

    one_by_one()
    seconds, alone = timed(one_by_one)
    together = np.stack([found[row.name] for row in rows])
    return {
        "loop_clips_s": len(rows) / seconds,
        "against_loop": clips_s * seconds / len(rows),
        "cosine_to_loop": _apart(np.stack(alone), together)["smallest_cosine"],
    }


def _flops(extractor: Extractor, lengths: list[float]) -> float:
    """Of the matrix products of a forward pass over pieces of these lengths."""
    model = extractor.backbone.config
    model = getattr(model, "vision_config", model)
    width, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    family = extractor.config.family
    if family == "baichuan":
        each = layers * (4 * width**2 + 3 * width * inner)
        return sum(2 * each * length + 2 * layers * length**2 * width for length in lengths)
    each = layers * (4 * width**2 + 2 * width * inner)
    if family == "clip":
        seen = (model.image_size // model.patch_size) ** 2 + 1
        return sum(lengths) * (2 * each * seen + 4 * layers * seen**2 * width)
    rate, convolutions, before = 16_000.0, 0.0, 1
    for channels, kernel, stride in zip(model.conv_dim, model.conv_kernel, model.conv_stride, strict=True):
        rate /= stride
        convolutions += 2 * rate * before * channels * kernel
        before = channels
    position = 2 * rate * model.num_conv_pos_embeddings * width**2 / model.num_conv_pos_embedding_groups
    # Lengths are seconds; attention, quadratic in them, is a hundredth of this and left out.
    return sum(lengths) * (2 * each * rate + convolutions + position)
