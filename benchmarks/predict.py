"""Predicting new clips: a warm predictor against the bare decoding and forward passes, and start-up against imports.

On one core, with a run of the demo's models. In each round the clips are decoded by ``decode`` alone, their batches go
through the extractors' ``embed`` alone, and ``Predictor`` does both and all the rest: storing as JPEG and FLAC, reading
back, batching, fusion. Start-up is the time until the models are loaded, in a process of its own, against one that
imports the same libraries. Medians, alternating. ::

    taskset -c 0 python benchmarks/predict.py runs/demo demo-data/corpus/video-unlabeled --clips 100
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from comparison import command

from mer_dist.corpus import convert
from mer_dist.corpus.decode import decode
from mer_dist.models import feeding
from mer_dist.predict import clips as listing
from mer_dist.predict.predictor import Predictor
from mer_dist.processes.threads import torch_threads
from mer_dist.shards.reader import MemoryReader

#: The libraries that a predictor of the demo's models imports.
IMPORTS = (
    "import torch, peft, pyarrow.parquet, numpy, scipy.optimize, sklearn.linear_model, safetensors.torch, av, cv2, "
    "soundfile, sentencepiece, omegaconf, rich.progress; from transformers import CLIPModel, HubertModel, "
    "PreTrainedModel, AutoFeatureExtractor, CLIPImageProcessor"
)
LOADED = "import sys; from mer_dist.predict.predictor import Predictor; Predictor.load(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="of media files")
    parser.add_argument("--transcripts", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    print(command())
    found = listing.find(parsed.folder, parsed.transcripts)[0][: parsed.clips]
    predictor = Predictor.load(parsed.model)
    with torch_threads(1):
        warm(predictor, found, parsed.rounds)
    start_up(parsed.model, parsed.rounds)


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def warm(predictor: Predictor, found: list, rounds: int) -> None:
    encoded = [convert.convert(predictor.shard, clip) for clip in found]
    batches = batches_of(predictor, encoded)

    def forward() -> None:
        for extractor, batch in batches:
            feeding.asked(extractor, batch, predictor.device).fetched()

    def whole() -> None:
        predictor.encoded([convert.convert(predictor.shard, clip) for clip in found])

    times: dict[str, list[float]] = {
        "decoding": [],
        "forward passes": [],
        "all": [],
        "storing and reading back": [],
    }
    for number in range(rounds + 1):
        once = {
            "decoding": seconds(lambda: [decode(clip, predictor.shard) for clip in found]),
            "forward passes": seconds(forward),
            "all": seconds(whole),
        }
        once["storing and reading back"] = (
            seconds(lambda: [convert.convert(predictor.shard, clip) for clip in found]) - once["decoding"]
        )
        if number:  # the first round warms up
            for name, own in once.items():
                times[name].append(own)
    middle = {name: statistics.median(own) for name, own in times.items()}
    for name, own in middle.items():
        print(f"{name:28} {1000 * own / len(found):7.1f} ms a clip")
    ratios = [
        whole / (decoding + passes)
        for whole, decoding, passes in zip(
            times["all"], times["decoding"], times["forward passes"], strict=True
        )
    ]
    print(f"all over decoding and forward passes: {statistics.median(ratios):.2f} (aim: under 1.2)")


def batches_of(predictor: Predictor, encoded: list) -> list[tuple]:
    """Extractor and batch of every forward pass, as predicting makes them."""
    reader, found = MemoryReader([one for one in encoded if one.members]), []
    for _, extractor in predictor.extractors:
        for rows in feeding._chunks(extractor, reader.rows, predictor.device):
            ready = feeding._ready(extractor, reader, predictor.device, map, (0, rows))
            found += [(extractor, batch) for _, batch in ready.batches]
    return found


def start_up(model: Path, rounds: int) -> None:
    times: dict[str, list[float]] = {"imports": [], "until the models are loaded": []}
    for _ in range(rounds):
        for name, words in zip(times, (["-c", IMPORTS], ["-c", LOADED, str(model)]), strict=True):
            call = [sys.executable, *words]
            times[name].append(
                seconds(lambda call=call: subprocess.run(call, check=True, capture_output=True))
            )
    for name, own in times.items():
        print(f"{name:28} {statistics.median(own):7.2f} s")
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    print(f"start-up over imports: {ratio:.2f} (aim: under 1.2)")


if __name__ == "__main__":
    main()
