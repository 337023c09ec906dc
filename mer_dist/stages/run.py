"""All stages in order. Those that may use many processes are started through accelerate launch."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from mer_dist import files, quarantine
from mer_dist.config import Config
from mer_dist.dist import env
from mer_dist.errors import DONE, FAILED, QUARANTINED
from mer_dist.layout import Run
from mer_dist.log import logger

ORDER = ("shard", "finetune", "extract", "fuse")
MANY_PROCESSES = ("finetune", "extract")


def run(config: Config, path: str, overrides: list[str]) -> int:
    """Run every stage, skipping what is done, then write the report.

    Returns:
        The exit code: 3 if anything is in quarantine, the first stage's code if one ends early.
    """
    folder = Run(config.run.folder)
    for stage in ORDER:
        if _needs_launch(stage, config):
            code = _launch(stage, config, path, overrides)
        else:
            code = _here(stage, config)
        if code not in (DONE, QUARANTINED):
            logger.error("%s ended with code %d; see %s", stage, code, folder.log(stage, 0).parent)
            return code
    from mer_dist.report.page import report

    logger.info("report: %s", report(folder.folder))
    return QUARANTINED if quarantine.read(folder.quarantine) else DONE


def _needs_launch(stage: str, config: Config) -> bool:
    """Launching takes seconds, so it is left out where one process is enough or nothing is to do."""
    if stage not in MANY_PROCESSES or config.run.processes == 1:
        return False
    return bool(import_module(f"mer_dist.stages.{stage}").unfinished(config))


def _here(stage: str, config: Config) -> int:
    getattr(import_module(f"mer_dist.stages.{stage}"), stage)(config)
    return DONE


def _launch(stage: str, config: Config, path: str, overrides: list[str]) -> int:
    """Start ``stage`` with the configured number of processes and read the code they leave."""
    status = Run(config.run.folder).status(stage)
    status.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", *_launch_options(config)]
    command += ["-m", "mer_dist", stage, path, *overrides]
    logger.info("starting %s with %d processes", stage, config.run.processes)
    finished = subprocess.run(command, env=env.for_children(config.run.threads), check=False)
    try:
        code = files.read_json(status)["code"]
    except (OSError, ValueError, KeyError):
        code = FAILED
    return FAILED if finished.returncode and code in (DONE, QUARANTINED) else code


def _launch_options(config: Config) -> list[str]:
    """For finetune and extract alike: extract takes only its rank from the launcher."""
    processes = ["--num_processes", str(config.run.processes)]
    if config.run.accelerate:
        return ["--config_file", config.run.accelerate, *processes]
    return [
        *processes, "--num_machines", "1", "--main_process_port", str(env.free_port()),
        "--use_deepspeed", "--zero_stage", "3", "--mixed_precision", "no", "--dynamo_backend", "no",
    ]
