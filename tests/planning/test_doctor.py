"""The doctor: a healthy job passes, and every planted fault is found by name, beside the others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pytest
import small_job

from mer_dist.cli import main
from mer_dist.config.config import Config, load
from mer_dist.config.section import with_values
from mer_dist.core import log
from mer_dist.core.errors import UserError
from mer_dist.planning import doctor as stage
from mer_dist.planning import doctor_corpus, memory, plan


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return small_job.make(tmp_path_factory.mktemp("job"), processes=2)


@pytest.fixture(autouse=True)
def undecoded(request, monkeypatch):
    """Clips are decoded where all is healthy, and in test_doctor_corpus.py; a process each time takes seconds."""
    if "healthy" not in request.node.name:
        monkeypatch.setattr(doctor_corpus, "_decoding", lambda clips, config: "not looked at")


@pytest.fixture
def job(healthy, tmp_path):
    """A copy of the healthy job for a test to break."""
    shutil.copytree(healthy.parent, tmp_path / "job")
    path = tmp_path / "job" / "job.yaml"
    path.write_text(healthy.read_text().replace(str(healthy.parent), str(path.parent)))
    return path


@pytest.fixture
def port():
    """One that is free now, for the tests not to depend on the default one."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def launch_file(job, port: int) -> str:
    path = job.parent / "launch.yaml"
    path.write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{zero_stage: 3}}\nmain_process_port: {port}\n"
    )
    return f"run.accelerate={path}"


def faults(path, *overrides) -> dict[str, str]:
    return {check.name: check.text for check in stage.doctor(load(path, overrides)) if not check.ok}


def test_a_check_that_takes_long_says_what_it_looks_at(monkeypatch, caplog):
    def slow(config):
        time.sleep(0.2)
        return "sound"

    caplog.set_level("INFO", log.logger.name)
    monkeypatch.setattr(log, "SECONDS_OF_SILENCE", 0.02)
    monkeypatch.setattr(stage, "_checks", lambda config: [("disk", slow), ("port", lambda config: "free")])
    assert [(check.name, check.ok, check.text) for check in stage.doctor(Config())] == [
        ("disk", True, "sound"),
        ("port", True, "free"),
    ]
    assert "looking at disk ..." in caplog.text and "port" not in caplog.text


@pytest.mark.slow
def test_models_that_the_machine_cannot_load_are_named_with_what_they_take(job, monkeypatch):
    config = load(job)
    needed = plan.host_needed(config)
    assert needed.keys() == {
        ("extract", "clip"),
        ("finetune", "clip"),
        ("extract", "hubert"),
        ("extract", "baichuan"),
        ("finetune", "baichuan"),
    }
    # Two processes on this machine, each of which imports the libraries.
    assert all(2 * memory.PROCESS < size < 2.1 * memory.PROCESS for size in needed.values())
    assert stage._memory(config).startswith(
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    )
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10**6, "SC_PAGE_SIZE": 1000}.__getitem__)
    with pytest.raises(
        UserError, match="its processes take about 2.0 GB to load, and this machine has 1.0 GB"
    ):
        stage._memory(config)


@pytest.mark.slow
def test_a_healthy_job_passes_every_check(job, port, capsys):
    assert main(["doctor", str(job), launch_file(job, port)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    named = {line.split(":")[0].removeprefix("ok").strip() for line in lines}
    assert {
        "python",
        "packages",
        "launch",
        "processors",
        "memory",
        "communication",
        "model clip",
        "model hubert",
        "model baichuan",
        "corpus",
        "labels",
        "media",
        "decoding",
        "run folder",
        "home",
        "disk",
        "port",
        "open files",
    } == named


@pytest.mark.slow
def test_every_planted_fault_is_found_beside_the_others(job, port, capsys):
    models = job.parent / "models"
    (models / "baichuan" / "tokenizer.model").unlink()
    weights = models / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    hubert = models / "hubert"
    (hubert / "model.safetensors").unlink()
    shard = "model-00001-of-00002.safetensors"
    (hubert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    shutil.rmtree(job.parent / "corpus")
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        assert main(["doctor", str(job), launch_file(job, port)]) == 2
    lines = dict(
        line.removeprefix("FIX ").split(": ", 1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("FIX ")
    )
    assert lines.keys() == {"model baichuan", "model clip", "model hubert", "corpus", "port"}
    assert "tokenizer.model" in lines["model baichuan"]
    assert str(weights) in lines["model clip"] and "bytes" in lines["model clip"]
    assert shard in lines["model hubert"]
    assert "corpus" in lines["corpus"] and str(port) in lines["port"]


@pytest.mark.slow
def test_an_unsupported_launch_and_an_unreadable_launch_file_are_found(job):
    path = job.parent / "launch.yaml"
    path.write_text("distributed_type: FSDP\n")
    assert "distributed_type FSDP of" in faults(job, f"run.accelerate={path}")["launch"]
    path.unlink()
    assert "run.accelerate" in faults(job, f"run.accelerate={path}")["launch"]


@pytest.mark.slow
def test_versions_are_compared_with_those_that_were_tested(job, monkeypatch, tmp_path):
    (tmp_path / "constraints.txt").write_text("torch==1.0.0  # too old\n")
    monkeypatch.setattr("mer_dist.storage.files.shipped", lambda name: tmp_path / name)
    found = faults(job)["packages"]
    assert "torch is 2" in found and "tested is 1.0.0" in found
    config = load(job)
    config = with_values(config, trackers=["wandb"])
    (found,) = (check.text for check in stage.doctor(config) if check.name == "packages")
    assert "wandb of trackers is missing" in found


@pytest.mark.slow
def test_more_processes_than_this_machine_has_processors_are_found(job):
    assert "set run.processes=" in faults(job, "run.processes=5000")["processors"]


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_told_and_found_where_the_run_folder_cannot_help(
    job, tmp_path, monkeypatch
):
    def home(*overrides) -> str:
        return stage._home(load(job, overrides))

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "DeepSpeed compiles to" in home()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    assert f"is kept in {job.parent / 'run' / 'caches'}" in home()
    with pytest.raises(UserError, match="set HOME or TORCH_EXTENSIONS_DIR"):
        home(f"run.folder={tmp_path / 'file' / 'run'}")
    assert home("run.processes=1") == "one process compiles nothing"


@pytest.mark.slow
def test_too_little_disk_is_found_before_the_run(job):
    config = load(job, ["extract.anchors=1000000000000"])
    (found,) = (check for check in stage.doctor(config) if check.name == "disk")
    assert not found.ok and "GB are needed" in found.text


@pytest.mark.slow
def test_a_check_that_breaks_down_ends_no_other(job):
    path = job.parent / "models" / "baichuan" / "config.json"
    path.write_text('{"model_type": "baichuan", "hidden_size": [1]}')
    checks = {check.name: check for check in stage.doctor(load(job))}
    assert not checks["model baichuan"].ok and checks["model baichuan"].text
    assert checks["corpus"].ok and checks["open files"].ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "tasks", "told"),
    [
        ("echo 'MaxArraySize            = 1001'", 1002, "arrays of 1001 tasks at most"),
        ("echo 'MaxArraySize            = 1001'", 1001, None),
        (
            "echo 'slurm_load_ctl_conf: Unable to contact slurm controller' >&2; exit 1",
            2,
            "Unable to contact",
        ),
    ],
)
def test_an_array_larger_than_the_cluster_takes_is_told(job, tmp_path, monkeypatch, said, tasks, told):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\n[ \"$*\" = 'show config' ] && {{ {said}; }}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    config = load(job, [f"slurm.extract_tasks={tasks}"])
    check = dict(stage._checks(config))["job array"]
    if told:
        with pytest.raises(UserError, match=told):
            check(config)
    else:
        assert check(config) == "1001 tasks of at most 1001"
    for unasked in ([], ["slurm.partition=gpu", "slurm.extract_tasks=1"]):
        assert "job array" not in dict(stage._checks(load(job, unasked)))
