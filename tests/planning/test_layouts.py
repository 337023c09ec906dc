"""The cheapest layout of fine-tuning that fits, proposed by ``plan`` and started by ``run``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mer_dist.config.config import load
from mer_dist.config.sections import RunConfig
from mer_dist.core.errors import UserError
from mer_dist.planning import layouts, memory, plan, plan_text
from mer_dist.planning.layouts import Choice, Step, Training
from mer_dist.planning.memory import Held
from mer_dist.processes import launch_config
from mer_dist.processes.launch_config import LaunchLayout
from mer_dist.stages import run

PLAIN = Choice(name="ddp", zero_stage=0, peak=28_000_000_000, travels=90_000_000)
SPLIT = Choice(name="zero3", zero_stage=3, peak=8_000_000_000, travels=45_000_000_000)
#: Adapters of rank 16 in Baichuan-13B, and every weight of CLIP-ViT-L, both in bf16.
PARAMETERS, ADAPTERS, CLIP = 12_937_221_120, 13_137_926, 303_179_776


def tuning(parameters: int, trainable: int, passes: int) -> Training:
    """With the sizes that :func:`mer_dist.planning.plan._held` would say."""
    full = parameters == trainable

    def step(where: LaunchLayout, _: float) -> Step:
        held = Held(
            parameters=parameters,
            trainable=trainable,
            frozen_bytes=0 if full else 2 * parameters,
            element=2 if where.zero_stage else 4,
            quantize="none",
            full=full,
            largest_layer=parameters // 40,
            dequantized=0,
        )
        rows = memory.gpu(held, where)
        return Step(rows=rows, peak=memory.peak(held, rows), held=held, clips=4, passes=passes)

    return step


def test_adapters_travel_by_plain_data_parallelism_where_the_frozen_weights_fit():
    choices = layouts.compare(LaunchLayout(processes=8), {"text": tuning(PARAMETERS, ADAPTERS, 1)}, 80e9)
    assert [choice.name for choice in choices] == ["ddp", "zero2", "zero3"]
    ddp, zero2, zero3 = choices
    # Sums of float32 gradients once; 16-bit gradients and then weights; all weights, forward and backward.
    assert ddp.travels == 2 * 4 * ADAPTERS * 7 // 8
    assert zero2.travels == 2 * 2 * ADAPTERS * 7 // 8
    assert zero3.travels == (2 * 2 * (PARAMETERS + ADAPTERS) + 2 * ADAPTERS) * 7 // 8
    assert layouts.cheapest(choices, 40e9) == ddp and layouts.cheapest(choices, 24e9) == zero3
    assert layouts.cheapest(choices, 2e9) is None


@pytest.mark.parametrize(("passes", "first"), [(1, "zero2"), (8, "ddp")])
def test_every_weight_travels_once_a_step_or_once_a_pass(passes, first):
    """Whether ZeRO-2's smaller numbers pay depends on how often it sums them."""
    choices = layouts.compare(LaunchLayout(processes=4), {"clip": tuning(CLIP, CLIP, passes)}, 80e9)
    assert choices[0].name == first


def test_one_layout_serves_all_extractors_by_the_largest():
    tuned = {"text": tuning(PARAMETERS, ADAPTERS, 1), "clip": tuning(CLIP, CLIP, 1)}
    ddp = next(c for c in layouts.compare(LaunchLayout(processes=8), tuned, 80e9) if c.name == "ddp")
    assert ddp.peak > 2 * PARAMETERS and ddp.travels == 2 * 4 * CLIP * 7 // 8
    assert layouts.compare(LaunchLayout(processes=1), tuned, 80e9) == []
    assert layouts.compare(LaunchLayout(processes=8), {}, 80e9) == []


def test_a_line_says_for_which_gpus_and_why():
    capacities = layouts.capacities((24, 40, 80), 79.5e9)
    assert layouts.reasons({title: [PLAIN, SPLIT] for title in capacities}, capacities) == [
        "cheapest layout that fits GPUs of 24 GB: zero3 (45.0 GB travel a step; ddp needs 28.0 GB)",
        "cheapest layout that fits GPUs of 40 GB, 80 GB, this machine (85 GB): ddp (0.090 GB travel a step)",
    ]


@pytest.mark.parametrize(
    ("told", "capacity", "stage"),
    [
        ({}, None, 3),
        ({}, 79e9, 0),
        ({}, 23e9, 3),
        ({}, 1e9, 3),
        ({"layout": "zero2"}, 79e9, 2),
        ({"layout": "ddp"}, 23e9, 0),
        ({"processes": 1}, 79e9, 0),
    ],
)
def test_what_is_told_goes_before_what_fits_and_without_a_gpu_it_is_zero3(told, capacity, stage):
    settings = RunConfig(folder="x", **{"processes": 8, **told})
    layout = launch_config.layout(settings)
    assert layouts.settled(settings, layout, [PLAIN, SPLIT], capacity).zero_stage == stage


def test_a_layout_is_one_of_three_and_a_launch_file_says_its_own(tmp_path):
    with pytest.raises(UserError, match=r"run\.layout is 'fsdp'; it must be one of: auto, ddp, zero2, zero3"):
        RunConfig(folder="x", layout="fsdp")
    with pytest.raises(UserError, match=r"run\.layout is ddp, and run\.accelerate names a launch file"):
        RunConfig(folder="x", layout="ddp", accelerate="launch.yaml")


JOB = """
run: {{folder: {folder}/run, processes: 2}}
corpus: {{path: {folder}/corpus}}
extractors:
  clip: {{family: clip, path: {path}, precision: fp32, finetune: {{batch: 8}}}}
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(folder=tmp_path, path="models/clip-vit-large-patch14"), encoding="utf-8")
    return path


def launch_file(config) -> dict:
    return yaml.safe_load(Path(run._launch_file("finetune", config)).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("layout", "capacity", "wanted"),
    [("auto", None, 3), ("ddp", None, 0), ("zero2", 79e9, 2), ("zero3", 79e9, 3)],
)
def test_run_starts_the_layout_that_is_told(job, monkeypatch, layout, capacity, wanted):
    monkeypatch.setattr(layouts, "capacity_here", lambda: capacity)
    config = load(job, [f"run.layout={layout}"])
    told = launch_file(config)
    if wanted:
        assert told["distributed_type"] == "DEEPSPEED" and told["deepspeed_config"]["zero_stage"] == wanted
    else:
        assert told["distributed_type"] == "MULTI_GPU" and "deepspeed_config" not in told
    assert plan.chosen(config).zero_stage == wanted


@pytest.mark.slow
def test_plan_says_which_layout_and_what_each_needs_and_run_starts_it(job, monkeypatch, capsys):
    monkeypatch.setattr(layouts, "capacity_here", lambda: 79e9)
    needs = plan.plan(load(job), 100)
    assert needs["layout"]["zero_stage"] == 0
    assert [choice["name"] for choice in needs["layouts"]["80 GB"]] == ["ddp", "zero2", "zero3"]
    shown = plan_text.table(needs)
    assert shown.startswith("finetune: 2 processes, one per GPU, plain data parallelism")
    assert "cheapest layout that fits GPUs of 24 GB, 40 GB, 80 GB, 141 GB, this machine (85 GB): ddp" in shown
    assert launch_file(load(job))["distributed_type"] == "MULTI_GPU"
    # The fewest are counted with what holds the least.
    assert needs["extractors"]["clip"]["finetune"]["smallest"]["24"] == 1


def test_plan_says_what_a_launch_file_does_with_one_process(tmp_path):
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n")
    settings = RunConfig(folder="x", processes=1, accelerate=str(launch))
    (told,) = layouts.alone_by_file(settings, {"text": tuning(PARAMETERS, ADAPTERS, 1)}, 80e9)
    # All of the weights, and the layers that ZeRO-3 gathers of itself.
    assert f"{launch} and one process runs ZeRO-3 (text 29." in told
    assert "mer-dist run trains one process without DeepSpeed" in told
    assert layouts.alone_by_file(RunConfig(folder="x", processes=1), {}, 80e9) == []


def test_the_room_of_this_machine_is_that_of_its_smallest_gpu(monkeypatch):
    import torch

    assert layouts.capacity_here() is None
    sizes = [85e9, 25e9]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda card: SimpleNamespace(total_memory=sizes[card])
    )
    assert layouts.capacity_here() == pytest.approx(0.93 * 25e9)
