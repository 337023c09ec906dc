"""What the checksums of a checkpoint cost: seconds of saving it, and of reading it at the next start.

python benchmarks/checkpoint.py runs/checkpoint --mebibytes 1536
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from mer_dist.storage import files
from mer_dist.training.checkpoint import Checkpoints, Progress, whole


def trained(mebibytes: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Weights that with both moments take so much."""
    width = 1024
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(max(1, mebibytes // 12))))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def seconds(act, *arguments) -> float:
    started = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - started


def cryptographic(paths: list[Path], kind: str) -> None:
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, kind)


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("folder", type=Path, help="a new folder on the disk that is asked about")
    told.add_argument("--mebibytes", type=int, default=1536)
    given = told.parse_args()
    torch.set_num_threads(1)
    model, optimizer = trained(given.mebibytes)
    checkpoints = Checkpoints(Accelerator(cpu=True), given.folder, "benchmark", keep=1, minutes=0)
    saving = seconds(checkpoints.save, model, optimizer, Progress(step=1))
    (saved,) = whole(given.folder)
    paths = [path for path in saved.iterdir() if path.name != files.MARKER]
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(f"{size:.0f} MiB, saved in {saving:.1f} s, checksums included")
    ways = {
        "crc32": (files.contents, paths),
        **{kind: (cryptographic, paths, kind) for kind in ("blake2b", "sha256")},
    }
    for kind, (act, *arguments) in ways.items():
        took = min(seconds(act, *arguments) for _ in range(3))
        print(f"{kind:8} {took:.2f} s, {size / took:.0f} MiB/s, {100 * took / saving:.0f} % of the save")
    print(f"compared and loaded in {seconds(checkpoints.load, model, optimizer):.1f} s")
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
