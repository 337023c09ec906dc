"""Users at work on a real Slurm: each function is a case, which returns what its user saw."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import media_files
import numpy as np
import small_job
import small_models
import undisturbed as alone

from mer_dist.core.errors import DONE, QUARANTINED
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

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
EPOCHS = 20


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
    """Wait until this epoch is over and there is a checkpoint."""
    needles = (f"epoch {epoch}/", "checkpoint at step")
    work.cluster.wait(lambda: all(needle in told(job) for needle in needles), PATIENCE, f"{job}: {needles}")


def told(job: Path) -> str:
    """The log of a training's rank 0."""
    log = Run(job.parent / "run").log("finetune", 0)
    return log.read_text("utf-8") if log.exists() else ""


def going_on(work, job: Path, times: int) -> None:
    """Wait until a training has gone on so many times, and trained another epoch since."""
    gone_on = re.compile(r"going on from(.*\n)+.* epoch " * times)
    work.cluster.wait(lambda: bool(gone_on.search(told(job))), PATIENCE, f"{job}: another epoch")


def stops(job: Path) -> list[tuple[int, int]]:
    """(step of the checkpoint that a stop left, step that the next start went on from), in order."""
    return [
        (int(saved), int(went_on))
        for saved, went_on in re.findall(
            r"asked to stop at step (\d+)[^§]*?going on from \S*step-(\d+)", told(job)
        )
    ]


def beginnings(job: Path) -> list[int]:
    """The step at which every start of a training began."""
    starts = re.split(r"adapters to train on", told(job))[1:]
    return [
        int(match[1]) if (match := re.search(r"going on from \S*step-(\d+)", start)) else 0
        for start in starts
    ]


def undisturbed(work) -> SimpleNamespace:
    job = sharded(work, "undisturbed")
    number = work.cluster.sbatch("finetune", job)
    state = work.cluster.ended(number, PATIENCE)
    mark = files.read_marker(Run(job.parent / "run").adapter("clip", "all"))
    return SimpleNamespace(state=state, trained=trained(job), mark=mark, nodes=work.cluster.nodes(number))


def requeued(work) -> SimpleNamespace:
    """Submitted as a graph; an administrator requeues its training, and its user cancels the rest."""
    job = training(work, "requeued", slurm="warning: 30, extract_tasks: 2")
    run = job.parent / "run"
    work.cluster.output("mer-dist", "slurm", job)
    again = work.cluster("mer-dist", "slurm", job)
    jobs = ids(Run(run))
    number = jobs["finetune"]
    work.cluster.output("scontrol", "hold", jobs["extract"])
    under_way(work, job, 5)
    asked = time.monotonic()
    work.cluster.output("scontrol", "requeue", number)
    work.cluster.wait(lambda: work.cluster.restarts(number) == 1, 60, "requeued")
    work.cluster.wait(lambda: work.cluster.state(number) == "RUNNING", 90, "running again")
    delay = time.monotonic() - asked
    print(f"requeue to restart: {delay:.1f} s")
    work.cluster.ended(number, PATIENCE)
    status = work.cluster.output("mer-dist", "slurm-status", run)
    cancelled = work.cluster.output("mer-dist", "slurm-cancel", run)
    left = work.cluster.output("squeue", "-h", "-j", ",".join(jobs.values()))
    return SimpleNamespace(
        again=again,
        status=status,
        cancelled=cancelled,
        jobs=jobs,
        left=left,
        trained=trained(job),
        stops=stops(job),
        delay=delay,
    )


def node_and_rank_lost(work) -> SimpleNamespace:
    """A node is set down, and Slurm starts the training again; then somebody kills one of its ranks, and
    its user submits it again."""
    cluster, job = work.cluster, sharded(work, "lost", nodes="n3,n4")
    number = cluster.sbatch("finetune", job)
    under_way(work, job, 5)
    cluster.output("scontrol", "update", "nodename=n4", "state=down", "reason=tried")
    cluster.wait(lambda: cluster.restarts(number) == 1, 60, "requeued by Slurm")
    # Refused where the node, whose slurmd is well, has reported back by itself.
    cluster("scontrol", "update", "nodename=n4", "state=resume")
    going_on(work, job, 1)
    ranks = cluster.ranks(number)
    (victim,) = [process for process, node in ranks.items() if node == "n4"]
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    state = cluster.ended(number)
    cluster.wait(lambda: not cluster.ranks(number), 60, "the other rank's end")
    seconds = time.monotonic() - killed
    print(f"SIGKILL of a rank to the end of the others and of the job: {seconds:.1f} s")
    restarts = cluster.restarts(number)
    again = cluster.ended(cluster.sbatch("finetune", job), PATIENCE)
    return SimpleNamespace(
        state=state,
        restarts=restarts,
        ranks=ranks,
        ended=seconds,
        again=again,
        beginnings=beginnings(job),
        trained=trained(job),
    )


def time_limit(work) -> SimpleNamespace:
    """The limit comes near once a long training is under way; its next start gets a longer one, and once
    it has gone on, its user ends it."""
    cluster = work.cluster
    job = sharded(work, "time-limit", slurm="time: '02:00:00', warning: 120", epochs=100_000)
    number = cluster.sbatch("finetune", job)
    under_way(work, job, 5)
    # Limits count in minutes, and the warning comes up to a minute early.
    cluster.output(
        "scontrol", "update", f"jobid={number}", f"timelimit={elapsed_minutes(cluster, number) + 2}"
    )
    cluster.wait(lambda: cluster.restarts(number) == 1, 120, "requeued by itself")
    cluster.output("scontrol", "update", f"jobid={number}", "timelimit=120")
    going_on(work, job, 1)
    cluster.output("scancel", number)
    state = cluster.ended(number, PATIENCE)
    epochs = [int(epoch) for epoch in re.findall(r"clip/all epoch (\d+)/", told(job))]
    return SimpleNamespace(state=state, restarts=cluster.restarts(number), epochs=epochs, stops=stops(job))


def elapsed_minutes(cluster, number: str) -> int:
    """Whole minutes for which a job has been running."""
    clock = cluster.output("squeue", "-h", "-j", number, "-o", "%M").strip()
    return int(clock.split(":")[-2])


def graph(work) -> SimpleNamespace:
    """The whole job, and a folder where one task of the array is to write a file."""
    cluster, run = work.cluster, Run(work.folder / "run")
    with open(work.job, "a", encoding="utf-8") as file:
        file.write("slurm: {nodes: 2, extract_tasks: 3, extract_at_once: 2, options: {exclude: 'n3,n4'}}\n")
    obstacle = run.features("hubert") / "00001.safetensors"
    (obstacle / "in-the-way").mkdir(parents=True)
    cluster.output("mer-dist", "slurm", work.job)
    first = ended(cluster, run)
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("[fa][ed]*/*/*") if path.is_file()}
    before |= {path: path.stat().st_mtime_ns for path in run.folder.glob("adapters/*/*/*")}
    shutil.rmtree(obstacle)
    cluster.output("mer-dist", "slurm", work.job)
    second = ended(cluster, run)
    kept = {path for path, when in before.items() if path.stat().st_mtime_ns == when}
    return SimpleNamespace(
        run=run,
        first=first,
        second=second,
        before=set(before),
        kept=kept,
        verified=cluster("mer-dist", "verify", run.folder),
    )


def ids(run: Run) -> dict[str, str]:
    return {row["stage"]: row["id"] for row in files.read_json(run.slurm / "jobs.json")["jobs"]}


def ended(cluster, run: Run) -> dict[str, list[str]]:
    """The rows of the status table by stage, once nothing of the graph is queued."""
    jobs = ",".join(ids(run).values())
    cluster.wait(lambda: not cluster.output("squeue", "-h", "-j", jobs), PATIENCE, "the graph")
    rows = cluster.output("mer-dist", "slurm-status", run.folder).splitlines()
    return {row.split()[0]: row.split() for row in rows}


def by_hand(work) -> SimpleNamespace:
    """What the graph has made, made again from the other files in slurm/: extract and fuse on the graph's
    shards and copies, and the whole job on one node."""
    cluster, graph = work.cluster, work.seen("graph").run
    stages, whole = (Run(work.folder / name) for name in ("by-hand", "one-node"))
    later = (
        "features",
        "linear_probes",
        "rounds",
        "vote",
        "answer.csv",
        "report.html",
        "logs",
        "status",
        "slurm",
    )
    shutil.copytree(graph.folder, stages.folder, ignore=shutil.ignore_patterns(*later))
    here = f"run.folder={stages.folder}"
    extract = cluster.sbatch("extract", work.job, here)
    jobs = {
        "extract": extract,
        "fuse": cluster.sbatch("fuse", work.job, here, dependency=f"afterok:{extract}"),
        "run": cluster.sbatch(
            "run", work.job, f"run.folder={whole.folder}", "slurm.nodes=1", "slurm.tasks_per_node=2"
        ),
    }
    states = {name: cluster.ended(job, PATIENCE) for name, job in jobs.items()}
    return SimpleNamespace(graph=graph, stages=stages, whole=whole, states=states)


#: What each stage finishes piece by piece, and never touches again.
PIECES = {"shard": "shards/0*.parquet", "extract": "features/*/0*.safetensors", "fuse": "rounds/0*/*"}
#: Seen from outside, and the way in which Slurm warns a job of its limit, which then asks to be requeued.
REQUEUE, WARN = ("scontrol", "requeue"), ("scancel", "--signal=USR2")


def every_stage_interrupted(work) -> SimpleNamespace:
    """Submitted as a graph, of which shard, a task of extract, and fuse are interrupted one after the
    other; meanwhile the same job runs in another folder without Slurm."""
    cluster, folder = work.cluster, work.folder / "every-stage"
    job, run, other = small_job.make(folder), Run(folder / "run"), Run(folder / "alone")
    slower(folder)
    settings = "slurm: {warning: 30, extract_tasks: 2, options: {exclude: 'n3,n4'}}\n"
    job.write_text(job.read_text("utf-8") + settings, "utf-8")
    options = [*alone.FROZEN, "shard.clips=4", "fuse.epochs=150", "self_train.rounds=4"]
    process = small_job.start("run", job, *options, f"run.folder={other.folder}")
    cluster.output("mer-dist", "slurm", job, *options)
    jobs, computed = ids(run), run.timings("extract", 1)
    whole = {
        "shard": interrupted(cluster, run, "shard", WARN, jobs["shard"], lambda: pieces(run, "shard")),
        "extract": interrupted(
            cluster,
            run,
            "extract",
            WARN,
            f"{jobs['extract']}_1",
            lambda: computed.exists() and '"0' in computed.read_text("utf-8"),
        ),
        "fuse": interrupted(cluster, run, "fuse", REQUEUE, jobs["fuse"], lambda: pieces(run, "fuse")),
    }
    rows = ended(cluster, run)
    assert process.wait(PATIENCE) == DONE
    return SimpleNamespace(run=run, other=other, rows=rows, whole=whole)


def slower(folder: Path) -> None:
    """Clips of the six emotions, and a model, that take so long that a signal meets their stage at work."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (60, 256, 256, 3), dtype=np.uint8)
    kinds = [
        media_files.write_mp4(folder / f"{kind}.mp4", frames + kind, media_files.tone(300 + 50 * kind, 5))
        for kind in range(6)
    ]
    for row, clip in enumerate(sorted((folder / "corpus").glob("video-*/*.mp4"))):
        clip.unlink()
        os.link(kinds[row % 6], clip)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    small_models.make_hubert(folder / "models" / "hubert", {**small_models.SIZES, **sizes})


def pieces(run: Run, stage: str) -> dict[Path, int]:
    """What a stage has finished: path -> when it was written."""
    return {path: path.stat().st_mtime_ns for path in run.folder.glob(PIECES[stage])}


def interrupted(
    cluster, run: Run, stage: str, way: tuple[str, str], number: str, under_way: Callable
) -> dict[Path, int]:
    """Stop a job in the middle of its work, and see it back in the queue; returns what was finished then."""
    cluster.wait(under_way, PATIENCE, f"{stage} under way", every=0.05)
    cluster.output(*way, number)
    cluster.wait(lambda: cluster.restarts(number) == 1, 120, f"{stage} requeued")
    return pieces(run, stage)
