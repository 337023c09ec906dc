"""What the trainer costs: its step against a bare DeepSpeed loop on tensors in memory, and what a
checkpoint costs against the plain writing of as many bytes. ::

    python benchmarks/finetune.py --folder runs/benchmark --processes 2

Both train the same model on the same global batches, in the same processes under ZeRO-3, by turns. The
trainer reads, decodes and prepares its clips from the shards, watches for signals and sums the loss.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import setting

from mer_dist.config.section import with_values
from mer_dist.config.sections import FinetuneConfig
from mer_dist.crossfit import adapters
from mer_dist.processes import env

if TYPE_CHECKING:
    from mer_dist.training.trainer import Pass

LAUNCH = Path(__file__).parent.parent / "launch" / "zero3-cpu.yaml"
STEPS, ROUNDS = 4, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.rank:
        return compare_all(parsed.folder)
    setting.prepare(parsed.folder)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(LAUNCH),
        "--num_processes",
        str(parsed.processes),
        "--main_process_port",
        str(env.free_port()),
        __file__,
        "--folder",
        str(parsed.folder),
        "--rank",
    ]
    subprocess.run(command, env=env.for_children(1), check=True)


def compare_all(folder: Path) -> None:
    from mer_dist.training.accelerator import make_accelerator

    accelerator = make_accelerator("fp32", [], folder, threads=1)
    for yaml, extractor, batch, micro in (("text.yaml", "baichuan", 64, 16), ("clips.yaml", "clip", 8, 2)):
        for method in ("full", "lora"):
            settings = FinetuneConfig(
                method=method, cross_fit=False, precision="fp32", batch=batch, micro_batch=micro, epochs=99
            )
            ratios = compare(accelerator, folder / yaml, extractor, settings)
            if accelerator.is_main_process:
                print(
                    f"{extractor}, {method}, {accelerator.num_processes} processes: trainer / bare loop "
                    f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                )
    accelerator.end_training()


def compare(accelerator, yaml: Path, name: str, settings: FinetuneConfig) -> list[float]:
    """Time of an epoch by the trainer, divided by that of the bare loop, for each round."""
    from mer_dist.models.classifier import trainable_classifier
    from mer_dist.stages.finetune import _task
    from mer_dist.training.partition import epoch_order, global_batches
    from mer_dist.training.trainer import Trainer

    config = setting.load(yaml)
    extractor = replace(config.extractors[name], finetune=settings)
    config = with_values(config, extractors={name: extractor})
    (copy,) = adapters.planned(config)

    classifier = trainable_classifier(extractor, len(config.corpus.labels), 0, True)
    task = _task(copy, config, classifier.extractor, budget=0.0)
    task.train = task.train[: STEPS * settings.batch]
    trainer = Trainer(accelerator, classifier, task, settings, seed=0)
    bare = Bare(trainer, trainable_classifier(extractor, len(config.corpus.labels), 0, True))
    ratios = []
    for epoch in range(ROUNDS + 1):
        trainer.progress.epoch, trainer.progress.batch = epoch + 1, 0
        order = epoch_order(len(task.train), 0, epoch + 1)
        ready = [mine for _, mine in trainer._loaded(global_batches(task.train[order], settings.batch))]
        times = {}
        turns = {"trainer": trainer.train_epoch, "bare": lambda ready=ready: bare.train(ready)}
        for turn in turns if epoch % 2 else reversed(turns):
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            turns[turn]()
            accelerator.wait_for_everyone()
            times[turn] = time.perf_counter() - started
        ratios.append(times["trainer"] / times["bare"])
    report_checkpoint(accelerator, trainer, yaml.parent / "checkpoints")
    accelerator.free_memory()
    return ratios[1:]  # the first round warms up


def report_checkpoint(accelerator, trainer, folder: Path) -> None:
    """Seconds to save, to load, and to convert and load for another number of processes."""
    from mer_dist.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(accelerator, folder, "benchmark", keep=1, minutes=0)

    def timed(call, *arguments) -> float:
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        call(*arguments)
        accelerator.wait_for_everyone()
        return time.perf_counter() - started

    state = trainer.model, trainer.optimizer
    # A step of its own each: what is saved is not saved again.
    steps = [replace(trainer.progress, step=number) for number in range(1, ROUNDS + 1)]
    save = [timed(checkpoints.save, *state, progress) for progress in steps]
    (saved,) = folder.glob("step-*")
    load = [timed(checkpoints._load_as_written, saved, *state) for _ in range(ROUNDS)]
    convert = [timed(checkpoints._load_converted, saved, *state, ROUNDS) for _ in range(ROUNDS)]
    if accelerator.is_main_process:
        size = sum(path.stat().st_size for path in saved.iterdir())
        plain = statistics.median(written(folder / "plain", size) for _ in range(ROUNDS))
        told = {"save": save, "load": load, "convert and load": convert}
        print(
            f"checkpoint of {size / 2**20:.1f} MiB: plain write {plain:.2f} s, "
            + ", ".join(f"{name} {statistics.median(seconds):.2f} s" for name, seconds in told.items())
        )
        shutil.rmtree(folder)
    accelerator.wait_for_everyone()


def written(path: Path, size: int) -> float:
    """Seconds to write so many bytes into one file and to make them durable."""
    content = os.urandom(size)
    started = time.perf_counter()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


class Bare:
    """A loop as short as DeepSpeed allows, on passes that are in memory."""

    def __init__(self, trainer, model):
        import torch

        from mer_dist.training.accelerator import prepare

        config, accelerator = trainer.config, trainer.accelerator
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        # Accelerate's own backward stays with the trainer's engine, the first that it prepared.
        self.engine, _ = prepare(accelerator, config, model, optimizer)
        self.targets = trainer.task.targets

    def train(self, ready: list[list[Pass]]) -> None:
        import torch
        import torch.nn.functional as F

        self.engine.train()
        for step in ready:
            for number, part in enumerate(step, 1):
                self.engine.set_gradient_accumulation_boundary(number == len(step))
                loss = F.cross_entropy(self.engine(**part.inputs), torch.tensor(self.targets[part.positions]))
                self.engine.backward(loss / len(step))
                self.engine.step()


if __name__ == "__main__":
    main()
