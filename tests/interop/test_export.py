"""A fine-tuned copy as a model folder that loads in a plain process, finished or not."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import small_adapters
import small_job
import torch
from modes import as_umask, others
from peft import PeftModel
from processes import launched
from safetensors.torch import load_file
from transformers import AutoModel, CLIPVisionModelWithProjection

from mer_dist.cli import main
from mer_dist.config import config as configuration
from mer_dist.config.config import load
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import USAGE, UserError
from mer_dist.crossfit import adapters
from mer_dist.interop.export_model import export
from mer_dist.models.classifier import load_extractor, trainable_classifier
from mer_dist.processes import env
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training.checkpoint import ALONE, Progress, trained_weights, whole

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
    with as_umask(0o002):
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
    export(finished, "clip@all", tmp_path / "adapter", adapter_only=True)
    base = CLIPVisionModelWithProjection.from_pretrained(load(job).extractors["clip"].path).eval()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = load_extractor(load(job).extractors["clip"], finished.adapter("clip", "all")).backbone
    with torch.no_grad():
        assert (loaded(frames()).image_embeds - ours(frames()).image_embeds).abs().max() < 1e-5


@pytest.mark.processes
def test_a_checkpoint_of_two_ranks_that_were_killed_is_exported_and_gone_on_from(job, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(Run(load(job).run.folder).shards, run.shards)
    options = [
        *ONE_COPY,
        f"run.folder={run.folder}",
        "extractors.clip.finetune=null",
        "extractors.baichuan.finetune.epochs=30",
    ]
    configuration.save(load(job, options), run.config)
    where = run.checkpoints("baichuan", "all")
    with open(tmp_path / "log", "w") as log:
        command = [
            *launched(),
            "-m",
            "mer_dist",
            "finetune",
            str(job),
            *options,
            "run.checkpoint_minutes=0.0001",
        ]
        started = subprocess.Popen(command, env=env.for_children(1), stderr=log)
    small_job.wait_for(lambda: any(where.glob("step-*[1-9]")), 200)
    # The ranks first: torch's launcher starts each in a session of its own.
    for process in [*psutil.Process(started.pid).children(recursive=True), started]:
        process.kill()
    started.wait()
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


def test_others_of_a_group_may_use_a_copy_and_what_is_exported(finished, tmp_path):
    assert others(finished.adapter("clip", "all"), 0o002) == {}
    with as_umask(0o002):
        for name, adapter in (("merged", False), ("adapter", True)):
            export(finished, "clip@all", tmp_path / name, adapter_only=adapter)
            assert others(tmp_path / name, 0o002) == {}


def test_what_is_not_there_is_refused_and_nothing_is_written(finished, job, tmp_path):
    with pytest.raises(UserError, match="clip@fold-7.* it has: clip@all"):
        export(finished, "clip@fold-7", tmp_path / "new")
    with pytest.raises(UserError, match="no complete checkpoint"):
        export(finished, "clip@all", tmp_path / "new", step=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = small_job.mer_dist("export", finished.folder, "clip@all", tmp_path / "full")
    assert done.returncode == USAGE and "not empty" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.fixture
def four_bits(job, tmp_path) -> Run:
    """A run whose only copy, of CLIP in four bits, is finished: an adapter that was drawn at random."""
    run = Run(tmp_path / "run")
    shutil.copytree(Run(load(job).run.folder).shards, run.shards)
    config = load(
        job,
        [
            *ONE_COPY,
            f"run.folder={run.folder}",
            "extractors.baichuan.finetune=null",
            "extractors.clip.quantize=nf4",
            "extractors.clip.finetune.precision=bf16",
        ],
    )
    configuration.save(config, run.config)
    (adapter,) = adapters.planned(config)
    with files.atomic_folder(adapter.folder) as folder:
        small_adapters.trained(adapter.extractor, folder)
        files.write_marker(folder, adapter.fingerprint, content=files.contents(folder.iterdir()))
    return run


def test_the_command_writes_what_the_run_has_and_says_what_rounding_costs(four_bits, tmp_path, capsys):
    run, told = four_bits, capsys.readouterr
    config = load(run.config).extractors["clip"]
    of_run = small_adapters.embeddings(load_extractor(config, run.adapter("clip", "all")).backbone, "clip")
    assert main(["export", str(run.folder), "clip@all", str(tmp_path / "exact")]) == 0
    exported = load_extractor(ExtractorConfig(family="clip", path=str(tmp_path / "exact"))).backbone
    assert (
        small_adapters.off(small_adapters.embeddings(exported, "clip"), of_run) < 5e-6
        and "loses" not in told().err
    )
    assert main(["export", str(run.folder), "clip@all", str(tmp_path / "half"), "--precision", "bf16"]) == 0
    assert "% of what the adapter adds" in (said := told().err) and "--precision fp32 keeps it" in said
    assert (
        load_file(tmp_path / "half" / "model.safetensors")["visual_projection.weight"].dtype == torch.bfloat16
    )
    assert main(["export", str(run.folder), "clip@all", str(tmp_path / "alone"), "--adapter"]) == 0
    assert "fits only" in (said := told().err) and "quantised to nf4" in said
    shutil.rmtree(tmp_path / "alone")
    assert (
        main(
            [
                "export",
                str(run.folder),
                "clip@all",
                str(tmp_path / "alone"),
                "--adapter",
                "--precision",
                "fp32",
            ]
        )
        == USAGE
        and not (tmp_path / "alone").exists()
    )


def test_a_checkpoint_of_one_process_is_exported_unrounded_and_into_its_own_weights(four_bits, tmp_path):
    run = four_bits
    config = load(run.config)
    (adapter,) = adapters.planned(config)
    classifier = trainable_classifier(adapter.extractor, len(config.corpus.labels), 0, sharded=False)
    trained = load_file(adapter.folder / "adapter_model.safetensors")
    weights = {
        name: trained.get(name.removeprefix("extractor.backbone.").replace(".default", ""), value.detach())
        for name, value in classifier.named_parameters()
        if value.requires_grad
    }
    step = run.checkpoints("clip", "all") / "step-00000001"
    step.mkdir(parents=True)
    torch.save({"weights": weights, "optimizer": {}}, step / ALONE)
    files.write_marker(
        step,
        adapter.fingerprint,
        progress=asdict(Progress(step=1)),
        zero_stage=0,
        processes=1,
        content=files.contents([step / ALONE]),
    )
    for name, step_options in (("finished", []), ("underway", ["--step", "1"])):
        assert main(["export", str(run.folder), "clip@all", str(tmp_path / name), *step_options]) == 0
    finished, underway = (
        load_file(tmp_path / name / "model.safetensors") for name in ("finished", "underway")
    )
    assert finished.keys() == underway.keys()
    for name, value in finished.items():
        assert torch.equal(value, underway[name]), name
