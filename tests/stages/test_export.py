"""A fine-tuned copy as a model folder that loads in a plain process, finished or not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import small_job
import torch
from conftest import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, CLIPVisionModelWithProjection

from mer_dist import config as configuration
from mer_dist import files
from mer_dist.config import load
from mer_dist.dist import env
from mer_dist.dist.checkpoint import trained_weights, whole
from mer_dist.errors import USAGE, UserError
from mer_dist.layout import Run
from mer_dist.models.classifier import load_extractor
from mer_dist.stages.export import export
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard

ONE_COPY = ("extractors.clip.finetune.cross_fit=false", "extractors.baichuan.finetune.cross_fit=false")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = small_job.make(tmp_path_factory.mktemp("job"))
    config = load(path, ONE_COPY)
    shard(config)
    configuration.save(config, Run(config.run.folder).config)
    return path


@pytest.fixture(scope="module")
def finished(job) -> Run:
    config = load(job, [*ONE_COPY, "extractors.baichuan.finetune=null"])
    finetune(config)
    return Run(config.run.folder)


def frames() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_lora_is_merged_into_weights_that_load_without_peft(job, finished, tmp_path):
    export(finished, "clip@all", tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "head.safetensors").exists()
    assert files.read_json(tmp_path / "merged" / "labels.json") == load(job).corpus.labels
    merged = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "merged").eval()
    config = load(job).extractors["clip"]
    ours = load_extractor(config, finished.adapter("clip", "all")).backbone
    frozen = load_extractor(config).backbone
    with torch.no_grad():
        found, expected, base = (model(frames()).image_embeds for model in (merged, ours, frozen))
    assert (found - expected).abs().max() < 1e-5
    assert (found - base).abs().max() > 1e-4
    # The folder serves as extractors.*.path of another run.
    again = load_extractor(configuration.ExtractorConfig(family="clip", path=str(tmp_path / "merged")))
    assert torch.equal(again.backbone.visual_projection.weight, merged.visual_projection.weight)


def test_the_adapter_alone_loads_with_peft_on_its_base(job, finished, tmp_path):
    export(finished, "clip@all", tmp_path / "adapter", adapter=True)
    base = CLIPVisionModelWithProjection.from_pretrained(load(job).extractors["clip"].path).eval()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = load_extractor(load(job).extractors["clip"], finished.adapter("clip", "all")).backbone
    with torch.no_grad():
        assert (loaded(frames()).image_embeds - ours(frames()).image_embeds).abs().max() < 1e-5


@pytest.mark.processes
def test_a_checkpoint_of_two_ranks_that_were_killed_is_exported_and_gone_on_from(job, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(Run(load(job).run.folder).shards, run.shards)
    options = [*ONE_COPY, f"run.folder={run.folder}", "extractors.clip.finetune=null",
               "extractors.baichuan.finetune.epochs=30"]
    configuration.save(load(job, options), run.config)
    where = run.checkpoints("baichuan", "all")
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                   str(ROOT / "launch/zero3-cpu.yaml"), "--main_process_port", str(env.free_port()),
                   "-m", "mer_dist", "finetune", str(job), *options, "run.checkpoint_minutes=0.0001"]
        launched = subprocess.Popen(command, env=env.for_children(1), stderr=log)
    small_job.wait_for(lambda: any(where.glob("step-*[1-9]")), 200)
    # The ranks first: torch's launcher starts each in a session of its own.
    for process in [*psutil.Process(launched.pid).children(recursive=True), launched]:
        process.kill()
    launched.wait()
    found = whole(where)
    assert found, (tmp_path / "log").read_text()[-2000:]

    export(run, "baichuan@all", tmp_path / "model", step=int(found[-1].name[5:]))
    model, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(model).__name__ == "BaichuanModel"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    weights = trained_weights(found[-1], torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[f"extractor.backbone.{name}"]), name
    assert torch.equal(load_file(tmp_path / "model" / "head.safetensors")["head.bias"], weights["head.bias"])

    done = small_job.mer_dist("finetune", job, *options, "run.checkpoint_minutes=0", processes=2)
    assert done.returncode == 0 and f"going on from {found[-1]}" in done.stderr, done.stderr[-3000:]
    assert run.adapter("baichuan", "all").exists() and not where.exists()


def test_what_is_not_there_is_refused_and_nothing_is_written(finished, job, tmp_path):
    with pytest.raises(UserError, match="clip@fold-7.* it has: clip@all"):
        export(finished, "clip@fold-7", tmp_path / "new")
    with pytest.raises(UserError, match="no whole checkpoint"):
        export(finished, "clip@all", tmp_path / "new", step=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = small_job.mer_dist("export", finished.folder, "clip@all", tmp_path / "full")
    assert done.returncode == USAGE and "not empty" in done.stderr
    assert not (tmp_path / "new").exists()
