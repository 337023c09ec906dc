"""The resources of a run before it starts: parameters, GPU and host memory, shards, disk.

Only the configuration, ``config.json`` of the models and the file list of the corpus are read; no
GPU, weights or shards are needed.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from functools import cache
from math import ceil

import numpy as np

from mer_dist import corpus
from mer_dist.config.config import Config
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.log import announce_if_long
from mer_dist.core.records import LABELED
from mer_dist.crossfit import adapters
from mer_dist.models.family import SECONDS, family_of
from mer_dist.planning import layouts, memory
from mer_dist.planning.layouts import Step, Training
from mer_dist.planning.memory import Held
from mer_dist.processes import launch_config
from mer_dist.training import supported
from mer_dist.training.partition import Passes

#: Nominal GB of common GPUs, 10^9 bytes each; up to 7 % more memory is left for fragmentation.
GPUS = (24, 40, 80, 141)
WORLDS = (1, 2, 4, 8, 16)
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
#: A photograph at the JPEG quality of the shards, and 16 kHz speech as FLAC: rough figures.
JPEG_BYTES_PER_PIXEL, FLAC_BYTES_PER_SECOND = 0.35, 18_000


def plan(config: Config, clips: int | None = None) -> dict:
    """The output of ``mer-dist plan`` as plain values; bytes unless a key shows another unit.

    Args:
        clips: number of clips if the corpus is not available; labels are then unknown.

    Raises:
        UserError: an extractor's size is unknown, or the launch file is unreadable.
    """
    layout = launch_config.layout(config.run)
    with announce_if_long("counting the clips of the corpus"):
        found, why = _clips(config, clips)
    with announce_if_long("loading the modelling code"):
        _silence_libraries()
        sizes = {name: _size(config, name) for name in config.extractors}
    with announce_if_long("tracing what each layout of fine-tuning holds in memory"):
        tuned = _tuned(config, sizes)
        capacity = layouts.capacity_here()
        capacities = layouts.capacities(GPUS, capacity)
        choices = {title: layouts.compare(layout, tuned, size) for title, size in capacities.items()}
        layout = layouts.settled(config.run, layout, choices[[*capacities][-1]], capacity)
    extractors = {}
    for name, sized in sizes.items():
        with announce_if_long(f"tracing what {name} holds in memory, in training and extraction"):
            extractors[name] = _extractor(config, name, sized, layout, tuned, capacity)
    shards = _shards(config, layout, found)
    disk = _disk(config, layout, sizes, found)
    return {
        "layout": {**asdict(layout), "description": layout.description},
        "layouts": {title: [asdict(choice) for choice in own] for title, own in choices.items()},
        "layouts_proposed": layouts.reasons(choices, capacities),
        "clips": found,
        "clips_unknown": why,
        "extractors": extractors,
        "shards": shards,
        "disk": disk,
        "warnings": [
            *_warnings(config, layout, extractors, shards),
            *layouts.alone_by_file(config.run, tuned, capacity or GPUS[-1] * 10**9),
        ],
    }


def chosen(config: Config) -> launch_config.LaunchLayout:
    """The layout in which ``mer-dist run`` starts fine-tuning on this machine.

    Raises:
        UserError: as :func:`plan`.
    """
    layout, capacity = launch_config.layout(config.run), layouts.capacity_here()
    if capacity is None or not layouts.is_open(config.run, layout, capacity):
        return layout
    _silence_libraries()
    with announce_if_long("choosing the layout of fine-tuning"):
        sizes = {name: _size(config, name) for name in config.extractors}
        choices = layouts.compare(layout, _tuned(config, sizes), capacity)
        return layouts.settled(config.run, layout, choices, capacity)


def host_needed(config: Config) -> dict[tuple[str, str], int]:
    """(stage, extractor) -> bytes of host memory of all processes on one machine while they load.

    On a machine without a GPU a model stays in host memory; what training holds beside it is not counted.

    Raises:
        UserError: as :func:`plan`.
    """
    import torch

    from mer_dist.models import precision

    layout, found = chosen(config), {}
    for name, extractor in config.extractors.items():
        sized = _size(config, name)
        if torch.cuda.is_available():
            held = sized.largest_layer * BYTES[precision.settled(extractor, precision.ON_A_GPU).precision]
        else:
            held = sized.weight_bytes(extractor.quantize, BYTES["fp32"])
        found["extract", name] = layout.per_machine * (memory.PROCESS + held)
        if extractor.finetune:
            own = memory.host(_held(extractor, sized, layout), layout)
            found["finetune", name] = layout.per_machine * own
    return found


def _tuned(config: Config, sizes: dict) -> dict[str, Training]:
    return {
        name: _training(config, extractor, sizes[name])
        for name, extractor in config.extractors.items()
        if extractor.finetune
    }


def _silence_libraries() -> None:
    """Their warnings would appear in the middle of the output."""
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()


def _clips(config: Config, given: int | None) -> tuple[dict | None, str]:
    """Counts of all and of labelled clips, or why they are unknown."""
    if given is not None:
        if given < 1:
            raise UserError(f"--clips is {given}; it must be at least 1")
        return {"all": given, "labeled": None, "from": "--clips"}, ""
    try:
        listed, _ = corpus.clips(config.corpus)
    except UserError as error:
        return None, str(error)
    labeled = sum(clip.split == LABELED for clip in listed)
    return {"all": len(listed), "labeled": labeled, "from": "the corpus"}, ""


def _size(config: Config, name: str):
    """Parameter counts of an extractor; an error shows its key."""
    from mer_dist.planning import size

    try:
        return size.size(config.extractors[name], len(config.corpus.labels))
    except UserError as error:
        key = f"extractors.{name}." + "path: " * (not str(error).startswith("path:"))
        raise UserError(f"{key}{error}") from None


def _extractor(
    config: Config,
    name: str,
    sized,
    layout: launch_config.LaunchLayout,
    tuned: dict[str, Training],
    capacity: float | None,
) -> dict:
    from mer_dist.planning import size

    extractor = config.extractors[name]
    return {
        "family": extractor.family,
        "path": extractor.path,
        "source": size.source(extractor),
        "quantize": extractor.quantize,
        "parameters": sized.parameters,
        "width": sized.width,
        "extract": _extraction(config, extractor, sized),
        "finetune": _finetuning(config, name, layout, tuned[name], sized, capacity)
        if extractor.finetune
        else None,
    }


def _extraction(config: Config, extractor: ExtractorConfig, sized) -> dict:
    """One process of ``extract``: the whole model, and the largest batch of a forward pass on a GPU. Through host
    memory pass single weights, which go to the GPU as they are read."""
    import torch

    from mer_dist.models import precision
    from mer_dist.planning import size, trace

    extractor = precision.settled(extractor, precision.ON_A_GPU)
    weights = sized.weight_bytes(extractor.quantize, BYTES[extractor.precision])
    bare = size.bare_extractor(extractor, torch.float32)
    longest = bare.family.longest_segment(extractor)
    batch = max(1, int(bare.budget(torch.device("cuda")) // longest))
    rows = {
        "weights": weights,
        "activations": trace.extraction(extractor, batch),
        "dequantised layer": _dequantized(extractor, sized, BYTES[extractor.precision]),
        "CUDA": memory.CONTEXT,
    }
    total = sum(rows.values())
    return {
        "precision": extractor.precision,
        "at_a_time": f"{batch} x {longest:g} {bare.unit}",
        "gpu": rows,
        "gpu_total": total,
        "host": memory.PROCESS + sized.largest_layer * BYTES[extractor.precision],
        "fits": [size for size in GPUS if total <= size * 10**9],
    }


def _dequantized(extractor: ExtractorConfig, sized, element: int) -> int:
    return 0 if extractor.quantize == "none" else sized.largest_linear * element


def _finetuning(
    config: Config,
    name: str,
    layout: launch_config.LaunchLayout,
    step: Training,
    sized,
    capacity: float | None,
) -> dict:
    """One process of ``finetune`` as configured, and the smallest layouts that fit."""
    extractor = config.extractors[name]
    settings = extractor.finetuning
    refused = _refused(layout, config)
    by_size = {size: step(layout, size * 10**9) for size in GPUS}
    fits = [size for size, there in by_size.items() if there.peak <= size * 10**9]
    # Passes grow with a GPU's memory: use the GPU of this machine, or the smallest one that fits.
    own = step(layout, capacity) if capacity else by_size[fits[0] if fits else GPUS[-1]]
    return {
        "method": settings.method,
        "trainable": sized.trainable,
        "refused": refused,
        "adapters": len(adapters.held_out_folds(config, name)),
        "micro_batch": own.clips,
        "at_a_time": f"{own.clips} clips",
        "gpu": own.rows,
        "gpu_total": own.peak,
        "host": memory.host(own.held, layout),
        "fits": [] if refused else fits,
        "smallest": _smallest(config, layout, step),
    }


def _training(config: Config, extractor: ExtractorConfig, sized) -> Training:
    from mer_dist.planning import trace

    settings, classes = extractor.finetuning, len(config.corpus.labels)
    family = family_of(extractor.family, extractor.path)
    segments, _ = family.typical_clip(extractor, config.shard.frames)
    longest = family.longest_segment(extractor)

    @cache
    def activations(sharded: bool, micro: int) -> int:
        return trace.training(extractor, classes, sharded, micro, config.shard.frames)[1]

    def step(where: launch_config.LaunchLayout, capacity: float) -> Step:
        held = _held(extractor, sized, where)
        budget = family.training_budget(capacity)
        passes = Passes.of(settings, np.array([segments]), np.array([longest]), budget)
        clips = passes.most(settings.batch, where.processes)
        rows = {**memory.gpu(held, where), "activations": activations(where.zero_stage > 0, clips)}
        passes_of_a_step = ceil(settings.batch / where.processes / clips)
        return Step(rows=rows, peak=memory.peak(held, rows), held=held, clips=clips, passes=passes_of_a_step)

    return step


def _held(extractor: ExtractorConfig, sized, where: launch_config.LaunchLayout) -> Held:
    """With the dtypes of :func:`mer_dist.models.classifier.trainable_classifier`."""
    settings = extractor.finetuning
    half, full = settings.precision == "bf16", settings.method == "full"
    frozen = 2 if half else 4
    return Held(
        parameters=sized.parameters,
        trainable=sized.trainable,
        frozen_bytes=0 if full else sized.weight_bytes(extractor.quantize, frozen),
        element=2 if half and where.zero_stage else 4,
        quantize=extractor.quantize,
        full=full,
        largest_layer=sized.largest_layer,
        dequantized=_dequantized(extractor, sized, frozen),
        sharded_as_it_loads=family_of(extractor.family, extractor.path).extractor_class().sharded_as_it_loads,
    )


def _smallest(config: Config, layout: launch_config.LaunchLayout, step: Training) -> dict[str, int | None]:
    """GPU size in GB -> the fewest GPUs of that size that fit the training, among ``WORLDS``."""
    chosen_by_user = config.run.accelerate or config.run.layout != "auto"
    known = layout.processes > 1 and layout.zero_stage in (0, *supported.ZERO_STAGES)
    # If the layout is open, it may be ZeRO-3, which needs least memory.
    stage = layout.zero_stage if chosen_by_user and known else 3

    def fits(world: int, size: int) -> bool:
        where = launch_config.LaunchLayout(
            processes=world,
            zero_stage=stage if world > 1 else 0,
            machines=ceil(world / 8),
            reduce_bucket=layout.reduce_bucket,
        )
        return step(where, size * 10**9).peak <= size * 10**9

    return {f"{size}": next((world for world in WORLDS if fits(world, size)), None) for size in GPUS}


def _refused(layout: launch_config.LaunchLayout, config: Config) -> str:
    """Why this launch layout is not supported; empty if it is."""
    try:
        supported.check(layout.zero_stage)
        supported.check_batches(config, layout.processes)
    except UserError as error:
        return str(error)
    return ""


def _shards(config: Config, layout: launch_config.LaunchLayout, found: dict | None) -> dict:
    pixels = len(config.shard.views) * config.shard.frames * config.shard.image_size**2
    each = int(pixels * JPEG_BYTES_PER_PIXEL + SECONDS * FLAC_BYTES_PER_SECOND)
    fitting = max(1, min(config.shard.clips, config.shard.mebibytes * 2**20 // each))
    return {
        "clip_bytes": each,
        "clips_per_shard": fitting,
        "workers": config.shard.workers,
        "processes": layout.processes,
        "count": found and ceil(found["all"] / fitting),
    }


def _disk(config: Config, layout: launch_config.LaunchLayout, sizes: dict, found: dict | None) -> dict:
    """Bytes below the run folder; those that grow with the clips are per clip if their number is unknown."""
    count = found["all"] if found else 1
    sets, saved, underway, kept = {}, 0, [0], config.run.keep_checkpoints
    for name, sized in sizes.items():
        extractor, seen = config.extractors[name], 0
        if extractor.finetune is None or config.extract.frozen:
            seen += count
        if extractor.finetune is not None:
            # Each clip by one adapter; the anchors by every adapter.
            parts = len(adapters.held_out_folds(config, name))
            seen += count + (parts - 1) * config.extract.anchors * bool(found)
            adapter = sized.trainable * _held(extractor, sized, layout).element
            saved += parts * adapter
            # With the best epochs to which they refer.
            underway.append(kept * adapter + (kept + 1) * 16 * sized.trainable)
        sets[name] = seen * _embedding_bytes(config, name, sized.width)
    return {
        "per_clip": found is None,
        "shards": _shards(config, layout, found)["clip_bytes"] * count,
        "features": sets,
        "adapters": saved,
        # Weights, masters and moments of the current training: those kept, and the one being saved.
        "checkpoints": max(underway),
    }


def disk_needed(config: Config) -> int | None:
    """Bytes that a complete run writes; None if the number of clips is unknown.

    Raises:
        UserError: an extractor's size is unknown, or the launch file is unreadable.
    """
    _silence_libraries()
    found, _ = _clips(config, None)
    sizes = {name: _size(config, name) for name in config.extractors}
    disk = _disk(config, launch_config.layout(config.run), sizes, found)
    total = disk["shards"] + sum(disk["features"].values()) + disk["adapters"] + disk["checkpoints"]
    return total if found else None


def _embedding_bytes(config: Config, name: str, width: int) -> int:
    """Bytes of one typical clip in one feature set."""
    extractor, each = config.extractors[name], width * BYTES[config.extract.storage]
    _, embeddings = family_of(extractor.family, extractor.path).typical_clip(extractor, config.shard.frames)
    return each * (1 + embeddings) if config.extract.frame_level else each


def _warnings(
    config: Config, layout: launch_config.LaunchLayout, extractors: dict, shards: dict
) -> list[str]:
    """What would fail or waste processes as configured."""
    found = []
    for name, facts in extractors.items():
        tuned = facts["finetune"]
        if tuned and tuned["refused"]:
            found.append(f"finetune {name}: {tuned['refused']}")
        elif tuned and not tuned["fits"]:
            found.append(
                f"finetune {name} does not fit: {tuned['gpu_total'] / 1e9:.1f} GB on each of "
                f"{layout.processes} GPUs, more than any of {GPUS[-1]} GB has"
            )
        if not facts["extract"]["fits"]:
            found.append(
                f"extract {name} does not fit: every process holds the whole model, "
                f"{facts['extract']['gpu_total'] / 1e9:.1f} GB; lower its budget or quantize it"
            )
    if shards["count"] is not None and shards["count"] < layout.processes:
        found.append(
            f"{shards['count']} shards for {layout.processes} processes: extract leaves some "
            "without work; lower shard.clips"
        )
    if layout.processes != config.run.processes:
        found.append(
            f"{config.run.accelerate} has {layout.processes} processes, run.processes {config.run.processes}"
        )
    return found
