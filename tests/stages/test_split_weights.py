"""Extraction with the weights of one model split over two processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import any_encoder
import media_files
import numpy as np
import pytest
from small_job import mer_dist

from mer_dist.config.config import load
from mer_dist.features import store
from mer_dist.inspect.verify import verify
from mer_dist.stages.extract import extract
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

pytestmark = [pytest.mark.slow, pytest.mark.processes]
JOB = """
run: {{folder: {folder}/run}}
corpus: {{path: {folder}/corpus}}
shard: {{workers: 1, clips: 4, frames: 2, image_size: 32, faces: none}}
folds: {{count: 2}}
extractors:
  qwen: {{family: text, path: {folder}/qwen, split: {split}, batch_budget: 40, precision: {precision}, finetune: {tuned}}}
  wavlm: {{family: audio, path: {folder}/wavlm}}
"""
TUNED = "{epochs: 1, batch: 8, precision: fp32, cross_fit: false, lora: {rank: 2}}"


def make(folder: Path, split: str, tuned: str, precision: str) -> Path:
    media_files.write_corpus(folder / "corpus", 6, 5)
    any_encoder.text(folder / "qwen", "qwen3")
    any_encoder.audio(folder / "wavlm", "wavlm")
    files.write_text(
        folder / "job.yaml", JOB.format(folder=folder, split=split, tuned=tuned, precision=precision)
    )
    return folder / "job.yaml"


def features(job: Path, name: str) -> np.ndarray:
    return store.load(Run(job.parent / "run").features(name)).utterance


@pytest.mark.parametrize(
    ("tuned", "precision", "held", "near"),
    [
        ("null", "bf16", "bfloat16", 2e-2),
        pytest.param(TUNED, "fp32", "float32", 1e-5, marks=pytest.mark.long),
    ],
)
def test_two_processes_with_half_of_the_weights_each_compute_what_one_computes(
    tmp_path, tuned, precision, held, near
):
    jobs = {split: make(tmp_path / split, split, tuned, precision) for split in ("true", "false")}
    sets = ["qwen", "wavlm"] if tuned == "null" else ["qwen", "qwen@all", "wavlm"]
    for split, job in jobs.items():
        shard(load(job))
        finetune(load(job))
        if split == "false":
            extract(load(job))
            continue
        done = mer_dist("extract", job, processes=2)
        assert done.returncode == 0, done.stderr[-4000:]
        told = re.findall(r"this process holds (\d+) % of the weights of \S+, in (\w+)", done.stderr)
        # Rank 0 tells it of each set of Qwen; parts are rounded up to whole elements.
        assert len(told) == len(sets) - 1
        assert all(50 <= int(share) <= 52 and kind == held for share, kind in told)
        assert verify(job.parent / "run") == []
    for name in sets:
        one, two = features(jobs["false"], name), features(jobs["true"], name)
        assert np.linalg.norm(two - one) < near * np.linalg.norm(one)
    if tuned == "null":
        return
    # One shard is lost: all ranks compute it again, and nothing else.
    folder = Run(jobs["true"].parent / "run").features("qwen")
    lost, kept = sorted(folder.glob("*.safetensors"))[:2]
    before = kept.stat().st_mtime_ns, lost.read_bytes()
    os.unlink(lost)
    again = mer_dist("extract", jobs["true"], processes=2)
    assert again.returncode == 0, again.stderr[-4000:]
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == before
