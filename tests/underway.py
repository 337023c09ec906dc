"""A fine-tuning of one small copy that was asked to stop in its second epoch, with its checkpoints."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import small_job

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core.errors import Stopped
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard
from mer_dist.storage.run_folder import Run
from mer_dist.training import trainer as training

OPTIONS = (
    "extractors.baichuan.finetune=null",
    "extractors.clip.finetune.cross_fit=false",
    "extractors.clip.finetune.epochs=3",
    "run.keep_checkpoints=2",
    "run.checkpoint_minutes=0.0001",
    "shard.frames=2",
)
#: The step after which it is asked to stop; three make an epoch.
STEP = 5


def make(folder: Path) -> Path:
    """The job, with what its training has left; returns ``job.yaml``."""
    job = small_job.make(folder)
    shard(load(job))
    stop(load(job))
    return job


def load(job: Path, *options: str) -> Config:
    return configuration.load(job, [*OPTIONS, *options])


def stop(config: Config) -> None:
    """Train until the step, as far as a training gets that is preempted there."""
    act = training.Trainer._optimizer_step

    def asking(trainer, *batch):
        now = trainer.progress.step + 1 == STEP
        trainer.should_stop = lambda: now
        return act(trainer, *batch)

    with patch.object(training.Trainer, "_optimizer_step", asking), pytest.raises(Stopped):
        finetune(config)


def checkpoints(run: Run) -> Path:
    return run.checkpoints("clip", "all")


def adapter(run: Run) -> Path:
    return run.adapter("clip", "all")
