"""Extraction against its limit and against the plain loop, by turns in one run. ::

    python benchmarks/extract.py --folder runs/benchmark

For each extractor, clips a second by

* limit: the pure forward pass on tensors that are ready in memory, sorted by length over the whole
  corpus and batched as fits best;
* extract: ``mer-dist extract`` from shards to feature files on disk;
* loop: what people use today: one clip at a time through the published preprocessing and the Hugging
  Face model, the vector saved as .npy.

Each on one thread in one process; extract also in two processes at once, the loop also on two
threads. Loading libraries and weights is left out everywhere. Rounds alternate; medians are reported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import setting
import torch

from mer_dist.config.config import Config
from mer_dist.features import extraction
from mer_dist.models.classifier import load_extractor
from mer_dist.models.extractor import Extractor, fitting_batches
from mer_dist.processes.balance import balanced
from mer_dist.shards.reader import Reader
from mer_dist.stages import extract
from mer_dist.storage.run_folder import Run

#: Multiples of the family's own budget among which the limit's batches are chosen.
BUDGETS = (0.25, 0.5, 1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(LOOPS), default=[*LOOPS])
    parsed = parser.parse_args()
    clips, text = setting.prepare(parsed.folder)
    for name in LOOPS:
        yaml = text if name in ("baichuan", "qwen3") else clips
        if name in parsed.only:
            compare(yaml, name, parsed.folder / "scratch", parsed.rounds)


def compare(yaml: Path, name: str, scratch: Path, rounds: int) -> None:
    config = setting.load(yaml)
    (work,) = [work for work in extract.planned(config) if work.set_name == name]
    rows = [
        row for members in work.shards.values() for row in members if work_modality(work) not in row.missing
    ]
    torch.set_num_threads(1)
    extractor = load_extractor(work.extractor)
    ways: dict[str, Callable[[], object]] = {
        "limit": limit(extractor, config, rows),
        "extract": lambda: run_shards(extractor, config, work, sorted(work.shards), scratch / "one"),
        "loop": plain_loop(name, extractor, config, rows, scratch, 1),
    }
    if work_modality(work) != "text":  # on two threads single short texts only stall
        ways["loop, 2 threads"] = plain_loop(name, extractor, config, rows, scratch, 2)
    with Pair(yaml, name, scratch) as pair:
        ways["extract, 2 processes"] = pair.run
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way in list(ways) if number % 2 else list(ways)[::-1]:
                started = time.perf_counter()
                ways[way]()
                if number:  # the first round warms up
                    rates[way].append(len(rows) / (time.perf_counter() - started))
    tell(name, len(rows), rates)


def work_modality(work: extraction.Work) -> str:
    from mer_dist.models.family import FAMILIES

    return FAMILIES[work.extractor.family].modality


def tell(name: str, clips: int, rates: dict[str, list[float]]) -> None:
    def ratio(one: str, other: str) -> str:
        pairs = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        return f"{statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})"

    print(f"\n{name}: {clips} clips, medians of {len(rates['limit'])} rounds")
    for way, values in rates.items():
        print(f"  {way:22}{statistics.median(values):9.2f} clips/s")
    for one, other in (
        ("extract", "limit"),
        ("extract, 2 processes", "extract"),
        ("extract", "loop"),
        ("extract, 2 processes", "loop"),
        ("extract, 2 processes", "loop, 2 threads"),
    ):
        if other in rates:
            print(f"  {one} / {other}: {ratio(one, other)}", flush=True)


def limit(extractor: Extractor, config: Config, rows: list) -> Callable[[], None]:
    """A pass over ready batches, with the budget that was the fastest of a few."""
    reader = Reader(Run(config.run.folder).shards)
    segments = [segment for row in rows for segment in extractor.prepare(reader.read(row))]
    lengths = [extractor.length(segment) for segment in segments]
    base = extractor.budget(torch.device("cpu")) or max(lengths)

    def batches(budget: float) -> list[dict[str, torch.Tensor]]:
        chosen = fitting_batches(lengths, budget)
        return [extractor.collate([segments[place] for place in batch]) for batch in chosen]

    @torch.inference_mode()
    def forward(ready: list[dict[str, torch.Tensor]]) -> None:
        for batch in ready:
            extractor.embed(**batch)

    # One piece at a time counts as well: on a CPU it is the fastest for audio.
    choices = [batches(budget) for budget in (0, *(base * factor for factor in BUDGETS))]
    times = []
    for ready in choices:
        started = time.perf_counter()
        forward(ready)
        times.append(time.perf_counter() - started)
    best = choices[int(np.argmin(times))]
    return lambda: forward(best)


def run_shards(extractor, config: Config, work: extraction.Work, shards: list[int], folder: Path) -> None:
    """What a rank of ``mer-dist extract`` does once its model is loaded."""
    torch.set_num_threads(1)
    work.folder = folder
    shutil.rmtree(folder, ignore_errors=True)
    reader = Reader(Run(config.run.folder).shards)
    for _ in extraction.Pass([work], config).over(extractor, reader, shards):
        pass


class Pair:
    """Two processes with a loaded model each, that share the shards and start together."""

    def __init__(self, yaml: Path, name: str, scratch: Path):
        context = multiprocessing.get_context("spawn")
        self.processes, self.pipes = [], []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, yaml, name, scratch, rank))
            process.start()
            self.processes.append(process)
            self.pipes.append(here)
        for pipe in self.pipes:
            pipe.recv()

    def run(self) -> None:
        for pipe in self.pipes:
            pipe.send("go")
        for pipe in self.pipes:
            pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send("end")
            process.join()


def serve(pipe, yaml: Path, name: str, scratch: Path, rank: int) -> None:
    torch.set_num_threads(1)
    config = setting.load(yaml)
    (work,) = [work for work in extract.planned(config) if work.set_name == name]
    shards = balanced(work.sizes, 2)[rank]
    extractor = load_extractor(work.extractor)
    pipe.send("ready")
    while pipe.recv() == "go":
        run_shards(extractor, config, work, shards, scratch / f"rank-{rank}")
        pipe.send("done")


def plain_loop(name: str, extractor: Extractor, config: Config, rows: list, scratch: Path, threads: int):
    """One clip at a time; its input lies in memory as the files of that loop hold it: sound samples,
    decoded face images, text."""
    reader = Reader(Run(config.run.folder).shards)
    samples = [reader.read(row) for row in rows]
    inputs = {
        "audio": lambda: [sample.waveform() for sample in samples],
        "video": lambda: [list(sample.images()) for sample in samples],
        "text": lambda: [sample.transcript for sample in samples],
    }[extractor.modality]()
    folder = scratch / "npy"
    folder.mkdir(parents=True, exist_ok=True)
    model = LOOPS[name](extractor)
    next(model)

    @torch.inference_mode()
    def loop() -> None:
        torch.set_num_threads(threads)
        for row, value in zip(rows, inputs, strict=True):
            np.save(folder / f"{row.name}.npy", model.send(value).numpy())
        torch.set_num_threads(1)

    return loop


def waveform_vectors(extractor: Extractor) -> Iterator:
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    model = AutoModel.from_pretrained(extractor.folder).eval()
    processor = Wav2Vec2FeatureExtractor.from_pretrained(extractor.folder)
    found = None
    while True:
        wave = yield found
        values = processor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        states = model(values, output_hidden_states=True).hidden_states
        found = torch.stack(states)[[-4, -3, -2, -1]].sum(0)[0].mean(0)


def clip_embeddings(extractor: Extractor) -> Iterator:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(extractor.folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(extractor.folder)
    found = None
    while True:
        images = yield found
        values = processor(images, return_tensors="pt")["pixel_values"]
        found = model(values).image_embeds.mean(0)


def siglip2_vectors(extractor: Extractor) -> Iterator:
    from transformers import Siglip2VisionModel
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    model = Siglip2VisionModel.from_pretrained(extractor.folder).eval()
    processor = Siglip2ImageProcessorPil.from_pretrained(extractor.folder)
    found = None
    while True:
        images = yield found
        found = model(**processor(images, return_tensors="pt")).pooler_output.mean(0)


def qwen3_vectors(extractor: Extractor) -> Iterator:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(extractor.folder).eval()
    found = None
    while True:
        text = yield found
        out = model(**extractor.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        found = torch.stack(out.hidden_states)[[-4, -3, -2, -1]].sum(0)[0].mean(0)


def baichuan_vectors(extractor: Extractor) -> Iterator:
    from mer_dist.models.baichuan import BaichuanForCausalLM

    model = BaichuanForCausalLM.from_pretrained(extractor.folder, dtype=torch.float32).eval()
    found = None
    while True:
        text = yield found
        ids = torch.tensor([extractor.tokenizer.encode(text)])
        # The published code offers no model without the output layer, so the loop computes it.
        states = model(ids, output_hidden_states=True).hidden_states
        found = torch.stack(states)[[-4, -3, -2, -1]].sum(0)[0].mean(0)


#: Extractor -> the loop over its clips; the last three read any model of transformers.
LOOPS: dict[str, Callable[[Extractor], Iterator]] = {
    "baichuan": baichuan_vectors,
    "clip": clip_embeddings,
    "hubert": waveform_vectors,
    "qwen3": qwen3_vectors,
    "siglip2": siglip2_vectors,
    "wavlm": waveform_vectors,
}


if __name__ == "__main__":
    main()
