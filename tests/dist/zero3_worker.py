"""Run by test_zero3 as one of several real processes: trains a small Baichuan on generated lines.

Arguments: model folder, output folder, method, precision.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from mer_dist.config import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.dist.runtime import accelerator, gathered
from mer_dist.dist.training import Task, Trainer
from mer_dist.models.classifier import save, trainable_classifier

WORDS = ("开心", "难过", "生气")
FILL = list("的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会")


def lines() -> tuple[list[str], np.ndarray]:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 50)
    made = ["".join([*draw.choice(FILL, 5), WORDS[target], *draw.choice(FILL, 6)]) for target in targets]
    return made, targets


def main(model: str, out: str, method: str, precision: str) -> None:
    joined = accelerator(precision, [], Path(out), threads=1)
    texts, targets = lines()
    # 39 training clips in batches of 8: the last global batch is short, and odd over two ranks.
    settings = FinetuneConfig(
        method=method, epochs=2, batch=8, micro_batch=2, learning_rate=3e-3, precision=precision,
        lora=LoraConfig(rank=4, dropout=0.0),
    )
    extractor = ExtractorConfig(family="baichuan", path=model, finetune=settings)
    sharded = joined.state.deepspeed_plugin is not None
    classifier = trainable_classifier(extractor, 3, 0, sharded)

    def load(positions: np.ndarray):
        ids = [classifier.extractor.tokenizer.encode(texts[max(place, 0)]) for place in positions]
        return classifier.extractor.collate(ids)

    task = Task(
        load=load, targets=targets, train=np.arange(39), held_out=np.arange(39, 50),
        class_weights=np.ones(3), name="test",
    )
    trainer = Trainer(joined, classifier, task, settings, seed=0)
    held = sum(weight.numel() for weight in classifier.parameters())
    history = trainer.run(lambda model: None)
    weights = gathered(joined, {name: value for name, value in classifier.named_parameters() if value.requires_grad})
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**load(np.arange(4)))
    if joined.is_main_process:
        Path(out).mkdir(parents=True, exist_ok=True)
        save(classifier, weights, Path(out))
        facts = {
            "losses": [row["train_loss"] for row in history["epochs"]],
            "held_out": [row["validation_loss"] for row in history["epochs"]],
            "logits": logits.tolist(),
            "processes": joined.num_processes,
            "zero_stage": joined.state.deepspeed_plugin.zero_stage if sharded else 0,
            "weights_held": held,
        }
        (Path(out) / "facts.json").write_text(json.dumps(facts))
    joined.wait_for_everyone()
    joined.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
