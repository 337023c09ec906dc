"""Bytes of one process of fine-tuning, against figures that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mer_dist.config.sections import RunConfig
from mer_dist.core.errors import UserError
from mer_dist.planning import memory
from mer_dist.planning.memory import Held
from mer_dist.processes import launch_config
from mer_dist.processes.launch_config import LaunchLayout

#: Baichuan-13B without its head for the next token; adapters of rank 16 on W_pack and our head.
PARAMETERS, TRAINABLE, LARGEST = 12_937_221_120, 13_137_926, 327_680_000
LORA = Held(
    parameters=PARAMETERS,
    trainable=TRAINABLE,
    frozen_bytes=2 * PARAMETERS,
    element=2,
    quantize="none",
    full=False,
    largest_layer=LARGEST,
    dequantized=0,
)
FULL = replace(LORA, full=True, trainable=PARAMETERS, frozen_bytes=0)
NODE = LaunchLayout(processes=8, zero_stage=3)


def test_13b_by_lora_on_8_gpus_holds_about_3_gb_and_in_full_ten_times_as_much():
    lora, full = memory.gpu(LORA, NODE), memory.gpu(FULL, NODE)
    states = ("weights", "gradients", "optimizer")
    assert sum(lora[key] for key in states) == pytest.approx(3.27e9, rel=0.01)
    # 18 bytes a parameter, DeepSpeed's own estimate.
    assert sum(full[key] for key in states) == pytest.approx(18 * PARAMETERS / 8, rel=1e-6)
    assert full["optimizer"] == 12 * PARAMETERS // 8


def test_the_gradient_buffer_holds_all_of_an_adapter_and_no_more_than_deepspeeds_of_a_whole_model():
    assert memory.gpu(LORA, NODE)["reduce bucket"] == 2 * TRAINABLE
    assert memory.gpu(LORA, replace(NODE, zero_stage=2))["reduce bucket"] == 2 * TRAINABLE
    assert memory.gpu(FULL, NODE)["reduce bucket"] == 2 * 500_000_000
    assert memory.gpu(LORA, replace(NODE, reduce_bucket=10**8))["reduce bucket"] == 2 * 10**8


def test_zero2_splits_the_optimizer_and_not_the_weights():
    where = replace(NODE, zero_stage=2)
    lora, full = memory.gpu(LORA, where), memory.gpu(FULL, where)
    assert lora["weights"] == LORA.whole and full["weights"] == 2 * PARAMETERS
    assert lora["optimizer"] == 12 * TRAINABLE // 8
    assert sum(full[key] for key in ("weights", "gradients", "optimizer")) == 2 * PARAMETERS + int(
        18 * PARAMETERS / 8
    )
    assert "gathered layers" not in full


def test_zero3_leaves_8_bit_weights_whole_and_loads_4_bit_ones_whole():
    eight = replace(LORA, quantize="int8", frozen_bytes=PARAMETERS)
    assert memory.gpu(eight, NODE)["weights"] > PARAMETERS
    four = replace(LORA, quantize="nf4", frozen_bytes=PARAMETERS * 9 // 16)
    rows = memory.gpu(four, NODE)
    assert rows["weights"] == pytest.approx(four.whole / 8, rel=0.01)
    assert memory.peak(four, rows) == four.whole + memory.CONTEXT > sum(rows.values())


def test_on_the_host_only_zero3_keeps_a_share():
    assert memory.host(LORA, NODE) - memory.PROCESS == LORA.whole // 8
    assert memory.host(LORA, replace(NODE, zero_stage=2)) - memory.PROCESS == LORA.whole
    # HuBERT is read whole by every process, and what is quantised has been larger before.
    read_whole = replace(LORA, sharded_as_it_loads=False)
    assert memory.host(read_whole, NODE) - memory.PROCESS == LORA.whole
    four = replace(LORA, quantize="nf4", frozen_bytes=PARAMETERS * 9 // 16)
    assert memory.host(four, NODE) - memory.PROCESS == four.whole + 2 * LARGEST


def test_8_bit_weights_stay_where_they_are_under_zero3():
    eight = replace(LORA, quantize="int8", frozen_bytes=PARAMETERS)
    assert memory.travels(eight, NODE, 1) == 3 * 2 * TRAINABLE * 7 // 8
    assert memory.travels(LORA, NODE, 2) == (2 * 2 * LORA.whole + 2 * 2 * TRAINABLE) * 7 // 8


def test_the_launch_file_tells_stage_machines_and_port(tmp_path):
    path = tmp_path / "launch.yaml"
    path.write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\nnum_machines: 2\n"
        "num_processes: 16\nmain_process_port: 31000\n"
    )
    run = RunConfig(folder="x", processes=8, accelerate=str(path))
    assert launch_config.layout(run) == LaunchLayout(processes=16, machines=2, zero_stage=2)
    assert launch_config.launch_port(run) == 31000
    path.write_text("distributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 4\n")
    # mer-dist run gives accelerate its own number.
    assert launch_config.layout(run) == LaunchLayout(processes=8, zero_stage=0)
    assert launch_config.layout(RunConfig(folder="x", processes=1)) == LaunchLayout(processes=1, zero_stage=0)
    assert launch_config.layout(RunConfig(folder="x", processes=4)).zero_stage == 3
    assert launch_config.layout(run).description == "plain data parallelism"
    path.write_text("distributed_type: FSDP\n")
    with pytest.raises(UserError, match="distributed_type FSDP of .* is not supported; set it to MULTI_GPU"):
        launch_config.layout(run)


def test_one_process_is_trained_here_and_by_a_launch_file_under_what_it_says(tmp_path):
    path = tmp_path / "launch.yaml"
    path.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n")
    alone = RunConfig(folder="x", processes=1, accelerate=str(path))
    assert launch_config.layout(alone) == LaunchLayout(processes=1)
    assert launch_config.alone_by_file(alone) == LaunchLayout(processes=1, zero_stage=3)
    assert launch_config.alone_by_file(RunConfig(folder="x", processes=2, accelerate=str(path))) is None
    assert launch_config.alone_by_file(RunConfig(folder="x", processes=1)) is None
    path.write_text("distributed_type: MULTI_GPU\n")
    assert launch_config.alone_by_file(alone) is None


def test_a_deepspeed_file_of_its_own_is_followed(tmp_path):
    other = tmp_path / "ds.json"
    other.write_text('{"zero_optimization": {"stage": 2}}')
    path = tmp_path / "launch.yaml"
    path.write_text(f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {other}}}\n")
    run = RunConfig(folder="x", processes=2, accelerate=str(path))
    assert launch_config.layout(run).zero_stage == 2
    other.write_text('{"zero_optimization": {"stage": 3, "reduce_bucket_size": 1e6}}')
    assert launch_config.layout(run).reduce_bucket == 1_000_000
    other.write_text("{}")
    with pytest.raises(UserError, match="deepspeed_config_file"):
        launch_config.layout(run)
