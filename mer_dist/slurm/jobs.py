"""The whole job as a graph of Slurm jobs: shard, finetune, extract (an array), fuse, report.

submitit writes the batch scripts, submits them and starts the command line in them; what is submitted
is the line ``mer-dist slurm-task STAGE CONFIG`` that the files in slurm/ give to srun. Every stage skips
what is done, so a job that starts again, and a second submission, go on from there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mer_dist.config.config import Config
from mer_dist.config.slurm import MOST_TASKS, STAGES
from mer_dist.core.errors import DONE, GRAVITY, QUARANTINED, REQUEUE, UserError, reading
from mer_dist.core.log import logger
from mer_dist.core.text_table import aligned
from mer_dist.slurm import rank
from mer_dist.slurm.srun import interpreter, srun_options
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training.supported import check_batches

WITH_GPU = ("finetune", "extract", "fuse")
#: A path in a batch script: no quote, no line end, and no % of which Slurm makes a job's number.
PATH = re.compile(r"[\w./@+=:,~ -]+")
ENDED_WELL = (DONE, QUARANTINED)
#: Before srun: bash outlives the signals and so sees how its ranks end; bounded threads; freed memory
#: goes back to the system; none of the libraries' notes to each other.
BEFORE = (
    'rm -f "$MER_DIST_STOPPED"',
    "trap : TERM USR1 USR2",
    "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false",
    "export MALLOC_MMAP_THRESHOLD_=131072 PYTHONWARNINGS=ignore::FutureWarning",
)
#: After srun. A rank that has died outweighs others that stopped. Only a job that still runs queues itself
#: again: whether one that is being cancelled or requeued starts again has been decided. The number alone
#: would name every task of an array.
AFTER = (
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "job=${job:-$SLURM_JOB_ID}",
    'if [ "$code" -eq 0 ] && [ -e "$MER_DIST_STOPPED" ]; then',
    '  rm -f "$MER_DIST_STOPPED"',
    "  code=75",
    '  if [ "$(squeue -h -j "$job" -o %T)" = RUNNING ]; then scontrol requeue "$job"; fi',
    "fi",
    'exit "$code"',
)


NAMED = ", named"
#: States in which Slurm does nothing more with a job; there are many others.
OVER = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "REVOKED",
)
#: What sbatch prints for a job.
NUMBER = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(kw_only=True)
class Job:
    """A submitted job: one row of ``jobs.json``."""

    stage: str
    id: str
    """As sbatch printed it; the tasks of an array are id_0, id_1, ..."""
    tasks: int
    log: str

    def __post_init__(self):
        # The id reaches the command line of scancel, the log somebody's terminal.
        whole = isinstance(self.id, str) and NUMBER.fullmatch(self.id) and type(self.tasks) is int
        if not whole or not 0 < self.tasks <= MOST_TASKS or self.stage not in STAGES:
            raise ValueError(f"no job: {self.stage!r}, id {self.id!r}, {self.tasks!r} tasks")
        if not isinstance(self.log, str) or not self.log.isprintable():
            raise ValueError(f"no path of a log: {self.log!r}")


@dataclass(kw_only=True)
class Note:
    """What a task of a job leaves in the run folder; it outlives what Slurm remembers."""

    restarts: int
    code: int | None
    """None: not ended, or killed."""

    def __post_init__(self):
        whole = type(self.restarts) is int and type(self.code) in (int, type(None))
        if not whole or self.restarts < 0 or self.code not in (None, *GRAVITY):
            raise ValueError(f"restarts {self.restarts!r}, code {self.code!r}")


def stages(config: Config) -> list[str]:
    """The jobs that a configuration needs, in order."""
    left_out = set()
    if not config.extractors:
        left_out |= {"shard", "finetune", "extract"}
    if not any(extractor.finetune for extractor in config.extractors.values()):
        left_out |= {"finetune"}
    return [stage for stage in STAGES if stage not in left_out]


def _name(stage: str) -> str:
    return f"mer-{stage}"


def options(config: Config, stage: str) -> dict[str, str]:
    """What sbatch is asked for, option: value; an empty value is a flag.

    Raises:
        UserError: so many processes cannot share the batches of finetune.
    """
    asked = config.slurm
    if stage == "finetune":
        check_batches(config, asked.nodes * (asked.tasks_per_node or max(asked.gpus_per_node, 1)))
    gpus = (asked.gpus_per_node if stage == "finetune" else min(asked.gpus_per_node, 1)) * (stage in WITH_GPU)
    fine = stage == "finetune"
    cpus = max(asked.cpus_per_task, config.shard.workers) if stage == "shard" else asked.cpus_per_task
    wanted = {
        "job-name": _name(stage),
        "partition": asked.partition if gpus else asked.cpu_partition or asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "nodes": str(asked.nodes if fine else 1),
        "ntasks-per-node": str(asked.tasks_per_node or max(asked.gpus_per_node, 1)) if fine else "1",
        "gpus-per-node": str(gpus or ""),
        "cpus-per-task": str(cpus or ""),
        "mem": asked.memory,
        "time": asked.times.get(stage, asked.time),
        "signal": f"USR2@{asked.warning}",
    }
    if stage == "extract":
        at_once = asked.extract_at_once or asked.extract_tasks
        wanted["array"] = f"0-{asked.extract_tasks - 1}%{at_once}"
    return {name: value for name, value in wanted.items() if value} | {"requeue": ""} | asked.options


def command_line(config: Config, stage: str) -> str:
    """The options as one line for ``sbatch $(mer-dist slurm-options STAGE CONFIG) FILE``."""
    return " ".join(f"--{name}" + f"={value}" * bool(value) for name, value in options(config, stage).items())


def scripts(config: Config) -> dict[str, str]:
    """The batch script of each stage as it would be submitted; a dependency is named by its stage."""
    made, before = {}, None
    for stage in stages(config):
        executor = _executor(config, stage, before and f"<{before}>", dry=True)
        if stage == "extract" and config.slurm.extract_tasks > 1:
            executor.parameters["map_count"] = config.slurm.extract_tasks
        made[stage] = executor._make_submission_file_text(executor._submitit_command_str, "")
        before = stage
    return made


def submit(config: Config, entry: Callable[[list[str]], None], arguments: list[str]) -> list[Job]:
    """Submit every stage, each to start once the one before it has ended well.

    Args:
        entry: runs a command line of mer-dist; in the batch job submitit calls it.
        arguments: the configuration file and overrides.

    Raises:
        UserError: Slurm is not here or refuses a job, or jobs of this run are still queued.
    """
    run = Run(config.run.folder)
    if _known_jobs(run) and (queued := active(run)):
        raise UserError(
            f"{run.folder}: jobs {', '.join(sorted(queued))} are still queued or running; wait, "
            f"or end them with mer-dist slurm-cancel {run.folder}"
        )
    _private_folder(run.slurm)
    # It would go before the name in the script, by which the job is known again.
    os.environ.pop("SBATCH_JOB_NAME", None)
    jobs: list[Job] = []
    for stage in stages(config):
        executor = _executor(config, stage, jobs[-1].id if jobs else None)
        command = ["slurm-task", stage, *arguments]
        tasks = config.slurm.extract_tasks if stage == "extract" else 1
        try:
            if tasks > 1:
                made = executor.map_array(entry, [command] * tasks)
            else:
                made = [executor.submit(entry, command)]
        except Exception as error:
            for job in jobs:
                subprocess.run(["scancel", job.id], check=False)
            reason = " ".join(str(error).split())
            raise UserError(f"Slurm refuses the job {stage}: {reason}; nothing stays queued") from error
        number = made[0].job_id.partition("_")[0]
        log = run.slurm_log(number, tasks)
        jobs.append(Job(stage=stage, id=number, tasks=tasks, log=str(log)))
        # After each: an interrupted submission can still be seen and cancelled.
        files.write_json(
            run.slurm_jobs,
            {
                "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
                "jobs": [vars(job) for job in jobs],
            },
        )
    return jobs


def _executor(config: Config, stage: str, after: str | None, dry: bool = False):
    import submitit

    class Printing(submitit.SlurmExecutor):
        """Makes scripts where there is no Slurm, too."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    run = Run(Path(config.run.folder).absolute())
    folder = run.slurm
    if not PATH.fullmatch(str(folder)):
        raise UserError(
            f"run.folder {str(folder)!r}: a batch script cannot name it; use letters, digits, "
            "spaces and . / _ @ + = : , ~ -"
        )
    try:
        executor = (Printing if dry else submitit.SlurmExecutor)(
            folder=folder, python=shlex.join(interpreter(config.slurm))
        )
    except RuntimeError:
        raise UserError(
            "srun is not here; submit from a login node of a Slurm cluster, or look at the "
            "scripts with --dry-run"
        ) from None
    asked = options(config, stage)
    # What submitit itself counts with; the rest goes through as it is.
    own = {"nodes": int(asked.pop("nodes")), "ntasks_per_node": int(asked.pop("ntasks-per-node"))}
    asked.pop("signal")
    asked.pop("array", None)
    cpus = [f"--cpus-per-task={asked['cpus-per-task']}"] if "cpus-per-task" in asked else []
    if after:
        # Jobs that can no longer start leave the queue instead of waiting for ever.
        asked |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    note_stops = f"export {rank.STOPPED}={shlex.quote(str(folder))}/stopped-$SLURM_JOB_ID"
    executor.update_parameters(
        **own,
        job_name=asked.pop("job-name"),
        signal_delay_s=config.slurm.warning,
        array_parallelism=config.slurm.extract_at_once or config.slurm.extract_tasks,
        # submitit's own defaults would be a limit of 5 minutes and a key of its own.
        time=None,
        wckey=None,
        stderr_to_stdout=True,
        srun_args=[*srun_options(config.slurm), *cpus],
        setup=[note_stops, *BEFORE],
        teardown=["code=$?", *AFTER],
        additional_parameters={name: value or True for name, value in asked.items()},
    )
    return executor


def _private_folder(folder: Path) -> None:
    """submitit pickles its jobs here and unpickles them on the nodes, so nobody else may write here."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to someone else; jobs are submitted from a run folder of your own")
    folder.chmod(0o700)


def started(run: Run, stage: str, step: rank.Step) -> None:
    _note(run, stage, step, None)


def ended(run: Run, stage: str, step: rank.Step, code: int) -> int:
    """Leave word of how a process of a job ended, and return its exit code.

    Returns:
        0 for done, done with quarantine, which ``afterok`` would take for a failure, and stopped, which the
        batch script is told of: a code would have srun kill ranks that are still saving.
    """
    if step.speaks:
        _note(run, stage, step, code)
    if code == REQUEUE:
        rank.notify_batch_script()
    return DONE if code in (*ENDED_WELL, REQUEUE) else code


def _note(run: Run, stage: str, step: rank.Step, code: int | None) -> None:
    files.write_json(run.slurm_note(stage, step.job), vars(Note(restarts=step.restarts, code=code)))


def _known_jobs(run: Run) -> list[Job]:
    if not run.slurm_jobs.exists():
        return []
    remedy = "see in squeue whether jobs of this run are left, and delete the file"
    with reading(run.slurm_jobs, remedy):
        jobs = [Job(**row) for row in files.read_json(run.slurm_jobs)["jobs"]]
        if not jobs:
            # It is written when the first of them is there.
            raise ValueError("no jobs")
        return jobs


def _submitted(run: Run) -> list[Job]:
    if jobs := _known_jobs(run):
        return jobs
    raise UserError(f"{run.folder}: nothing was submitted from here; mer-dist slurm CONFIG does it")


def _states(jobs: list[Job]) -> dict[str, str]:
    """State of every one of these jobs that Slurm still knows, by the id that squeue shows.

    Slurm counts anew after a while, so another job may have come to the id; of one with another name, the
    name stands behind the state.
    """
    try:
        result = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%j"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise UserError(f"squeue does not answer: {' '.join(str(reason).split())}") from None
    names = {job.id: _name(job.stage) for job in jobs}
    states = {}
    for number, state, reason, name in (line.split("|", 3) for line in result.stdout.splitlines()):
        if wanted := names.get(number.partition("_")[0]):
            states[number] = f"{state} ({reason})" if state == "PENDING" else state
            if name != wanted:
                states[number] += f"{NAMED} {name!r}"
    return states


def active(run: Run) -> dict[str, str]:
    """The run's jobs that may still do something, and their states.

    Raises:
        UserError: one of them has another name: somebody has renamed it, or it is not of this run.
    """
    found = {
        number: state for number, state in _states(_submitted(run)).items() if not state.startswith(OVER)
    }
    for number, state in found.items():
        if NAMED in state:
            raise UserError(
                f"job {number} is {state}: it was renamed, or Slurm has given the number of a "
                f"job of this run to another one; look at it with scontrol show job {number}, "
                f"end it by scancel if it is yours, or else delete {run.slurm_jobs}"
            )
    return found


def status(run: Run) -> list[dict]:
    """One row a job: stage, id, state, tasks done, requeues, log. What Slurm has forgotten is told from
    the notes that tasks leave.

    Raises:
        UserError: nothing was submitted, squeue does not answer, or ``jobs.json`` or a note is damaged.
    """
    jobs = _submitted(run)
    states = _states(jobs)
    rows = []
    for job in jobs:
        ids = [f"{job.id}_{index}" for index in range(job.tasks)] if job.tasks > 1 else [job.id]
        notes = [note for number in ids if (note := _told(run, job.stage, number))]
        done = sum(note.code in ENDED_WELL for note in notes)
        found = sorted({states[number] for number in {job.id, *ids} & states.keys()})
        forgotten = "FAILED" if notes else "NEVER RAN"
        forgotten = "COMPLETED" if done == len(ids) else forgotten
        rows.append(
            {
                "stage": job.stage,
                "job": job.id,
                "state": ", ".join(found) or forgotten,
                "done": f"{done}/{len(ids)}",
                "requeues": sum(note.restarts for note in notes),
                "log": job.log,
            }
        )
    return rows


def _told(run: Run, stage: str, number: str) -> Note | None:
    """The note of a job or a task; None if it left none."""
    path = run.slurm_note(stage, number)
    if not path.exists():
        return None
    with reading(path, "how this task ended is in its log; delete the file to see the rest of the table"):
        return Note(**files.read_json(path))


def table(rows: list[dict]) -> str:
    heads = list(rows[0])
    return aligned([heads, *([str(row[head]) for head in heads] for row in rows)])


def cancel(run: Run) -> list[str]:
    """End the run's jobs; what they have finished stays. Returns the ids that were still there."""
    numbers = sorted({number.partition("_")[0] for number in active(run)})
    if numbers:
        done = subprocess.run(["scancel", *numbers], capture_output=True, text=True, check=False)
        if done.returncode:
            logger.warning("scancel: %s", done.stderr.strip())
    return numbers
