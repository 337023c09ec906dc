"""The whole demo as a graph of jobs on a real Slurm: fine-tuning on two nodes, extraction as an array."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(Path(__file__).parent))
import local_slurm

from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

pytestmark = [pytest.mark.processes, pytest.mark.long]
SLURM = {"nodes": 2, "extract_tasks": 3}
#: Seconds; without Slurm it takes five to ten minutes on two cores.
PATIENCE = 1500
#: WAF on the unlabelled clips: the lower ends of the intervals in the README's table.
AT_LEAST = {
    "linear_probes/baichuan@tuned.parquet": 0.537,
    "linear_probes/clip@tuned.parquet": 0.479,
    "linear_probes/@all.parquet": 0.796,
    "rounds/00/predictions.parquet": 0.791,
    "rounds/02/predictions.parquet": 0.809,
    "vote/predictions.parquet": 0.846,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """launch/demo.sh with its stages submitted."""
    local_slurm.needed()
    folder = tmp_path_factory.mktemp("demo")
    cluster = local_slurm.Cluster(folder / "cluster", nodes=2)
    try:
        settings = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text("utf-8")) | {"slurm": SLURM}
        (folder / "demo.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        cluster.output("mer-dist", "demo", "demo-data", cwd=folder, seconds=PATIENCE)
        cluster.output("mer-dist", "slurm", "demo.yaml", cwd=folder)
        run = Run(folder / settings["run"]["folder"])
        jobs = ",".join(row["id"] for row in files.read_json(run.slurm / "jobs.json")["jobs"])
        cluster.ended(jobs, PATIENCE)
        print(status := cluster.output("mer-dist", "slurm-status", run.folder))
        verified = cluster("mer-dist", "verify", run.folder, cwd=folder)
        print(cluster.output("mer-dist", "score", run.folder, "demo-data/truth.csv", cwd=folder))
        yield SimpleNamespace(
            run=run,
            status=[line.split() for line in status.splitlines()[1:]],
            verified=verified,
            scores=files.read_json(run.scores),
        )
    finally:
        cluster.down()


def test_every_stage_of_the_demo_completes_on_slurm_and_no_clip_is_lost(demo):
    assert [row[0] for row in demo.status] == ["shard", "finetune", "extract", "fuse", "report"]
    assert [row[2:5] for row in demo.status] == [
        ["COMPLETED", f"{tasks}/{tasks}", "0"] for tasks in (1, 1, SLURM["extract_tasks"], 1, 1)
    ]
    assert demo.verified.returncode == 0, demo.verified.stderr
    assert demo.run.answer.exists() and demo.run.report.exists()


def test_the_demo_on_slurm_is_about_as_good_as_without(demo):
    found = {row["file"]: row["waf"] for row in demo.scores}
    assert {file: waf for file, waf in found.items() if waf < AT_LEAST.get(file, 0)} == {}
    assert AT_LEAST.keys() <= found.keys()
