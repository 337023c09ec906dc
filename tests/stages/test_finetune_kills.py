"""Fine-tuning that is killed again and again, and moved to other numbers of processes."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import small_job
import torch
from long_suite import cases, note_kills
from processes import alive, descendants, kill, launched, ranks, seconds_until
from safetensors.torch import load_file

from mer_dist.config import config as configuration
from mer_dist.core.errors import FAILED, REQUEUE, UserError
from mer_dist.processes import env
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training.checkpoint import trained_weights, whole

#: Kills in each case; the last start is left alone.
KILLS = 3
#: Of the whole training, each with its checkpoint.
STEPS = 24
#: Seconds in which all ranks have ended after any kill, on a busy machine.
BOUND = 20
#: Seconds from the failure of one rank to the SIGKILL with which torch's launcher ends one that is stuck.
PATIENCE = 30
#: Seconds that ranks wait for one that is stuck, where one is; elsewhere those of a slow start would do.
NOTICED = 15
JOB = """
run: {{folder: {folder}/run, keep_checkpoints: 2, checkpoint_minutes: 0.0001, timeout_minutes: 2}}
corpus: {{path: {folder}/corpus}}
shard: {{workers: 1, clips: 9, frames: 2, image_size: 32, faces: none}}
folds: {{count: 2}}
extractors:
  baichuan:
    family: baichuan
    path: {folder}/models/baichuan
    finetune:
      {{cross_fit: false, epochs: 12, batch: 12, micro_batch: 2, precision: fp32,
       lora: {{rank: 2, dropout: 0.2}}}}
"""
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    small_job.make(folder)
    path = folder / "job.yaml"
    path.write_text(JOB.format(folder=folder), encoding="utf-8")
    shard(configuration.load(path))
    return path


@pytest.fixture(scope="module")
def undisturbed(job) -> Path:
    """What two processes make of it in one go."""
    folder = fresh(job, job.parent / "undisturbed")
    assert start(job, folder, 2).wait(500) == 0
    return adapter(folder)


def fresh(job: Path, folder: Path) -> Path:
    """A run folder of its own with the same shards and folds."""
    shutil.copytree(Run(job.parent / "run").shards, Run(folder).shards)
    return folder


def adapter(folder: Path) -> Path:
    return Run(folder).adapter("baichuan", "all")


def start(
    job: Path, folder: Path, processes: int, *options: str, stage: int | None = None
) -> subprocess.Popen:
    command = launched(stage, processes) if processes > 1 else [sys.executable]
    command += ["-m", "mer_dist", "finetune", str(job), f"run.folder={folder}", *options]
    return subprocess.Popen(
        command, env=env.for_children(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def announced(folder: Path) -> list[int]:
    """Steps of the checkpoints that the log has told of."""
    log = Run(folder).log("finetune", 0)
    told = log.read_text() if log.exists() else ""
    return [int(step) for step in re.findall(r"checkpoint at step (\d+)", told)]


def disturb(job: Path, folder: Path, chance: random.Random, processes: int) -> dict | None:
    """One start that is killed somewhere; None if it was done before."""
    whom, when = chance.choice(("rank", "rank", "all", "launcher")), chance.choice(("time", "save"))
    checkpoints, before = Run(folder).checkpoints("baichuan", "all"), len(announced(folder))
    started = start(job, folder, processes)
    # Some checkpoints of this start, on machines of any speed, then a moment; or the middle of the next save.
    ready = before + chance.randint(1, STEPS // KILLS - 2)
    seconds_until(lambda: len(announced(folder)) >= ready or started.poll() is not None, 300)
    time.sleep(chance.uniform(0, 0.2))
    if when == "save":
        seconds_until(lambda: list(checkpoints.glob(".step-*")) or started.poll() is not None, 300)
    if started.poll() is not None:
        assert started.returncode == 0
        return None
    every = [psutil.Process(started.pid), *descendants(started.pid)]
    own = ranks(started.pid) if processes > 1 else {0: every[0]}
    if not own:
        assert started.wait(BOUND) == 0, "it ended badly, and nobody had killed it"
        return None
    # Without their launcher no rank is hit, and all of them say why they end.
    hit = {"rank": {chance.choice(list(own))}, "all": set(own), "launcher": set()}[whom]
    kill(*{"rank": [own[rank] for rank in hit], "all": every, "launcher": every[:1]}[whom])
    seconds = seconds_until(lambda: started.poll() is not None and not any(map(alive, every)), BOUND)
    if started.returncode == 0:
        return None
    newest = int(whole(checkpoints)[-1].name.removeprefix("step-")) if whole(checkpoints) else 0
    finished = files.read_marker(adapter(folder)) is not None
    assert finished or newest >= announced(folder)[-1], "an announced checkpoint is lost"
    if processes > 1 and whom != "all" and not finished:
        tell_why_they_ended(folder, set(own) - hit)
    return {
        "processes": processes,
        "whom": whom,
        "when": when,
        "seconds": round(seconds, 2),
        "step": newest,
        "finished": finished,
    }


def tell_why_they_ended(folder: Path, left: set[int]) -> None:
    """The last words of the ranks that nobody killed."""
    for rank in left:
        log = Run(folder).log("finetune", rank).read_text()
        assert "Traceback" not in log
        last = log.splitlines()[-1]
        assert any(
            why in last for why in ("another rank has ended", "the process that started this rank is gone")
        ), f"rank {rank}: {last}"


@pytest.mark.parametrize("number", cases(short=1, long=24))
def test_a_killed_training_ends_as_if_nothing_had_happened(request, job, undisturbed, tmp_path, number):
    chance, folder = random.Random(number), fresh(job, tmp_path / "run")
    # The first case stays on two processes, whose result is known to the bit.
    worlds = [chance.choice((1, 2, 2, 2, 3)) if number else 2 for _ in range(KILLS)]
    worlds.append(chance.choice((1, 2, 3)) if number else 2)
    told = [found for world in worlds[:-1] if (found := disturb(job, folder, chance, world))]
    assert told, "it was done before the first kill"
    assert start(job, folder, worlds[-1]).wait(500) == 0
    log = Run(folder).log("finetune", 0).read_text()
    gone_on = [int(step) for step in re.findall(r"going on from .*step-(\d+)", log)]
    assert gone_on == [kill_["step"] for kill_ in told if not kill_["finished"]]
    histories = [files.read_json(one / "history.json") for one in (undisturbed, adapter(folder))]
    wanted, losses = ([row["train_loss"] for row in history["epochs"]] for history in histories)
    same = set(worlds) == {2}
    assert losses == pytest.approx(wanted, rel=0 if same else 1e-4)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        wanted, made = (load_file(one / name) for one in (undisturbed, adapter(folder)))
        apart = max((made[key] - wanted[key]).abs().max().item() for key in wanted)
        assert apart == 0 if same else apart < 1e-3
    assert not Run(folder).checkpoints("baichuan", "all").exists()
    note_kills(request, "finetune", [{"same": same, **one} for one in told if not one["finished"]])


def test_a_killed_rank_that_holds_all_of_the_model_goes_on_byte_for_byte(job, tmp_path):
    """Plain data parallelism, in which rank 0 writes the checkpoints of all."""
    few = "extractors.baichuan.finetune.epochs=4"
    through, killed = (fresh(job, tmp_path / name) for name in ("through", "killed"))
    assert start(job, through, 2, few, stage=0).wait(300) == 0
    started = start(job, killed, 2, few, stage=0)
    seconds_until(lambda: len(announced(killed)) > 2, 300)
    kill(ranks(started.pid)[1])
    assert started.wait(BOUND) != 0
    tell_why_they_ended(killed, {0})
    assert start(job, killed, 2, few, stage=0).wait(300) == 0
    assert "going on from" in Run(killed).log("finetune", 1).read_text()
    mark = files.read_marker(adapter(through))
    assert (mark["processes"], mark["zero_stage"]) == (2, 0)
    for name in ("adapter_model.safetensors", "head.safetensors", "history.json"):
        assert (adapter(killed) / name).read_bytes() == (adapter(through) / name).read_bytes()


def test_a_checkpoint_with_one_ranks_part_damaged_is_passed_over_by_both(job, undisturbed, tmp_path):
    folder = fresh(job, tmp_path / "run")
    checkpoints = Run(folder).checkpoints("baichuan", "all")
    started = start(job, folder, 2)
    seconds_until(lambda: len(announced(folder)) > 3, 300)
    kill(psutil.Process(started.pid), *descendants(started.pid))
    started.wait()
    older, newest = whole(checkpoints)[-2:]
    part = min(newest.glob("*pp_rank_1_*optim_states.pt"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(UserError, match=f"{newest.name} is damaged \\({part.name} holds other bytes"):
        trained_weights(newest, torch.float32)
    assert start(job, folder, 2).wait(500) == 0
    log = Run(folder).log("finetune", 0).read_text()
    assert log.count(f"{newest} is damaged ({part.name} holds other bytes") == 1
    for rank in (0, 1):
        assert f"going on from {older}" in Run(folder).log("finetune", rank).read_text()
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (adapter(folder) / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_stuck_rank_is_noticed_told_of_in_one_line_and_ended_with_the_others(job, tmp_path):
    folder = fresh(job, tmp_path / "run")
    started = start(job, folder, 2, f"run.timeout_minutes={NOTICED / 60}")
    seconds_until(lambda: announced(folder), 300)
    every = [psutil.Process(started.pid), *descendants(started.pid)]
    other, stuck = ranks(started.pid)[0], ranks(started.pid)[1]
    stuck.suspend()
    try:
        log = Run(folder).log("finetune", 0)
        seconds_until(lambda: "does not answer" in log.read_text(), NOTICED + BOUND)
        seconds_until(lambda: not alive(other), BOUND)
        seconds_until(lambda: started.poll() is not None and not any(map(alive, every)), PATIENCE + BOUND)
    finally:
        kill(*every)
    assert started.wait() == 1
    lines = [line for line in Run(folder).log("finetune", 0).read_text().splitlines() if " E " in line]
    assert len(lines) == 1 and "run.timeout_minutes" in lines[0] and "Traceback" not in lines[0]


@pytest.mark.parametrize("by", ["launcher", "run"])
def test_ctrl_c_saves_like_any_request_to_stop(job, tmp_path, by):
    """A terminal sends it to the launcher, which hands it on, and to its ranks besides."""
    folder = fresh(job, tmp_path / "run")
    options = (f"run.folder={folder}", "run.checkpoint_minutes=10", "extractors.baichuan.finetune.epochs=500")
    log = Run(folder).log("finetune", 0)
    if by == "run":
        started = small_job.start(
            "run",
            job,
            *options,
            "run.processes=2",
            "extractors.baichuan.finetune.cross_fit=true",
            said=tmp_path / "said",
        )
    else:
        started = start(job, folder, 2, *options[1:])
    seconds_until(lambda: log.exists() and "epoch 3/" in log.read_text(), 300)
    every = [psutil.Process(started.pid), *(ranks(started.pid).values() if by == "launcher" else ())]
    for one in every:
        one.send_signal(signal.SIGINT)
    code = started.wait(60)
    assert code == REQUEUE if by == "run" else code != 0
    if by == "run":
        said = (tmp_path / "said").read_text()
        assert "Traceback" not in said and "the ranks were asked to stop" in said
    (stopped,) = re.findall(r"asked to stop at step (\d+)", log.read_text())
    assert announced(folder) == [int(stopped)]


def test_ranks_end_when_the_run_that_started_them_is_killed(job, tmp_path):
    """Its launcher would train on, beside the next start, in the same folder."""
    folder = fresh(job, tmp_path / "run")
    started = small_job.start(
        "run", job, f"run.folder={folder}", "run.processes=2", "extractors.baichuan.finetune.cross_fit=true"
    )
    seconds_until(lambda: announced(folder), 300)
    every = descendants(started.pid)
    assert len(ranks(started.pid)) == 2
    kill(psutil.Process(started.pid))
    seconds_until(lambda: not any(map(alive, every)), BOUND)
    last = [Run(folder).log("finetune", rank).read_text().splitlines()[-1] for rank in (0, 1)]
    gone = ["the process that started this rank is gone" in line for line in last]
    # The first rank that looks ends, and its peer may meet that end before its own look.
    assert any(gone)
    assert all(told or "another rank has ended" in line for told, line in zip(gone, last, strict=True)), last
    started.wait()


def test_a_rank_of_extract_that_dies_fails_the_run_although_the_other_one_stops_politely(job, tmp_path):
    folder = fresh(job, tmp_path / "run")
    more = [
        f"extractors.{name}={{family: {name}, path: {job.parent}/models/{name}}}"
        for name in ("clip", "hubert")
    ]
    started = small_job.start(
        "run",
        job,
        f"run.folder={folder}",
        "run.processes=2",
        "extractors.baichuan.finetune=null",
        *more,
        said=tmp_path / "said",
    )
    seconds_until(lambda: len(ranks(started.pid)) == 2, 300)
    own, log = ranks(started.pid), Run(folder).log("extract", 0)
    own[1].suspend()
    # One feature set is done, and two are left: by now it takes SIGTERM as a request.
    seconds_until(lambda: log.exists() and "clips in" in log.read_text(), 300)
    own[0].suspend()
    kill(own[1])
    # The launcher asks the other one to stop, and waits for it.
    seconds_until(lambda: not alive(own[1]), BOUND)
    time.sleep(2)
    own[0].resume()
    assert started.wait(60) == FAILED
    assert "stopped: asked to stop in shard" in log.read_text().splitlines()[-1]
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    for text in (said, Run(folder).log("run", 0).read_text()):
        (line,) = [line for line in text.splitlines() if "SIGKILL" in line]
        assert "rank 1 ended by SIGKILL" in line and "want of memory" in line
