"""The whole job through the command, with two processes and damaged clips: clips to answer.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import small_job
from modes import as_umask, others

from mer_dist.config.config import load
from mer_dist.core.errors import QUARANTINED, REQUEUE
from mer_dist.core.records import UNLABELED
from mer_dist.fusion import predictions
from mer_dist.shards import shard_index
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.processes
#: Under which the job runs: a group may read what it makes.
UMASK = 0o027


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = small_job.make(tmp_path_factory.mktemp("job"), processes=2)
    folder = path.parent / "corpus" / "video-unlabeled-with-test2noise"
    broken = min(folder.glob("*.mp4"))
    broken.write_bytes(broken.read_bytes()[:200])
    with as_umask(UMASK):
        done = small_job.mer_dist("run", path)
    assert done.returncode == QUARANTINED, done.stderr[-4000:]
    return path


def run_of(job: Path) -> Run:
    return Run(load(job).run.folder)


def test_a_group_may_read_every_file_of_the_run_as_the_umask_says(job):
    folder = run_of(job).folder
    assert others(folder, UMASK) == {}
    kinds = {path.suffix for path in folder.rglob("*")}
    assert {".safetensors", ".parquet", ".tar", ".json", ".jsonl", ".log", ".csv", ".html", ".yaml"} <= kinds


def test_every_unlabelled_clip_has_one_answer_even_the_damaged_one(job):
    run = run_of(job)
    with open(run.answer, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    unlabeled = [row.name for row in shard_index.read(run.shards) if row.split == UNLABELED]
    assert len(unlabeled) == small_job.UNLABELED
    assert sorted(row["name"] for row in rows) == sorted(unlabeled)
    assert {row["discrete"] for row in rows} <= set(load(job).corpus.labels)
    lost = {(row.name, row.lost) for row in quarantine.read(run.quarantine) if row.stage == "shard"}
    assert lost == {(unlabeled[0], "video"), (unlabeled[0], "audio")}


def test_the_result_table_has_a_row_for_each_step_and_every_labelled_clip_out_of_fold(job):
    run = run_of(job)
    found = [predictions.read(path) for path in predictions.all_of(run)]
    # clip, clip tuned, hubert, baichuan, baichuan tuned, all sets, stacked; AGT; one round; the vote.
    assert len(found) == 7 + 1 + 1 + 1
    fold_of = files.read_json(run.folds)["folds"]
    for item in found:
        rows = zip(item.names, item.fold, item.labeled, strict=True)
        assert {name: fold for name, fold, labeled in rows if labeled} == fold_of
    assert run.report.exists()


def test_verify_finds_nothing_and_then_the_one_clip_that_is_taken_away(job):
    run = run_of(job)
    assert small_job.mer_dist("verify", run.folder).returncode == 0
    kept = run.answer.read_text(encoding="utf-8")
    run.answer.write_text("\n".join(kept.splitlines()[:-1]) + "\n", encoding="utf-8")
    done = small_job.mer_dist("verify", run.folder)
    run.answer.write_text(kept, encoding="utf-8")
    assert done.returncode == 1 and kept.splitlines()[-1].split(",")[0] in done.stderr


def test_a_second_run_touches_nothing_and_a_lost_piece_is_all_that_is_made_again(job):
    run = run_of(job)
    made = {
        path: path.stat().st_mtime_ns
        for part in ("shards", "adapters", "features", "linear_probes", "rounds", "vote")
        for path in (run.folder / part).rglob("*")
        if path.is_file()
    }
    lost = run.features("clip@fold-1") / "00000.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    done = small_job.mer_dist("run", job)
    assert done.returncode == QUARANTINED, done.stderr[-3000:]
    assert lost.read_bytes() == content
    again = {path for path, when in made.items() if path.stat().st_mtime_ns != when}
    told = {"set.json", "complete.json"}
    assert again <= {lost, *(lost.parent / name for name in told)}


def test_a_run_that_is_asked_to_stop_ends_with_75_and_the_next_one_goes_on(job, tmp_path):
    """SIGTERM goes to the outer command only; its ranks stop at their next boundary."""
    run = Run(tmp_path / "run")
    options = [
        f"run.folder={run.folder}",
        "extractors.clip.finetune.epochs=500",
        "extractors.baichuan.finetune=null",
    ]
    stopped = small_job.start("run", job, *options)
    log = run.log("finetune", 0)
    small_job.wait_for(lambda: log.exists() and "epoch 3/500" in log.read_text(), 120)
    stopped.terminate()
    assert stopped.wait(timeout=120) == REQUEUE
    assert files.read_json(run.status("finetune")) == {"code": REQUEUE}
    assert (
        small_job.mer_dist(
            "run", job, *options[:1], "extractors.clip.finetune=null", "extractors.baichuan.finetune=null"
        ).returncode
        == QUARANTINED
    )
    assert run.answer.exists()
