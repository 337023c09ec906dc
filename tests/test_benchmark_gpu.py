"""The check of everything at full size on a GPU, at toy size on a CPU: the same code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from mer_dist.features import store

pytestmark = pytest.mark.slow


@pytest.fixture
def check(tmp_path, benchmarks, one_thread):
    from gpu import Check

    (tmp_path / "work").mkdir()
    return Check(tmp_path, tmp_path / "work", tiny=True)


def rows_of(check, step: str) -> list[dict]:
    return [row for row in check.rows() if row["step"] == step]


def test_extraction_and_fusion_are_measured_and_told_in_tables(check):
    import gpu_device
    import gpu_extract
    import gpu_fusion
    import gpu_inputs
    from gpu_table import tables

    gpu_device.step_device(check)
    gpu_inputs.step_shards(check)
    gpu_inputs.step_models(check)
    gpu_extract.step_extract_text(check)
    gpu_extract.step_extract_frames(check)
    gpu_fusion.step_fusion(check)
    found = {(row["run"], row["precision"]): row for row in rows_of(check, "extract")}
    assert {*found} == {
        ("extract_text", "bf16"),
        *(("extract_frames", kind) for kind in ("bf16", "tf32", "fp32")),
    }
    assert found["extract_text", "bf16"]["clips"] == gpu_inputs.TINY_COUNTS["lines"]
    assert all(row["clips_s"] > 0 and row["forward_clips_s"] > 0 for row in found.values())
    # The same features in a batch and alone, and what bf16 changes is told.
    assert found["extract_text", "bf16"]["cosine_to_loop"] > 0.999
    errors = {row["precision"]: row for row in rows_of(check, "error")}
    assert errors["tf32"]["largest_in_deviations"] == 0 < errors["bf16"]["largest_in_deviations"]
    shard = store.StoredShard.open(check.work / "features" / "extract_frames-fp32" / "00000.safetensors")
    assert len(shard.names) == gpu_inputs.TINY_COUNTS["clips"]
    fused = rows_of(check, "fusion")
    assert [row["model"] for row in fused] == ["agt", "attention"]
    assert all(row["difference"] < 1e-4 and row["members"] == 15 for row in fused)
    told = "\n".join(tables(check))
    assert "| extract_text, bf16 |" in told and "| agt, width 64, batches of 32 |" in told


def test_a_step_that_has_no_time_left_is_told_with_its_command(check):
    import gpu
    from gpu_table import tables

    gpu.run_all(check, 0, gpu.STEPS)
    assert [row["what"] for row in check.rows()] == [step.name for step in gpu.STEPS]
    assert "--only STEP`: device, shards, job, models, plan, train_text" in "\n".join(tables(check))


def test_what_a_step_raises_is_in_the_results(check):
    import gpu

    gpu.run_all(
        check, 300, [gpu.Step("extract_text", "gpu_extract", 60)]
    )  # neither models nor shards are there
    (row,) = check.rows()
    assert row["step"] == "failed" and row["what"] == "extract_text" and "drawn" not in row["code"]
    assert "UserError" in row["said"] or "No such file" in row["said"]


@pytest.mark.long
@pytest.mark.processes
def test_the_whole_check_runs_to_its_end(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path), "--tiny", "--limit", "2500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["step"] in ("failed", "left out")]
    assert all(row["fine"] for row in rows if row["step"] == "job")
    assert next(row for row in rows if row["step"] == "resume")["same_bits"]
