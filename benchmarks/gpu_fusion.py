"""Fusion at the challenge's size: all folds and seeds at once against one by one, and what a stage takes."""

from __future__ import annotations

import fuse_setting as setting
import torch
from gpu import Check
from gpu_device import busy, device, syncs, timed

from mer_dist.config.sections import FuseConfig
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.ensemble import MemberData, predict, train

#: As the recipe trains: seeds, epochs of a round, rounds, and pseudo-labelled clips.
SEEDS, EPOCHS, ROUNDS, LEARNED = 3, 20, 3, 60_000
CONFIGS = (
    FuseConfig(epochs=1),
    FuseConfig(epochs=1, model="attention"),
    FuseConfig(width=256, batch=256, epochs=1),
)


def step_fusion(check: Check) -> None:
    if check.tiny:
        setting.LABELED = 60
    inputs, truth = setting.inputs_of(100 if check.tiny else 20_000)
    lessons = setting.lessons_of(truth, SEEDS)
    for config in CONFIGS[: 2 if check.tiny else None]:
        _measure(check, inputs, lessons, config)


def _measure(check: Check, inputs: FeatureBatch, lessons: list[MemberData], config: FuseConfig) -> None:
    few, steps = (2, 2) if check.tiny else (5, 60)
    train(inputs, lessons, config, 3)
    together, (model, losses) = timed(lambda: train(inputs, lessons, config, steps))
    longer, _ = timed(lambda: train(inputs, lessons, config, 2 * steps))
    apart, alone = timed(lambda: [train(inputs, [lesson], config, steps) for lesson in lessons[:few]])
    rows = torch.arange(len(inputs.values[0]), device=device())
    seconds, guess = timed(lambda: predict(model, inputs, rows))
    own = torch.cat([predict(one, inputs, rows) for one, _ in alone])
    # Without what is done once: drawing the weights, compiling, capturing.
    step = (longer - together) / steps
    check.tell(
        "fusion",
        model=config.model,
        width=config.width,
        batch=config.batch,
        members=len(lessons),
        step_ms=1e3 * step,
        against_one_by_one=apart / few * len(lessons) / together,
        difference=(guess[:few] - own).abs().max().item(),
        loss=losses.mean().item(),
        answers_s=len(rows) / seconds,
        busy=busy(lambda: train(inputs, lessons, config, 20)),
        syncs_of_3_steps=syncs(lambda: train(inputs, lessons, config, 3)),
        stage_minutes=ROUNDS * EPOCHS * LEARNED / config.batch * step / 60,
    )
