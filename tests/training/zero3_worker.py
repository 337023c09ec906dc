"""Run by test_zero3 as one of several real processes: trains small models on generated clips.

Arguments: folder of the models, output folder, precision, then the cases by name; ``lora+resumed`` is
trained twice, once with a stop in between. Each case leaves a folder with what it saved and
``facts.json``.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mer_dist.config.section import with_values
from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.core.errors import Stopped
from mer_dist.models.classifier import Classifier, save, trainable_classifier
from mer_dist.storage import files
from mer_dist.training.accelerator import free, gather_full_params, make_accelerator, zero_stage
from mer_dist.training.checkpoint import Checkpoints
from mer_dist.training.partition import Passes
from mer_dist.training.trainer import Task, Trainer

WORDS = ("开心", "难过", "生气")
FILL = list("的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会")
#: Clips to train on, of those that are made.
TRAINED = 31
#: Above DeepSpeed's threshold for parameters that every rank keeps whole, 100,000 elements.
WIDE_RANK = 1200
CASES = {
    "full": {"method": "full"},
    "lora": {"quantize": "none"},
    "nf4": {"quantize": "nf4"},
    "int8": {"quantize": "int8"},
    "wide": {"rank": WIDE_RANK, "epochs": 1},
    "hubert": {"family": "hubert"},
    "hubert-full": {"family": "hubert", "method": "full"},
    "clip": {"family": "clip"},
    # As if a DeepSpeed file of the user's said so: every weight is split, and the bucket is smaller
    # than the largest gradient.
    "own": {"method": "full", "zero": {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 5000}},
    # 40 steps
    "full-long": {"method": "full", "epochs": 10},
    "lora-long": {"epochs": 10},
}


def lines() -> tuple[list[str], np.ndarray]:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, TRAINED + 11)
    made = ["".join([*draw.choice(FILL, 5), WORDS[target], *draw.choice(FILL, 6)]) for target in targets]
    return made, targets


def segments(extractor) -> list[list]:
    """The prepared clips: lines, sounds of three pitches, or frames of three shades."""
    texts, targets = lines()
    if extractor.config.family == "baichuan":
        return [[extractor.tokenizer.encode(text)] for text in texts]
    draw = torch.Generator().manual_seed(0)
    if extractor.config.family == "clip":
        noise = torch.randint(0, 60, (len(targets), 2, 3, extractor.side, extractor.side), generator=draw)
        return [list((noise[row] + 60 * int(target)).byte()) for row, target in enumerate(targets)]
    lengths = torch.randint(1600, 3200, (len(targets),), generator=draw).tolist()
    return [
        [torch.sin(torch.arange(length) * 0.1 * 3.0 ** int(target)) + torch.randn(length, generator=draw) / 2]
        for length, target in zip(lengths, targets, strict=True)
    ]


def config(
    models: str,
    precision: str,
    family="baichuan",
    method="lora",
    quantize="none",
    rank=4,
    epochs=3,
    zero=None,
    budget=0.0,
) -> ExtractorConfig:
    # 31 training clips in batches of 8: the last global batch is short, and odd over two ranks.
    settings = FinetuneConfig(
        method=method,
        epochs=epochs,
        batch=8,
        micro_batch=0 if budget else 2,
        batch_budget=budget,
        learning_rate=6e-3,
        precision=precision,
        lora=LoraConfig(rank=rank, dropout=0.0),
    )
    path = str(Path(models) / family)
    return ExtractorConfig(family=family, path=path, quantize=quantize, finetune=settings)


def task(extractor) -> Task:
    targets, clips = lines()[1], segments(extractor)
    longest = np.array([max(map(extractor.length, clip)) for clip in clips], float)
    counts = np.array(list(map(len, clips)))

    def load(positions: np.ndarray):
        return extractor.collate_clips([clips[max(place, 0)] for place in positions])

    return Task(
        load=load,
        targets=targets,
        train=np.arange(TRAINED),
        held_out=np.arange(TRAINED, len(targets)),
        class_weights=np.ones(3),
        passes=Passes.of(extractor.config.finetuning, counts, longest, budget=0),
        name="test",
    )


def held_here(model: torch.nn.Module) -> int:
    """Elements of the weights that this rank holds; 8-bit ones may be held a second time, in the state of
    their layer."""
    weights = [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    states = (getattr(getattr(layer, "state", None), "CB", None) for layer in model.modules())
    extra = [
        state for state in states if state is not None and state.untyped_storage().data_ptr() not in known
    ]
    return sum(tensor.numel() for tensor in (*weights, *extra))


@contextmanager
def told(accelerator, zero: dict | None):
    """DeepSpeed's settings with these of the user's."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or zero is None:
        yield
        return
    settings = plugin.deepspeed_config["zero_optimization"]
    plugin.deepspeed_config["zero_optimization"] = {**settings, **zero}
    yield
    assert plugin.deepspeed_config["zero_optimization"] == {**settings, **zero}
    plugin.deepspeed_config["zero_optimization"] = settings


def in_memory() -> tuple[int, int]:
    """Classifiers, and bytes of tensors, that something in this process points to."""
    found = [item for item in gc.get_objects() if isinstance(item, Classifier | torch.Tensor)]
    tensors = [item for item in found if isinstance(item, torch.Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(found) - len(tensors), sum(storages.values())


def run_case(accelerator, settings: ExtractorConfig, out: Path) -> None:
    before = in_memory()
    classifier = trainable_classifier(settings, 3, 0, zero_stage(accelerator) > 0)
    work = task(classifier.extractor)
    trainer = Trainer(accelerator, classifier, work, settings.finetune, seed=0)
    first = predict(trainer, work)
    held = held_here(classifier)
    history = trainer.run(lambda *_: None)
    trainable = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    weights = gather_full_params(accelerator, trainable)
    last = predict(trainer, work)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        save(classifier, weights, out)
    Checkpoints(accelerator, out / "checkpoints", "test", 1, 0).save(
        trainer.model, trainer.optimizer, trainer.progress
    )
    if accelerator.is_main_process:
        facts = {
            "losses": [row["train_loss"] for row in history["epochs"]],
            "held_out": [row["validation_loss"] for row in history["epochs"]],
            "first_logits": first,
            "logits": last,
            "weights_held": held,
            "in_memory_before": before,
            "trained": sum(weight.numel() for weight in weights.values()),
            "reduce_bucket": trainer.model.zero_reduce_bucket_size() if zero_stage(accelerator) else None,
            "steps": trainer.progress.step,
            "processes": accelerator.num_processes,
            "zero_stage": zero_stage(accelerator),
        }
        (out / "facts.json").write_text(json.dumps(facts))
    accelerator.wait_for_everyone()


def run_resumed(accelerator, settings: ExtractorConfig, out: Path) -> None:
    """Train undisturbed, then again with a request to stop inside the second epoch and a new trainer
    that goes on. Dropout is on, so that drawing other random numbers would show."""
    settings = with_values(settings, **{"finetune.lora.dropout": 0.3})
    facts = {}
    for name, stop_at in (("undisturbed", None), ("stopped", 6)):
        while name not in facts:
            classifier = trainable_classifier(settings, 3, 0, zero_stage(accelerator) > 0)
            work = task(classifier.extractor)
            checkpoints = Checkpoints(accelerator, out / name, "test", keep=2, minutes=0)
            trainer = Trainer(accelerator, classifier, work, settings.finetune, 0, checkpoints)
            start = trainer.progress.step
            if stop_at and start == 0:
                stop_before(trainer, stop_at)
            try:
                history = trainer.run(keep_best(accelerator, checkpoints))
            except Stopped:
                pass
            else:
                trained = {n: v for n, v in classifier.named_parameters() if v.requires_grad}
                digests = {n: digest(v) for n, v in gather_full_params(accelerator, trained).items()}
                losses = [[row["train_loss"], row["validation_loss"]] for row in history["epochs"]]
                facts[name] = {"losses": losses, "digests": digests, "started_at": start}
            accelerator.free_memory()
    if accelerator.is_main_process:
        (out / "facts.json").write_text(json.dumps(facts))
    accelerator.wait_for_everyone()


def digest(value: torch.Tensor) -> str:
    """Of every bit of it; sums agree of many a tensor that differs."""
    return hashlib.sha256(value.flatten().contiguous().view(torch.uint8).numpy()).hexdigest()


def keep_best(accelerator, checkpoints: Checkpoints):
    """Leave the folder of each best epoch, without which its checkpoint is passed over; nothing looks at
    the weights in it here."""

    def keep(model: torch.nn.Module, epoch: int) -> None:
        if accelerator.is_main_process:
            checkpoints.best(epoch).mkdir(parents=True, exist_ok=True)
            files.write_marker(checkpoints.best(epoch), "test", content={})
        accelerator.wait_for_everyone()

    return keep


def stop_before(trainer: Trainer, step: int) -> None:
    """As if the last rank alone were sent a signal in the step before that one."""
    run_step = trainer._optimizer_step

    def counted(*batch):
        if trainer.progress.step == step - 1 and trainer.accelerator.is_last_process:
            trainer.should_stop = lambda: True
        return run_step(*batch)

    trainer._optimizer_step = counted


@torch.no_grad()
def predict(trainer: Trainer, work: Task) -> list[list[float]]:
    trainer.model.eval()
    return trainer.model(**work.load(np.arange(4))).tolist()


def main(models: str, out: str, precision: str, cases: list[str]) -> None:
    accelerator = make_accelerator(precision, [], Path(out), threads=1)
    for case in cases:
        way, _, resumed = case.partition("+")
        act = run_resumed if resumed else run_case
        with told(accelerator, CASES[way].get("zero")):
            act(accelerator, config(models, precision, **CASES[way]), Path(out) / case)
        free(accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
