"""The stages of a job as functions. Each skips what is done, leaves files in the run folder, and nothing in the
process: no signal handler, thread or process group. Fine-tuning is done by processes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mer_dist.api.results import Result
from mer_dist.config import config as configuration
from mer_dist.config.config import Config, save
from mer_dist.core.errors import DONE, QUARANTINED, UserError
from mer_dist.core.stopping import never
from mer_dist.processes.together import alone
from mer_dist.storage.run_folder import Run


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The job in a YAML file, with overrides such as ``"fuse.epochs=60"``.

    Raises:
        UserError: a key is unknown, missing or out of range; the message names it.
    """
    return configuration.load(path, tuple(overrides))


def shard(job: Config) -> None:
    """Clips to WebDataset shards.

    Raises:
        UserError: the corpus cannot be listed, or none of it can be used.
    """
    from mer_dist.stages.shard import shard as act

    with alone(job, "shard"):
        act(job)


def finetune(job: Config) -> None:
    """Fine-tune the extractors in ``run.processes`` processes.

    Raises:
        UserError: it failed; the message names the log.
    """
    from mer_dist.stages.finetune import unfinished

    if unfinished(job):
        _launched(job, "finetune")


def extract(job: Config) -> None:
    """Shards to features; with ``run.processes`` above 1 by processes of its own.

    Raises:
        UserError: it failed.
    """
    from mer_dist.stages.extract import extract as act
    from mer_dist.stages.extract import unfinished

    if job.run.processes > 1 and unfinished(job):
        _launched(job, "extract")
    else:
        with alone(job, "extract"):
            act(job)


def fuse(job: Config) -> Result:
    """Features to predictions.

    Raises:
        UserError: labels or feature sets are missing or do not fit each other.
    """
    from mer_dist.stages.fuse import fuse as act

    with alone(job, "fuse"):
        act(job)
    return Result.of_run(job.run.folder)


def _launched(job: Config, stage: str) -> None:
    from mer_dist.stages.run import launch

    run = Run(job.run.folder)
    with alone(job, stage):
        save(job, run.config)
        code = launch(stage, job, str(run.config), [], never)
    if code not in (DONE, QUARANTINED):
        raise UserError(f"{stage} ended with code {code}; see {run.log(stage, 0)} and {run.log('run', 0)}")
