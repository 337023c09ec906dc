"""A whole small job: real mp4 files, the three architectures very small, and a YAML file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import media_files
import small_models
from processes import launched, run

from mer_dist.processes import env

LABELED, UNLABELED = 24, 10

TEXT = """
run: {{folder: {folder}/run, processes: {processes}}}
corpus: {{path: {folder}/corpus}}
shard: {{workers: 1, clips: 9, frames: 4, image_size: 32, faces: none}}
folds: {{count: 2}}
extractors:
  clip:
    family: clip
    path: {folder}/models/clip
    finetune: {{epochs: 2, batch: 8, micro_batch: 4, precision: fp32, lora: {{rank: 2}}}}
  hubert: {{family: hubert, path: {folder}/models/hubert}}
  baichuan:
    family: baichuan
    path: {folder}/models/baichuan
    finetune: {{method: full, epochs: 1, batch: 8, micro_batch: 4, precision: fp32}}
extract: {{anchors: 4}}
fuse: {{width: 16, heads: 2, seeds: 1, epochs: 3}}
self_train: {{rounds: 1}}
"""


def make(folder: Path, processes: int = 1) -> Path:
    """The corpus, the models and ``job.yaml``, whose path is returned."""
    media_files.write_corpus(folder / "corpus", LABELED, UNLABELED)
    small_models.make(folder / "models", [f"我说第{row}句话" for row in range(LABELED + UNLABELED)])
    path = folder / "job.yaml"
    path.write_text(TEXT.format(folder=folder, processes=processes), encoding="utf-8")
    return path


def mer_dist(*arguments: str | Path, processes: int = 1, timeout: int = 500) -> subprocess.CompletedProcess:
    """The command as a user calls it, alone or under ``accelerate launch``."""
    launcher = launched(processes=processes) if processes > 1 else [sys.executable]
    return run([*launcher, "-m", "mer_dist", *arguments], env.for_children(1), timeout)


def start(*arguments: str | Path, said: str | Path = os.devnull) -> subprocess.Popen:
    """The command in the background, which writes to ``said`` what a user would see; its process alone
    gets the signals that a test sends."""
    command = [sys.executable, "-m", "mer_dist", *map(str, arguments)]
    with open(said, "wb") as file:
        return subprocess.Popen(command, env=env.for_children(1), stderr=file)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came in {seconds} s"
        time.sleep(0.2)
