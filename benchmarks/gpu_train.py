"""Fine-tuning at full size, each by the command that users give: rates, memory of the card, and a kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

from gpu import REPOSITORY, Check
from gpu_inputs import baichuan_shape
from gpu_runs import runs


def step_train_text(check: Check) -> None:
    """LoRA of Baichuan-13B in bf16, one process."""
    _train(check, "train_text")


def step_train_by_clips(check: Check) -> None:
    """The same with passes of four clips."""
    _train(check, "train_by_clips")


def step_train_zero3(check: Check) -> None:
    """The same under ZeRO-3, one process over NCCL: what its hooks cost."""
    _train(check, "train_zero3", zero3=True)


def step_train_nf4(check: Check) -> None:
    """Its NF4 form with gradient checkpointing."""
    _train(check, "train_nf4")


def step_train_copies(check: Check) -> None:
    """Three copies one after the other under ZeRO-3: does the card's memory grow by a model each?"""
    _train(check, "train_copies", zero3=True)


def step_train_kill(check: Check) -> None:
    """CLIP-L under ZeRO-3, undisturbed, and killed after a checkpoint and started again: the same losses?"""
    for name in ("train_whole", "train_kill"):
        for made in ("adapters", "checkpoints"):
            shutil.rmtree(runs(check)[name].with_suffix("") / made, ignore_errors=True)
    _train(check, "train_whole", zero3=True)
    _train(check, "train_kill", zero3=True, kill_at="checkpoint at step")
    _train(check, "train_kill", zero3=True)
    whole, killed = (_curve(runs(check)[name].with_suffix("")) for name in ("train_whole", "train_kill"))
    pairs = [(one[key], other[key]) for one, other in zip(whole, killed, strict=True) for key in one]
    apart = max(abs(one - other) for one, other in pairs)
    check.tell("resume", same_bits=apart == 0, largest_difference=apart)


def _curve(folder: Path) -> list[dict[str, float]]:
    from mer_dist.storage.run_folder import Run

    (adapter,) = Run(folder).adapters()
    return json.loads(adapter.history.read_text())["epochs"]


#: Runs of which the operations of a clip are known.
OF_TEXT = ("train_text", "train_by_clips", "train_zero3", "train_nf4")


class Card(threading.Thread):
    """The memory of the whole card above what was taken before, GB, while another process works."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.used()
        self.most, self.over = 0.0, False

    @staticmethod
    def used() -> float:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
            return 0.0
        asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        return float(said[0]) * 2**20 / 1e9 if said else 0.0

    def now(self) -> float:
        return self.used() - self.before

    def run(self) -> None:
        while not self.over:
            self.most = max(self.most, self.now())
            time.sleep(0.2)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over = True
        self.join()


def _train(check: Check, run: str, zero3: bool = False, kill_at: str = "") -> None:
    """`mer-dist finetune` of a run; with ``kill_at`` it is killed once its log says this."""
    command = [*check.command, "finetune", str(runs(check)[run])]
    if zero3:
        file = REPOSITORY / "launch" / ("zero3-cpu.yaml" if check.tiny else "workstation.yaml")
        launch = ["accelerate.commands.launch", "--config_file", str(file), "--num_processes", "1", "-m"]
        command = [command[0], "-m", *launch, *command[2:]]
    _card_is_free(check)
    started, said, at_epochs, killed = time.time(), [], [], None
    with Card() as card:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=REPOSITORY,
            env=check.environment,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said.append(line)
                if re.search(r"epoch \d+/\d+: loss", line):
                    at_epochs.append(round(card.now(), 2))
                if kill_at and kill_at in line:
                    killed = time.time() - started
                    break
            else:
                child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    name = f"{run}{'-killed' if kill_at else ''}"
    (check.out / f"{name}-training.log").write_text("".join(said)[-60000:])
    rates = [float(rate) for rate in re.findall(r"\(([\d.]+) clips/s\)", "".join(said))]
    facts = {"seconds": time.time() - started, "code": code, "card_gb": card.most, "clips_s": rates}
    if killed:
        facts["killed_after"] = killed
    elif code:
        facts["said"] = "".join(said)[-900:]
    elif rates and run in OF_TEXT:
        facts["of_peak"] = (
            rates[-1] * _flops_of_a_clip(check) / 1e12 / check.measured("device", "bf16", float("nan"))
        )
    check.tell("train", run=run, at_epochs_gb=at_epochs, **facts)


def _card_is_free(check: Check) -> None:
    """The memory of a process that was just killed is given back a little later."""
    free = 0.0 if check.tiny else 2.0
    for _ in range(50):
        if Card.used() <= free:
            return
        time.sleep(0.2)


def _flops_of_a_clip(check: Check) -> float:
    """Matrix products of a forward and backward pass through frozen weights: twice and twice per token."""
    shape = baichuan_shape(check)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    weights = shape["num_hidden_layers"] * (4 * width**2 + 3 * width * inner)
    return 4 * weights * _tokens_of_a_clip(check)


def _tokens_of_a_clip(check: Check) -> float:
    from mer_dist.models.tokenizer import BaichuanTokenizer
    from mer_dist.shards import shard_index
    from mer_dist.storage.run_folder import Run

    rows = [row for row in shard_index.read(Run(check.work / "lines").shards) if row.label]
    tokenizer = BaichuanTokenizer.from_pretrained(check.work / "models" / "baichuan")
    return sum(len(tokenizer.encode(row.transcript)) for row in rows) / len(rows)
