"""How far features computed in tf32, bf16 or fp16 are from those in float32, on the clips of a run. ::

    python benchmarks/precision.py CONFIG [section.key=value ...]

The run has its shards; the extractors are taken as published. Of each, and of the utterance vectors: the
cosine to those in float32, median and least of the clips; the largest difference, as a part of the largest
value; and how many times as fast they came, decoding included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import ExtractorConfig
from mer_dist.models.classifier import load_extractor
from mer_dist.models.feeding import clip_embeddings
from mer_dist.shards.reader import Reader
from mer_dist.storage.run_folder import Run

EXACT = "fp32"
OTHERS = ("tf32", "bf16", "fp16")
CLIPS = 300


@dataclass(frozen=True, kw_only=True)
class Off:
    """Of one extractor in one precision, against float32."""

    extractor: str
    precision: str
    clips: int
    cosine: float
    least_cosine: float
    #: of the largest value.
    difference: float
    times_as_fast: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parsed = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"against {EXACT}, on {where}: median cosine, least, largest difference, times as fast")
    for off in compared(configuration.load(parsed.config, parsed.overrides)):
        print(
            f"  {off.extractor:12}{off.precision:6}{off.cosine:12.8f}{off.least_cosine:12.8f}"
            f"{off.difference:12.2e}{off.times_as_fast:8.2f}  ({off.clips} clips)",
            flush=True,
        )


def compared(config: Config, clips: int = CLIPS) -> Iterator[Off]:
    reader = Reader(Run(config.run.folder).shards)
    for name, extractor in config.extractors.items():
        exact, slow = utterances(replace(extractor, precision=EXACT), reader, clips)
        for precision in OTHERS:
            found, seconds = utterances(replace(extractor, precision=precision), reader, clips)
            one, other = (np.stack([own[clip] for clip in exact]) for own in (exact, found))
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            cosine = (one * other).sum(1) / norms
            yield Off(
                extractor=name,
                precision=precision,
                clips=len(exact),
                cosine=float(np.median(cosine)),
                least_cosine=float(cosine.min()),
                difference=float(np.abs(one - other).max() / np.abs(one).max()),
                times_as_fast=slow / seconds,
            )


def utterances(config: ExtractorConfig, reader: Reader, clips: int) -> tuple[dict[str, np.ndarray], float]:
    """Clip -> utterance vector in float64 of the first ``clips`` that have one, and the seconds it took."""
    device = torch.device("cuda") if torch.cuda.is_available() else None
    extractor = load_extractor(config, device=device)
    rows = [row for row in reader.rows if extractor.modality not in row.missing][:clips]
    first = dict(_vectors(extractor, reader, rows[:8]))
    started = time.perf_counter()
    found = dict(_vectors(extractor, reader, rows))
    assert first.keys() <= found.keys()
    return found, time.perf_counter() - started


def _vectors(extractor, reader: Reader, rows: list) -> Iterator[tuple[str, np.ndarray]]:
    for _, name, embeddings in clip_embeddings(extractor, reader, {0: rows}):
        if not isinstance(embeddings, str):
            yield name, embeddings.mean(0, dtype=np.float64)


if __name__ == "__main__":
    main()
