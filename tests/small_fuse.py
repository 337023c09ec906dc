"""Run by test_benchmarks: the fusion benchmark with few labelled clips and small models.

A program, since the benchmark starts processes: those that it starts afresh import this, too, and are as
small; those that it forks must not come from a process in which other tests have left threads.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import fuse
import fuse_setting

SMALL = {"width": 8, "heads": 2, "batch": 16}

fuse.LABELED = fuse_setting.LABELED = 60
fuse_setting.WIDTHS = {"audio": 8, "video": 6, "text": 10}
for name in ("ATTENTION", "LARGER", "AGT"):
    setattr(fuse, name, replace(getattr(fuse, name), **SMALL))
fuse.SQUARE, fuse.SEEDS, fuse.EPOCHS, fuse.ROUNDS = 64, 1, 1, 1
torch.set_num_threads(1)

if __name__ == "__main__":
    fuse.main()
