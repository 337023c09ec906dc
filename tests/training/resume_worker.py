"""Run by test_resume as one or several real processes: a training that is stopped, moved and goes on.

Arguments: folder of the models, output folder, precision, then cases: ``lora+through`` trains
undisturbed, ``lora+until`` is asked to stop before step 4 and leaves its checkpoint in ``out/lora``,
``lora+onward`` goes on from what lies there, ``lora+onward-random`` with that fault of :data:`FAULTS`.
``lora+deferred`` is sent a signal inside step 4, ``lora+midway`` saves there all the same, and both go
on. ``groups`` saves or loads an optimizer with two groups. Of each case every rank leaves which clips it
has trained on in each epoch.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import zero3_worker
from safetensors.torch import save_file

from mer_dist.config.section import with_values
from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import Stopped
from mer_dist.models.classifier import trainable_classifier
from mer_dist.processes import preempt
from mer_dist.training import trainer as training
from mer_dist.training import universal_checkpoint
from mer_dist.training.accelerator import gather_full_params, make_accelerator, prepare, zero_stage
from mer_dist.training.checkpoint import Checkpoints, Progress
from mer_dist.training.trainer import Trainer

STOP = 4
WAYS = {
    "full": {"method": "full"},
    "lora": {},
    "nf4": {"quantize": "nf4"},
    "int8": {"quantize": "int8"},
    # Many groups of weights that DeepSpeed updates together, and none that every rank keeps whole.
    # Passes by length, which another number of ranks cuts otherwise.
    "length": {"family": "hubert", "budget": 0.5},
    "split": {"method": "full", "zero": {"stage3_param_persistence_threshold": 0, "sub_group_size": 20000}},
}
DECAYS = (0.1, 0.0)


def _again(order):
    return lambda count, seed, epoch: order(count, seed + 1, epoch)


#: What a resume can get wrong without any error: (where, its name, the fault made of it).
FAULTS = {
    "position": (Progress, "__init__", lambda init: lambda self, **told: init(self, **told | {"batch": 0})),
    "random": (torch, "manual_seed", lambda seed: lambda number: None),
    "mode": (torch.nn.Module, "train", lambda train: lambda self, mode=True: train(self, False)),
    "order": (training, "epoch_order", _again),
    "rate": (training, "learning_rate", lambda rate: lambda step, *told: rate(2 * step, *told)),
    "moments": (torch.optim.AdamW, "load_state_dict", lambda load: lambda self, state: None),
}


@contextmanager
def faulty(fault: str):
    if not fault:
        yield
        return
    owner, name, spoil = FAULTS[fault]
    kept = getattr(owner, name)
    setattr(owner, name, spoil(kept))
    yield
    setattr(owner, name, kept)


def made(accelerator, models: str, precision: str, folder: Path, way: str, mode: str):
    """A trainer, its classifier, every position that its task will have read, and its checkpoints."""
    settings = zero3_worker.config(models, precision, **WAYS[way])
    # Twelve can be shared by one, two and three; dropout would show other random numbers, and is others
    # where passes are.
    dropout = 0.0 if way == "length" else 0.3
    settings = with_values(settings, **{"finetune.batch": 12, "finetune.lora.dropout": dropout})
    classifier = trainable_classifier(settings, 3, 0, zero_stage(accelerator) > 0)
    work, read = zero3_worker.task(classifier.extractor), []
    load = work.load
    work.load = lambda positions: read.extend(positions.tolist()) or load(positions)
    checkpoints = None if mode == "through" else Checkpoints(accelerator, folder, "test", keep=2, minutes=0)
    with faulty(mode.partition("-")[2]):
        trainer = Trainer(accelerator, classifier, work, settings.finetune, 0, checkpoints)
    return trainer, classifier, read, checkpoints


def run_case(accelerator, models: str, precision: str, out: Path, way: str, mode: str) -> None:
    inside = INSIDE.get(mode)
    folder = out / (f"{way}-{mode}" if inside else way)
    trainer, classifier, read, checkpoints = made(accelerator, models, precision, folder, way, mode)
    if inside:
        with interrupted(trainer, inside) as left, pytest.raises(Stopped):
            trainer.run(zero3_worker.keep_best(accelerator, checkpoints))
        assert not left
        # As a process that starts.
        accelerator.step = 0
        accelerator.free_memory()
        trainer, classifier, read, checkpoints = made(accelerator, models, precision, folder, way, mode)
    start, losses, trained, step = trainer.progress.step, [], {}, trainer._optimizer_step

    def noted(batch, mine):
        here = trained.setdefault(trainer.progress.epoch, [])
        here += [position for part in mine for position in part.positions.tolist()]
        said = step(batch, mine)
        losses.append(said.loss)
        return said

    trainer._optimizer_step = noted
    if mode == "until":
        zero3_worker.stop_before(trainer, STOP)
    try:
        with faulty(mode.partition("-")[2]):
            keep = zero3_worker.keep_best(accelerator, checkpoints) if checkpoints else lambda *_: None
            history = trainer.run(keep)
    except Stopped:
        pass
    else:
        tuned = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
        weights = gather_full_params(accelerator, tuned)
        if accelerator.is_main_process:
            save_file(weights, out / f"{way}+{mode}.safetensors")
            facts = {"losses": losses, "started_at": start, "epochs": history["epochs"], "read": len(read)}
            (out / f"{way}+{mode}.json").write_text(json.dumps(facts))
    (out / f"{way}+{mode}.rank-{accelerator.process_index}.json").write_text(json.dumps(trained))
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def _ask(trainer: Trainer) -> None:
    """The last rank alone is sent a signal, which it takes as the command line does."""
    if trainer.accelerator.is_last_process:
        trainer.should_stop = preempt.asked
        with preempt.listening():
            signal.raise_signal(signal.SIGTERM)


def _save_and_stop(trainer: Trainer) -> None:
    trainer.checkpoints.save(trainer.model, trainer.optimizer, trainer.progress)
    raise Stopped


#: mode -> what happens after the first micro-batch of step 4.
INSIDE = {"deferred": _ask, "midway": _save_and_stop}


@contextmanager
def interrupted(trainer: Trainer, act):
    """``act`` once the first micro-batch of the step is computed, of whose gradients nothing is seen yet."""
    accelerator, left = trainer.accelerator, [act]
    backward = accelerator.backward

    def spied(loss) -> None:
        backward(loss)
        if trainer.progress.step == STOP and left:
            assert not accelerator.sync_gradients
            left.pop()(trainer)

    accelerator.backward = spied
    try:
        yield left
    finally:
        del accelerator.backward


@contextmanager
def as_deepspeed_leaves_it():
    kept = universal_checkpoint._write_common, universal_checkpoint._own_counters
    universal_checkpoint._write_common = universal_checkpoint._own_counters = lambda *_: None
    yield
    universal_checkpoint._write_common, universal_checkpoint._own_counters = kept


def run_groups(accelerator, out: Path) -> None:
    """Two steps with two groups, saved; or loaded twice, with DeepSpeed's faults and without them, and
    one step more."""
    checkpoints = Checkpoints(accelerator, out / "groups", "test", keep=1, minutes=0)
    found = {}
    for name in ("left", "mended"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        groups = [
            {"params": list(part.parameters()), "weight_decay": decay}
            for part, decay in zip(model, DECAYS, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        settings = FinetuneConfig(batch=6, micro_batch=6 // accelerator.num_processes)
        engine, wrapped = prepare(accelerator, settings, model, optimizer)
        with nullcontext() if name == "mended" else as_deepspeed_leaves_it():
            progress = checkpoints.load(engine, wrapped)
        inner = engine.optimizer.optimizer
        decays = [group["weight_decay"] for group in inner.param_groups]
        for _ in range(1 if progress else 2):
            accelerator.backward(engine(torch.ones(2, 64)).sum())
            wrapped.step()
            wrapped.zero_grad()
        found[name] = {"decays": decays, "steps": [int(state["step"]) for state in inner.state.values()]}
        if progress is None:
            checkpoints.save(engine, wrapped, Progress(step=2))
            break
        accelerator.free_memory()
    if accelerator.is_main_process:
        (out / f"groups-{accelerator.num_processes}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()


def main(models: str, out: str, precision: str, cases: list[str]) -> None:
    accelerator = make_accelerator(precision, [], Path(out), threads=1)
    Path(out).mkdir(parents=True, exist_ok=True)
    for case in cases:
        way, _, mode = case.partition("+")
        zero = {"sub_group_size": 5000} if case == "groups" else WAYS[way].get("zero")
        with zero3_worker.told(accelerator, zero):
            if case == "groups":
                run_groups(accelerator, Path(out))
            else:
                run_case(accelerator, models, precision, Path(out), way, mode)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
