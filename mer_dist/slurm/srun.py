"""The words with which Slurm starts a stage: for the job graph, and for the files in slurm/."""

from __future__ import annotations

import sys
from pathlib import Path

from mer_dist.config.slurm import SlurmConfig


def srun_options(asked: SlurmConfig) -> list[str]:
    """What srun is given beside the command, whatever the stage."""
    given = ["--kill-on-bad-exit=1"]
    if asked.container and asked.container_by == "pyxis":
        given += [f"--container-image={asked.container}", f"--container-workdir={Path.cwd()}"]
        if asked.container_mounts:
            given += [f"--container-mounts={','.join(asked.container_mounts)}"]
    return given


def interpreter(asked: SlurmConfig) -> list[str]:
    """The words that start Python on a node, inside apptainer where that is asked for."""
    words = [asked.python or sys.executable]
    if asked.container and asked.container_by == "apptainer":
        mounts = [part for mount in asked.container_mounts for part in ("--bind", mount)]
        nvidia = ["--nv"] if asked.gpus_per_node else []
        words = ["apptainer", "exec", *nvidia, *mounts, asked.container, *words]
    return words


def srun_words(asked: SlurmConfig) -> list[str]:
    """What follows ``srun`` in the files in slurm/; the command of mer-dist comes behind it."""
    return [*srun_options(asked), *interpreter(asked), "-m", "mer_dist"]
