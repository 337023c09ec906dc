"""A whole job with the encoders that people use today, through nothing but YAML: SigLIP, WavLM and Qwen3, fine-tuned with
LoRA under ZeRO-3 by two processes."""

from __future__ import annotations

import csv
from pathlib import Path

import any_encoder
import media_files
import numpy as np
import pytest
from small_job import LABELED, UNLABELED, mer_dist

from mer_dist.features import store
from mer_dist.inspect.verify import verify
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

JOB = """
run: {{folder: {folder}/run, processes: {processes}}}
corpus: {{path: {folder}/corpus}}
shard: {{workers: 1, clips: 9, frames: 4, image_size: 32, faces: none}}
folds: {{count: 2}}
extractors:
  siglip: {{family: image, path: {folder}/siglip, finetune: {lora}}}
  wavlm: {{family: audio, path: {folder}/wavlm, finetune: {lora}}}
  qwen: {{family: text, path: {folder}/qwen, finetune: {lora}}}
extract: {{anchors: 4}}
fuse: {{width: 16, heads: 2, seeds: 1, epochs: 3}}
self_train: {{rounds: 1}}
"""


LORA = "{epochs: 2, batch: 8, micro_batch: 4, precision: fp32, lora: {rank: 2}}"


def make(folder: Path, processes: int) -> Path:
    media_files.write_corpus(folder / "corpus", LABELED, UNLABELED)
    any_encoder.image(folder / "siglip", "siglip")
    any_encoder.audio(folder / "wavlm", "wavlm")
    any_encoder.text(folder / "qwen", "qwen3")
    files.write_text(folder / "job.yaml", JOB.format(folder=folder, processes=processes, lora=LORA))
    return folder / "job.yaml"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.processes
def test_other_encoders_through_the_whole_job_and_zero_3_learns_what_one_process_learns(tmp_path):
    runs = {}
    for processes in (2, 1):
        folder = tmp_path / str(processes)
        job = make(folder, processes)
        planned = mer_dist("plan", job)
        assert planned.returncode == 0 and "siglip" in planned.stdout, planned.stderr[-2000:]
        done = mer_dist("run", job)
        assert done.returncode == 0, done.stderr[-4000:]
        runs[processes] = Run(folder / "run")
        assert verify(runs[processes].folder) == []
        with open(runs[processes].answer, newline="", encoding="utf-8") as file:
            assert len([*csv.DictReader(file)]) == UNLABELED
    for name in ("siglip", "wavlm", "qwen"):
        frozen, two, one = (
            store.load(run.features(own)).utterance
            for run, own in ((runs[1], name), (runs[2], f"{name}@all"), (runs[1], f"{name}@all"))
        )
        assert np.linalg.norm(two - one) < 1e-3 * np.linalg.norm(one)
        assert frozen.shape[1] == one.shape[1] == 32
    exported = mer_dist("export", runs[2].folder, "qwen@all", tmp_path / "exported")
    assert exported.returncode == 0 and (tmp_path / "exported" / "tokenizer.json").exists()
