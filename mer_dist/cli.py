"""Commands of mer-dist: stages, checks, exports and batch jobs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module

from mer_dist.arguments import STAGES, parser
from mer_dist.config.config import Config, load, save
from mer_dist.core import clip_names
from mer_dist.core.errors import (
    DONE,
    FAILED,
    QUARANTINED,
    REQUEUE,
    USAGE,
    Stopped,
    UserError,
    code_of,
    mending,
)
from mer_dist.core.log import logger, setup
from mer_dist.inspect import problems
from mer_dist.processes import preempt
from mer_dist.processes.env import process_info
from mer_dist.processes.lifeline import end_with_launcher, lost
from mer_dist.processes.together import alone, check_processes, introduce
from mer_dist.storage import exit_status as stage_status
from mer_dist.storage import quarantine
from mer_dist.storage.lock import Busy, held
from mer_dist.storage.run_folder import Run

_STARTED = time.time()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (meanings: see the README)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A shell expands ~ itself, but not in quotes; no folder named ~ may be created.
    arguments = [os.path.expanduser(word) if f"{word}/".startswith("~/") else word for word in arguments]
    if arguments[:1] == ["explain"]:
        arguments = clip_names.last(arguments, ("-h", "--help", "--json"))
    parsed, rest = parser().parse_known_args(arguments)
    # Overrides may follow an option.
    if not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest):
        parser().parse_args(arguments)
    else:
        parsed.overrides += rest
    setup(parsed.command)
    try:
        if run := getattr(parsed, "run", None):
            Run(run).check_version()
        return ACTS[parsed.command](parsed)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error)


def exit_code(error: BaseException) -> int:
    """Exit code of a command that ended early; logs the reason, on one line if that is enough."""
    code = code_of(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("mer_dist"):
        logger.error(
            "%s is not installed; what starts from clips needs: pip install 'mer-dist[train]'", error.name
        )
        return USAGE
    if isinstance(error, Stopped):
        logger.warning("stopped: %s", error)
    elif isinstance(error, KeyboardInterrupt):
        logger.warning("interrupted; what was finished is kept")
    elif code == USAGE:
        logger.error("%s", mending(error) if isinstance(error, OSError) else error)
    else:
        reason = lost(error) if process_info().launched else ""
        logger.error("%s", reason or "broke down:\n" + "".join(traceback.format_exception(error)))
    return code


@preempt.listening()
def run_stage(parsed: argparse.Namespace) -> int:
    """Run one stage. A launcher turns every non-zero code into 1, so under one the code goes into
    status.json and the process ends with 0 unless it failed or refused."""
    check_processes(parsed.command)
    code = _stage_code(parsed)
    return DONE if process_info().launched and code in (QUARANTINED, REQUEUE) else code


def _stage_code(parsed: argparse.Namespace) -> int:
    here = process_info()
    config, entered = None, False
    try:
        config = load(parsed.config, parsed.overrides)
        Run(config.run.folder).check_version()
        setup(parsed.command, Run(config.run.folder).log(parsed.command, here.rank), here.rank)
        if here.launched:
            introduce()
            end_with_launcher()
        with alone(config, parsed.command):
            entered = True
            code = _stage(parsed, config)
    except Exception as error:
        code = exit_code(error)
        if isinstance(error, Busy) or code == FAILED and here.launched and lost(error):
            # The outer command gets the code of the rank that knows the cause, and none from a job
            # that did not get the lock.
            return code
    # The rank that ends last, which may not be rank 0, knows the quarantine.
    if here.launched and config is not None and (here.rank == 0 or code != DONE):
        code = stage_status.leave(Run(config.run.folder).status(parsed.command), code)
    elif entered and config is not None and not here.launched:
        stage_status.note(Run(config.run.folder).status(parsed.command), code)
    return code


def _stage(parsed: argparse.Namespace, config: Config) -> int:
    run = Run(config.run.folder)
    here = process_info()
    if here.rank == 0:
        stage_status.forget(run.status(parsed.command), _STARTED)
    if here.rank == 0 and parsed.command == "finetune":
        # Other stages save it after their checks; an export reads it during a training.
        save(config, run.config)
    if parsed.command == "run":
        from mer_dist.stages.run import run as act

        return act(config, parsed.config, parsed.overrides, preempt.asked)
    if parsed.command == "report":
        from mer_dist.report.page import report as write

        write(run.folder)
        return DONE
    getattr(import_module(f"mer_dist.stages.{parsed.command}"), parsed.command)(
        config, should_stop=preempt.asked
    )
    return quarantined(run, parsed.command)


def quarantined(run: Run, *stages: str) -> int:
    """The exit code of stages that succeeded: 3 if anything is in quarantine."""
    return QUARANTINED if quarantine.tell(run.quarantine, *stages) else DONE


def slurm(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm.jobs import scripts, submit

    config = load(parsed.config, parsed.overrides)
    if parsed.dry_run:
        for stage, text in scripts(config).items():
            print(f"### {stage}\n{text}")
        return DONE
    run = Run(config.run.folder)
    run.check_version()
    with held(run.lock, parsed.command):
        pass  # No command is running. Submission has its own lock: its first job may start at once.
    with held(run.slurm_lock, parsed.command):
        jobs = submit(config, submitted, [parsed.config, *parsed.overrides])
    for job in jobs:
        print(f"{job.stage}: job {job.id}, log {job.log}")
    return DONE


def submitted(arguments: list[str]) -> None:
    """Run a command line in a batch job; submitit calls this on the node."""
    if code := main(arguments):
        raise SystemExit(code)


def slurm_options(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm.jobs import command_line

    print(command_line(load(parsed.config, parsed.overrides), parsed.stage))
    return DONE


def slurm_srun(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm.srun import srun_words

    print("\n".join(srun_words(load(parsed.config, parsed.overrides).slurm)))
    return DONE


def slurm_task(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm import rank
    from mer_dist.slurm.jobs import ended, started

    preempt.install()
    config = load(parsed.config, parsed.overrides)
    run = Run(config.run.folder)
    step = rank.become_rank(config.slurm.extract_tasks, config.run.accelerate, config.run.layout)
    if step.speaks:
        started(run, parsed.stage, step)
    parsed.command = parsed.stage
    return ended(run, parsed.stage, step, _stage_code(parsed))


def slurm_status(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm.jobs import status as rows
    from mer_dist.slurm.jobs import table

    print(table(rows(Run(parsed.run))))
    return DONE


def slurm_cancel(parsed: argparse.Namespace) -> int:
    from mer_dist.slurm.jobs import cancel

    print("cancelled: " + (", ".join(cancel(Run(parsed.run))) or "nothing was left"))
    return DONE


def plan(parsed: argparse.Namespace) -> int:
    from mer_dist.planning.plan import plan as act
    from mer_dist.planning.plan_text import table

    needs = act(load(parsed.config, parsed.overrides), parsed.clips)
    print(json.dumps(needs, ensure_ascii=False, indent=1) if parsed.json else table(needs))
    return DONE


def doctor(parsed: argparse.Namespace) -> int:
    from mer_dist.planning.doctor import doctor as act

    sound = True
    for check in act(load(parsed.config, parsed.overrides)):
        print(check, flush=True)
        sound = sound and check.ok
    return DONE if sound else USAGE


def verify(parsed: argparse.Namespace) -> int:
    from mer_dist.inspect.verify import verify as act

    findings = act(parsed.run)
    for line in findings:
        logger.error("%s", line)
    return FAILED if findings else DONE


def status(parsed: argparse.Namespace) -> int:
    run = Run(parsed.run)
    path = run.status(parsed.stage)
    if not (run.config.exists() or path.parent.exists()):
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
    code = stage_status.read(path)
    if code is None:
        logger.error(
            "%s: not there: %s was not started here yet, is still running, or was killed; see the "
            "logs of the run",
            path,
            parsed.stage,
        )
        return FAILED
    if parsed.stage in ("fuse", "run"):
        from mer_dist.fusion import recipes

        for line in recipes.stale_lines(run):
            logger.warning("%s", line)
    return code


def report(parsed: argparse.Namespace) -> int:
    from mer_dist.report import page

    print(page.report(parsed.run, parsed.clips, parsed.sound))
    return DONE


def score(parsed: argparse.Namespace) -> int:
    from mer_dist.inspect import score as scoring

    print(scoring.table(scoring.score(parsed.run, parsed.truth)))
    return DONE


def explain(parsed: argparse.Namespace) -> int:
    from mer_dist.inspect import explain as explaining

    found = explaining.explain(parsed.run, clip_names.clean(parsed.name))
    print(json.dumps(found, ensure_ascii=False, indent=1) if parsed.json else explaining.text(found))
    return DONE


def problems_of(parsed: argparse.Namespace) -> int:
    problems.show(problems.text(parsed.run, parsed.stage, parsed.lost, parsed.reason, parsed.form))
    return DONE


def config_files(parsed: argparse.Namespace) -> int:
    from mer_dist.stages.config_files import copy, listing

    problems.show(listing() if parsed.asked == "list" else "\n".join(copy(parsed.name, parsed.folder)))
    return DONE


def keys(parsed: argparse.Namespace) -> int:
    from mer_dist.config.keys import text

    problems.show(text(parsed.section))
    return DONE


def demo(parsed: argparse.Namespace) -> int:
    from mer_dist.demo.corpus import make as make_corpus
    from mer_dist.demo.models import make as make_models

    if not parsed.models_only:
        make_corpus(parsed.folder, seed=parsed.seed)
    make_models(parsed.folder / "models", seed=parsed.seed)
    return DONE


def import_features(parsed: argparse.Namespace) -> int:
    from mer_dist.interop.npy import import_sets

    run = Run(parsed.run)
    with held(run.lock, parsed.command):
        good = import_sets(run, parsed.source, parsed.modality)
    return DONE if good else QUARANTINED


def import_answers(parsed: argparse.Namespace) -> int:
    from mer_dist.interop.answers import import_answers as act

    run = Run(parsed.run)
    with held(run.lock, parsed.command):
        act(run, parsed.teacher, parsed.file)
    return DONE


@preempt.listening()
def predict(parsed: argparse.Namespace) -> int:
    from mer_dist.stages.predict import check_out, command

    check_processes(parsed.command)
    check_out(parsed.out)
    here, out = process_info(), Run(parsed.out)
    setup(parsed.command, out.log(parsed.command, here.rank), here.rank)
    if here.launched:
        introduce()
        end_with_launcher()
    try:
        code = command(parsed, preempt.asked)
    except Exception as error:
        code = exit_code(error)
    if not here.launched:
        return code
    code = stage_status.leave(out.status(parsed.command), code)
    return DONE if code in (QUARANTINED, REQUEUE) else code


def bundle(parsed: argparse.Namespace) -> int:
    from mer_dist.predict.bundle import write

    write(parsed.run, parsed.folder, parsed.merged)
    return DONE


def export_model(parsed: argparse.Namespace) -> int:
    from mer_dist.interop.export_model import export

    export(Run(parsed.run), parsed.adapter_name, parsed.folder, parsed.step, parsed.adapter, parsed.precision)
    return DONE


def export_features(parsed: argparse.Namespace) -> int:
    from mer_dist.interop.npy import export_npy

    export_npy(Run(parsed.run), parsed.set, parsed.folder, parsed.level)
    return DONE


#: What each command calls; its arguments are in :mod:`mer_dist.arguments`.
ACTS: dict[str, Callable[[argparse.Namespace], int]] = {
    **dict.fromkeys(STAGES, run_stage),
    "plan": plan,
    "doctor": doctor,
    "keys": keys,
    "demo": demo,
    "verify": verify,
    "report": report,
    "status": status,
    "score": score,
    "quarantine": problems_of,
    "explain": explain,
    "slurm": slurm,
    "slurm-options": slurm_options,
    "slurm-srun": slurm_srun,
    "slurm-task": slurm_task,
    "slurm-status": slurm_status,
    "slurm-cancel": slurm_cancel,
    "config": config_files,
    "import-features": import_features,
    "import-answers": import_answers,
    "export-features": export_features,
    "predict": predict,
    "bundle": bundle,
    "export": export_model,
}
