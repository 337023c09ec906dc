"""What `mer-dist plan` computes for the same runs, beside which the measured memory is told."""

from __future__ import annotations

from gpu import Check
from gpu_runs import runs

from mer_dist.config import config as configuration
from mer_dist.planning import plan


def step_plan(check: Check) -> None:
    for name, path in runs(check).items():
        (needs,) = plan.plan(configuration.load(path), clips=1000)["extractors"].values()
        stage = needs["finetune"] or needs["extract"]
        rows = {row: round(value / 1e9, 2) for row, value in stage["gpu"].items()}
        check.tell("plan", run=name, gpu_gb=stage["gpu_total"] / 1e9, host_gb=stage["host"] / 1e9, rows=rows)
