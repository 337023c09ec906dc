"""On a real Slurm: the job graph, and trainings on two nodes that are disturbed and lose nothing.

Each case is a user at work; two of them work side by side, and the tests look at what came of it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import media_files
import numpy as np
import pytest
import small_models

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "stages")]
import killing  # noqa: E402
import local_slurm  # noqa: E402
import small_job  # noqa: E402
import undisturbed as alone  # noqa: E402

from mer_dist import files, quarantine  # noqa: E402
from mer_dist.errors import DONE, QUARANTINED  # noqa: E402
from mer_dist.layout import Run  # noqa: E402

pytestmark = pytest.mark.processes
#: Seconds for a job of a minute: the machine may have other things to do.
PATIENCE = 600
#: One copy of the small CLIP: steps enough to be met by a signal in the middle.
TRAINING = """
run: {{folder: {folder}/run, checkpoint_minutes: 0.05}}
corpus: {{path: {work}/corpus}}
shard: {{workers: 1, clips: 9, frames: 4, image_size: 32, faces: none}}
folds: {{count: 2}}
trackers: []
extractors:
  clip:
    family: clip
    path: {work}/models/clip
    finetune:
      {{epochs: {epochs}, batch: 8, micro_batch: 4, precision: fp32, cross_fit: false, lora: {{rank: 2}}}}
slurm: {{nodes: 2, {slurm}}}
"""
EPOCHS = 40


def needs(*cases: str):
    """Says which cases a test looks at, so that no others are begun."""
    def note(test):
        test.cases = cases
        return test
    return note


@pytest.fixture(scope="module")
def cases(request, tmp_path_factory):
    """The cases by name, each a future of what its user saw."""
    local_slurm.needed()
    folder = tmp_path_factory.mktemp("slurm")
    job = small_job.make(folder)
    broken = sorted((folder / "corpus" / "video-unlabeled-with-test2noise").glob("*.mp4"))[0]
    broken.write_bytes(broken.read_bytes()[:200])
    cluster = local_slurm.Cluster(folder / "cluster", nodes=4)
    try:
        work = SimpleNamespace(cluster=cluster, folder=folder, job=job)
        with ThreadPoolExecutor(2) as pool:
            needed = {name for item in request.session.items for name in getattr(item.function, "cases", ())}
            yield {case.__name__: pool.submit(timed, case, work) for case in (
                graph, undisturbed, requeued, node_down, time_limit, every_stage_requeued,
            ) if case.__name__ in needed}
            pool.shutdown(cancel_futures=True)
    finally:
        cluster.down()


def timed(case, work) -> SimpleNamespace:
    started = time.monotonic()
    seen = case(work)
    seen.seconds = time.monotonic() - started
    print(f"{case.__name__}: {seen.seconds:.0f} s")
    return seen


def result(future: Future) -> SimpleNamespace:
    return future.result(timeout=1200)


def training(work, name: str, nodes: str = "n1,n2", slurm: str = "warning: 30", epochs: int = EPOCHS) -> Path:
    """A folder of its own on these nodes, and its YAML file."""
    folder = work.folder / name
    folder.mkdir()
    job = folder / "job.yaml"
    others = ",".join(sorted({"n1", "n2", "n3", "n4"} - set(nodes.split(","))))
    slurm = f"{slurm}, options: {{exclude: '{others}'}}"
    job.write_text(TRAINING.format(folder=folder, work=work.folder, epochs=epochs, slurm=slurm), "utf-8")
    return job


def sharded(work, name: str, **how) -> Path:
    """A training whose shards are there already."""
    job = training(work, name, **how)
    assert work.cluster("mer-dist", "shard", job).returncode == QUARANTINED
    return job


def trained(job: Path) -> dict[str, bytes | list]:
    """What a training leaves, apart from what a clock says."""
    copy = Run(job.parent / "run").adapter("clip", "all")
    history = files.read_json(copy / "history.json")
    clocks = ("seconds", "clips_per_second")
    curves = [{key: value for key, value in row.items() if key not in clocks} for row in history["epochs"]]
    assert len(curves) == EPOCHS
    return {"curves": curves, **{path.name: path.read_bytes() for path in copy.glob("*.safetensors")}}


def under_way(work, job: Path, epoch: int) -> None:
    log = Run(job.parent / "run").log("finetune", 0)
    needle = f"epoch {epoch}/"
    work.cluster.wait(lambda: log.exists() and needle in log.read_text("utf-8"), PATIENCE, f"{job}: {needle}")


def stops(job: Path) -> list[tuple[int, int]]:
    """(step of the checkpoint that a stop left, step that the next start went on from), in order."""
    text = Run(job.parent / "run").log("finetune", 0).read_text("utf-8")
    return [(int(saved), int(went_on)) for saved, went_on in
            re.findall(r"asked to stop at step (\d+)[^§]*?going on from \S*step-(\d+)", text)]


def undisturbed(work) -> SimpleNamespace:
    job = sharded(work, "undisturbed")
    number = work.cluster.sbatch("finetune", job)
    return SimpleNamespace(state=work.cluster.ended(number, PATIENCE), trained=trained(job))


def requeued(work) -> SimpleNamespace:
    """Submitted as a graph; an administrator requeues its training, and its user cancels the rest."""
    job = training(work, "requeued", slurm="warning: 30, extract_tasks: 2")
    run = job.parent / "run"
    work.cluster.told("mer-dist", "slurm", job)
    again = work.cluster("mer-dist", "slurm", job)
    jobs = ids(Run(run))
    number = jobs["finetune"]
    work.cluster.told("scontrol", "hold", jobs["extract"])
    under_way(work, job, 5)
    asked = time.monotonic()
    work.cluster.told("scontrol", "requeue", number)
    work.cluster.wait(lambda: work.cluster.restarts(number) == 1, 60, "requeued")
    work.cluster.wait(lambda: work.cluster.state(number) == "RUNNING", 90, "running again")
    delay = time.monotonic() - asked
    print(f"requeue to restart: {delay:.1f} s")
    work.cluster.ended(number, PATIENCE)
    status = work.cluster.told("mer-dist", "slurm-status", run)
    cancelled = work.cluster.told("mer-dist", "slurm-cancel", run)
    left = work.cluster.told("squeue", "-h", "-j", ",".join(jobs.values()))
    return SimpleNamespace(again=again, status=status, cancelled=cancelled, jobs=jobs, left=left,
                           trained=trained(job), stops=stops(job), delay=delay)


def node_down(work) -> SimpleNamespace:
    job = sharded(work, "node-down", nodes="n3,n4")
    number = work.cluster.sbatch("finetune", job)
    under_way(work, job, 5)
    work.cluster.told("scontrol", "update", "nodename=n4", "state=down", "reason=tried")
    work.cluster.wait(lambda: work.cluster.restarts(number) == 1, 60, "requeued by Slurm")
    # Refused where the node, whose slurmd is well, has reported back by itself.
    work.cluster("scontrol", "update", "nodename=n4", "state=resume")
    state = work.cluster.ended(number, PATIENCE)
    return SimpleNamespace(state=state, restarts=work.cluster.restarts(number), trained=trained(job))


def time_limit(work) -> SimpleNamespace:
    """The limit comes near once a long training is under way; its next start gets a longer one, and once
    it has gone on, its user ends it."""
    cluster = work.cluster
    job = sharded(work, "time-limit", slurm="time: '02:00:00', warning: 120", epochs=100_000)
    number = cluster.sbatch("finetune", job)
    under_way(work, job, 5)
    # Limits count in minutes, and the warning comes up to a minute early.
    cluster.told("scontrol", "update", f"jobid={number}", f"timelimit={elapsed_minutes(cluster, number) + 2}")
    cluster.wait(lambda: cluster.restarts(number) == 1, 120, "requeued by itself")
    cluster.told("scontrol", "update", f"jobid={number}", "timelimit=120")
    log = Run(job.parent / "run").log("finetune", 0)
    gone_on = re.compile(r"going on from(.*\n)+.* epoch ")
    cluster.wait(lambda: bool(gone_on.search(log.read_text("utf-8"))), PATIENCE, "another epoch")
    cluster.told("scancel", number)
    state = cluster.ended(number, PATIENCE)
    epochs = [int(epoch) for epoch in re.findall(r"clip/all epoch (\d+)/", log.read_text("utf-8"))]
    return SimpleNamespace(state=state, restarts=cluster.restarts(number), epochs=epochs, stops=stops(job))


def elapsed_minutes(cluster, number: str) -> int:
    """Whole minutes for which a job has been running."""
    clock = cluster.told("squeue", "-h", "-j", number, "-o", "%M").strip()
    return int(clock.split(":")[-2])


def graph(work) -> SimpleNamespace:
    """The whole job, and a folder where one task of the array is to write a file."""
    cluster, run = work.cluster, Run(work.folder / "run")
    with open(work.job, "a", encoding="utf-8") as file:
        file.write("slurm: {nodes: 2, extract_tasks: 3, extract_at_once: 2, options: {exclude: 'n3,n4'}}\n")
    obstacle = run.features("hubert") / "00001.safetensors"
    (obstacle / "in-the-way").mkdir(parents=True)
    cluster.told("mer-dist", "slurm", work.job)
    first = ended(cluster, run)
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("[fa][ed]*/*/*") if path.is_file()}
    before |= {path: path.stat().st_mtime_ns for path in run.folder.glob("adapters/*/*/*")}
    shutil.rmtree(obstacle)
    cluster.told("mer-dist", "slurm", work.job)
    second = ended(cluster, run)
    kept = {path for path, when in before.items() if path.stat().st_mtime_ns == when}
    return SimpleNamespace(run=run, first=first, second=second, before=set(before), kept=kept,
                           verified=cluster("mer-dist", "verify", run.folder))


def ids(run: Run) -> dict[str, str]:
    return {row["stage"]: row["id"] for row in files.read_json(run.slurm / "jobs.json")["jobs"]}


def ended(cluster, run: Run) -> dict[str, list[str]]:
    """The rows of the status table by stage, once nothing of the graph is queued."""
    jobs = ",".join(ids(run).values())
    cluster.wait(lambda: not cluster.told("squeue", "-h", "-j", jobs), PATIENCE, "the graph")
    rows = cluster.told("mer-dist", "slurm-status", run.folder).splitlines()
    return {row.split()[0]: row.split() for row in rows}


#: What each stage finishes piece by piece, and never touches again.
PIECES = {"shard": "shards/0*.parquet", "extract": "features/*/0*.safetensors", "fuse": "rounds/0*/*"}


def every_stage_requeued(work) -> SimpleNamespace:
    """Submitted as a graph, of which shard, a task of extract, and fuse are requeued one after the other;
    meanwhile the same job runs in another folder without Slurm."""
    cluster, folder = work.cluster, work.folder / "every-stage"
    job, run, other = small_job.make(folder), Run(folder / "run"), Run(folder / "alone")
    slower(folder)
    settings = "slurm: {warning: 30, extract_tasks: 2, options: {exclude: 'n3,n4'}}\n"
    job.write_text(job.read_text("utf-8") + settings, "utf-8")
    options = [*alone.FROZEN, "shard.clips=4", "fuse.epochs=150", "self_train.rounds=4"]
    process = small_job.start("run", job, *options, f"run.folder={other.folder}")
    cluster.told("mer-dist", "slurm", job, *options)
    jobs, computed = ids(run), run.times("extract", 1)
    whole = {
        "shard": interrupted(cluster, run, "shard", jobs["shard"], lambda: pieces(run, "shard")),
        "extract": interrupted(cluster, run, "extract", f"{jobs['extract']}_1",
                               lambda: computed.exists() and '"0' in computed.read_text("utf-8")),
        "fuse": interrupted(cluster, run, "fuse", jobs["fuse"], lambda: pieces(run, "fuse")),
    }
    rows = ended(cluster, run)
    assert process.wait(PATIENCE) == DONE
    return SimpleNamespace(run=run, other=other, rows=rows, whole=whole)


def slower(folder: Path) -> None:
    """Clips of the six emotions, and a model, that take so long that a signal meets their stage at work."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (60, 256, 256, 3), dtype=np.uint8)
    kinds = [media_files.write_mp4(folder / f"{kind}.mp4", frames + kind,
                                   media_files.tone(300 + 50 * kind, 5)) for kind in range(6)]
    for row, clip in enumerate(sorted((folder / "corpus").glob("video-*/*.mp4"))):
        clip.unlink()
        os.link(kinds[row % 6], clip)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    small_models.make_hubert(folder / "models" / "hubert", {**small_models.SIZES, **sizes})


def pieces(run: Run, stage: str) -> dict[Path, int]:
    """What a stage has finished: path -> when it was written."""
    return {path: path.stat().st_mtime_ns for path in run.folder.glob(PIECES[stage])}


def interrupted(cluster, run: Run, stage: str, number: str, under_way: Callable) -> dict[Path, int]:
    """Requeue a job in the middle of its work; returns what was finished then."""
    cluster.wait(under_way, PATIENCE, f"{stage} under way", every=0.05)
    cluster.told("scontrol", "requeue", number)
    cluster.wait(lambda: cluster.restarts(number) == 1, 60, f"{stage} requeued")
    return pieces(run, stage)


@needs("undisturbed")
def test_two_nodes_train_one_copy_from_the_sbatch_file(cases):
    seen = result(cases["undisturbed"])
    assert seen.state == "COMPLETED" and any(name.endswith(".safetensors") for name in seen.trained)


@needs("requeued", "undisturbed")
def test_a_training_that_is_requeued_loses_no_step_and_learns_the_same_to_the_bit(cases):
    seen = result(cases["requeued"])
    assert len(seen.stops) == 1 and all(saved == went_on for saved, went_on in seen.stops)
    assert seen.trained == result(cases["undisturbed"]).trained
    assert seen.delay < 60


@needs("requeued")
def test_a_run_whose_jobs_are_queued_is_not_submitted_twice_and_cancelling_leaves_none(cases):
    seen = result(cases["requeued"])
    assert seen.again.returncode == 2 and "still queued" in seen.again.stderr
    row = next(line.split() for line in seen.status.splitlines() if line.startswith("finetune"))
    assert row[1:5] == [seen.jobs["finetune"], "COMPLETED", "1/1", "1"]
    assert seen.jobs["extract"] in seen.cancelled and seen.jobs["finetune"] not in seen.cancelled
    assert seen.left == ""


@needs("node_down", "undisturbed")
def test_a_training_whose_node_goes_down_starts_again_by_itself_and_learns_the_same(cases):
    seen = result(cases["node_down"])
    assert (seen.state, seen.restarts) == ("COMPLETED", 1)
    assert seen.trained == result(cases["undisturbed"]).trained


@needs("time_limit")
def test_a_training_is_warned_of_its_limit_saves_queues_itself_again_and_goes_on(cases):
    seen = result(cases["time_limit"])
    assert len(seen.stops) == 1 and all(saved == went_on for saved, went_on in seen.stops)
    assert seen.epochs == list(range(1, len(seen.epochs) + 1)), "no epoch twice, none left out"


@needs("time_limit")
def test_a_cancelled_training_does_not_queue_itself_again(cases):
    seen = result(cases["time_limit"])
    assert seen.state == "CANCELLED" and seen.restarts == 1


@needs("graph")
def test_an_array_task_that_fails_ends_the_graph_and_the_next_submission_does_what_is_missing(cases):
    seen = result(cases["graph"])
    assert seen.first["shard"][2:4] == ["COMPLETED", "1/1"], "a damaged clip, code 3, is no failure"
    assert seen.first["finetune"][2:4] == ["COMPLETED", "1/1"]
    assert "FAILED" in " ".join(seen.first["extract"]) and "2/3" in seen.first["extract"]
    assert "0/1" in seen.first["fuse"] and "0/1" in seen.first["report"], "they must not run"
    assert all("COMPLETED" in row for stage, row in seen.second.items() if stage != "stage")
    assert seen.kept >= {path for path in seen.before if path.suffix == ".safetensors"}
    assert quarantine.read(seen.run.quarantine)
    assert seen.run.answer.exists() and seen.run.report.exists()
    assert seen.verified.returncode == 0, seen.verified.stderr


@needs("graph")
def test_what_submitit_pickles_is_for_the_owner_alone(cases):
    folder = result(cases["graph"]).run.slurm
    assert folder.stat().st_mode & 0o777 == 0o700


@needs("every_stage_requeued")
def test_a_graph_whose_every_stage_is_requeued_goes_on_by_itself_to_the_same_bytes(cases):
    seen = result(cases["every_stage_requeued"])
    for stage, tasks in (("shard", "1/1"), ("extract", "2/2"), ("fuse", "1/1")):
        assert seen.rows[stage][2:5] == ["COMPLETED", tasks, "1"]
        told = seen.run.log(stage, int(stage == "extract")).read_text("utf-8")
        assert told.count("asked to stop") == 1, f"{stage} was not met at work"
    assert seen.rows["report"][2:4] == ["COMPLETED", "1/1"] and seen.run.report.exists()
    there, expected = (killing.outputs(run.folder) for run in (seen.run, seen.other))
    differ = {path for path in there.keys() | expected.keys() if there.get(path) != expected.get(path)}
    assert {path for path in differ if not path.startswith("slurm/")} == {"config.yaml"}
    assert "answer.csv" in expected


@needs("every_stage_requeued")
def test_no_shard_set_of_features_or_round_that_was_finished_is_made_again(cases):
    seen = result(cases["every_stage_requeued"])
    for stage, whole in seen.whole.items():
        now = pieces(seen.run, stage)
        assert whole and len(whole) < len(now), f"{stage} was not met in the middle"
        assert whole.items() <= now.items()
