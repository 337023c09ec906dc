"""All stages in order. Stages that may use many processes are started through accelerate launch."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from mer_dist.config.config import Config
from mer_dist.core.errors import DONE, FAILED, QUARANTINED, REQUEUE, USAGE, Stopped, UserError, code_of
from mer_dist.core.log import logger
from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features import join
from mer_dist.models import model_folder
from mer_dist.planning import plan
from mer_dist.processes import env, launch_config
from mer_dist.processes.together import MANY_PROCESSES
from mer_dist.storage import exit_status, files, quarantine
from mer_dist.storage.run_folder import Run
from mer_dist.training import supported

ORDER = ("shard", "finetune", "extract", "fuse")
#: As launch/workstation.yaml, zero2.yaml and ddp.yaml by their ZeRO stage; on one machine.
LAUNCH = """\
compute_environment: LOCAL_MACHINE
{joined}
num_machines: 1
mixed_precision: "no"
dynamo_backend: "no"
"""
JOINED = {
    0: "distributed_type: MULTI_GPU",
    2: "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}",
    3: "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, zero3_init_flag: true}",
}


def run(config: Config, path: str, overrides: list[str], should_stop: ShouldStop = never) -> int:
    """Run every stage, skipping what is done, then write the report.

    Returns:
        The exit code: 3 if anything is in quarantine, the first stage's code if one ends early.
    """
    run_folder = Run(config.run.folder)
    _check(config)
    for stage in ORDER:
        boundary(should_stop, f"before {stage}")
        if _needs_launch(stage, config):
            code = launch(stage, config, path, overrides, should_stop)
        else:
            code = _here(stage, config, should_stop)
        if code == REQUEUE:
            raise Stopped(f"{stage} was asked to; the next run goes on from there")
        if code not in (DONE, QUARANTINED):
            logger.error("%s ended with code %d; see %s", stage, code, run_folder.log(stage, 0).parent)
            return code
    from mer_dist.report.page import report

    logger.info("report: %s", report(run_folder.folder))
    return QUARANTINED if quarantine.read(run_folder.quarantine) else DONE


def _check(config: Config) -> None:
    """Refuse now what a later stage would refuse after hours of training.

    Raises:
        UserError: a model folder is incomplete, a batch cannot be shared by the processes, or fusion has
            no feature set.
    """
    for name, extractor in config.extractors.items():
        try:
            model_folder.check(Path(extractor.path), extractor.family)
        except UserError as error:
            raise UserError(f"extractors.{name}.path: {error}") from None
    supported.check_batches(config, launch_config.layout(config.run).processes)
    join.fused_sets(config)


def _needs_launch(stage: str, config: Config) -> bool:
    """Launching takes seconds, so it is skipped if one process is enough or the stage is done."""
    if stage not in MANY_PROCESSES or config.run.processes == 1:
        return False
    return bool(import_module(f"mer_dist.stages.{stage}").unfinished(config))


def _here(stage: str, config: Config, should_stop: ShouldStop = never) -> int:
    """Run ``stage`` in this process; its exit code is stored as if it had been started alone."""
    run_folder = Run(config.run.folder)
    run_folder.status(stage).unlink(missing_ok=True)
    # Fusion always follows here, so its needs are checked before the first clip.
    more = {"fused": True} if stage == "shard" else {}
    try:
        getattr(import_module(f"mer_dist.stages.{stage}"), stage)(config, should_stop=should_stop, **more)
    except Exception as error:
        exit_status.note(run_folder.status(stage), code_of(error))
        raise
    lost = quarantine.tell(run_folder.quarantine, stage)
    exit_status.note(run_folder.status(stage), QUARANTINED if lost else DONE)
    return DONE


def launch(stage: str, config: Config, path: str, overrides: list[str], should_stop: ShouldStop) -> int:
    """Start ``stage`` with the configured number of processes and read the code that they stored."""
    run_folder = Run(config.run.folder)
    status = run_folder.status(stage)
    status.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mer_dist.processes.launcher", str(run_folder.log("run", 0))]
    command += ["--config_file", _launch_file(stage, config), "--num_processes", str(config.run.processes)]
    command += ["--main_process_port", str(env.free_port()), "-m", "mer_dist", stage, path, *overrides]
    logger.info("starting %s with %d processes", stage, config.run.processes)
    # In its own session, so that Ctrl-C reaches only this process, which stops the launcher.
    launcher = subprocess.Popen(command, env=env.for_children(config.run.threads), start_new_session=True)
    failed = _wait(launcher, should_stop)
    code = exit_status.read(status)
    if code is None:
        code = FAILED
        # If the ranks could not write theirs, this fails, too, and its error shows why.
        files.write_json(status, {"code": code})
    if should_stop():
        return REQUEUE
    # If one rank dies, the launcher stops the others; that is a failure, not a requested stop.
    return FAILED if failed and code != USAGE else code


def _wait(launcher: subprocess.Popen, should_stop: ShouldStop) -> int:
    """Exit status of the launcher; a request to stop is passed on to it once."""
    passed_on = False
    while True:
        if should_stop() and not passed_on:
            # Launchers pass only SIGTERM on to their ranks.
            launcher.terminate()
            passed_on = True
        with suppress(subprocess.TimeoutExpired):
            return launcher.wait(timeout=1)


def _launch_file(stage: str, config: Config) -> str:
    """The file of ``run.accelerate``, or one written here, so that no other file of the user is
    read. Extract uses only its rank from the launcher, whatever the layout."""
    if config.run.accelerate:
        return config.run.accelerate
    layout = plan.chosen(config) if stage == "finetune" else launch_config.layout(config.run)
    if stage == "finetune":
        logger.info("layout of fine-tuning: %s", layout.description)
    path = Run(config.run.folder).status("launch").with_suffix(".yaml")
    files.write_text(path, LAUNCH.format(joined=JOINED[layout.zero_stage]))
    return str(path)
