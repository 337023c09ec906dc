"""The keys of the section ``slurm``: the resources requested from a cluster.

These values go into batch scripts and, unquoted, the command line of ``sbatch``. So each may contain
only a few characters that have no meaning in a shell.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated

from mer_dist.config.limits import Count, Limit, WholeFromZero, one_of
from mer_dist.config.section import section
from mer_dist.config.sections import path
from mer_dist.core.errors import UserError

STAGES = ("shard", "finetune", "extract", "fuse", "report")
WORD = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_.,:/@+=#-]*")
TIME = re.compile(r"[0-9]{1,9}(:[0-9]{1,9}){0,2}|[0-9]{1,9}-[0-9]{1,9}(:[0-9]{1,9}){0,2}")
#: Seconds by which Slurm may send a job's warning early.
EARLY = 60
MEMORY = re.compile(r"[0-9]+[KMGT]?")
#: Far beyond the arrays that clusters allow, by default 1001 tasks.
MOST_TASKS = 100_000
TASKS = Limit(f"from 1 to {MOST_TASKS}", lambda tasks: 1 <= tasks <= MOST_TASKS)
OPTION = re.compile(r"[a-z][a-z0-9-]*")
#: ``wrap`` is a command; the others are set by other keys or the job graph.
TAKEN = (
    "account",
    "array",
    "chdir",
    "cpus-per-task",
    "dependency",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "gpus-per-node",
    "job-name",
    "mem",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "parsable",
    "partition",
    "qos",
    "requeue",
    "no-requeue",
    "signal",
    "test-only",
    "time",
    "wait",
    "wrap",
)


@section("slurm")
class SlurmConfig:
    """What is asked of a cluster. Values that are empty or 0 are left to the cluster's defaults."""

    partition: str = ""
    """Partition of the jobs."""
    cpu_partition: str = ""
    """Partition of the jobs without a GPU (shard, report); empty: ``partition``."""
    account: str = ""
    """Account that is charged."""
    qos: str = ""
    """Quality of service."""
    nodes: Count = 1
    """Nodes of finetune; every other job has one."""
    gpus_per_node: WholeFromZero = 0
    """GPUs of each node of finetune; extract and fuse then take one. 0: CPUs only."""
    tasks_per_node: WholeFromZero = 0
    """Processes of finetune on each node; 0: one per GPU, without GPUs one."""
    cpus_per_task: WholeFromZero = 0
    """Processors of each process."""
    memory: str = ""
    """Host memory of a node, as ``64G``; ``0`` means all of it in Slurm."""
    time: str = ""
    """Time limit of every job in Slurm's form, as ``24:00:00`` or ``2-00:00:00``."""
    times: dict[str, str] = field(default_factory=dict)
    """stage: its own time limit."""
    warning: Count = 300
    """Seconds before the limit at which a job saves and requeues; longer than a checkpoint and an
    evaluation, and more than a minute shorter than the limit."""
    extract_tasks: Annotated[int, TASKS] = 4
    """Tasks of the extraction array; each has its part of the shards."""
    extract_at_once: WholeFromZero = 0
    """How many of them may run at once; 0: all."""
    container: str = ""
    """Image in which every process runs."""
    container_by: Annotated[str, one_of("pyxis", "apptainer")] = "pyxis"
    """``pyxis``: with ``srun --container-image``; ``apptainer``: with ``apptainer exec``."""
    container_mounts: list[str] = field(default_factory=list)
    """``/path`` or ``/path:/inside``. The run folder, the corpus and the models must be among them."""
    python: str = ""
    """Python on the nodes or in the image, with mer_dist installed; empty: the one that submits."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch without their dashes, as ``constraint: a100``; an empty value: a flag."""

    def __post_init__(self):
        self.container, self.python = (
            path("slurm", key, getattr(self, key)) for key in ("container", "python")
        )
        self.container_mounts = [path("slurm", "container_mounts", mount) for mount in self.container_mounts]
        for key in ("partition", "cpu_partition", "account", "qos", "container", "python"):
            _fits(key, getattr(self, key), WORD, "as a word of letters, digits and _ . , : / @ + = # -")
        for mount in self.container_mounts:
            _fits("container_mounts", mount, WORD, "as /data or /data:/inside, without spaces")
        _fits("memory", self.memory, MEMORY, "as 64G, or 0 for all")
        _fits("time", self.time, TIME, "as 24:00:00 or 2-00:00:00")
        for stage, limit in self.times.items():
            one_of(*STAGES).check("slurm.times: a stage", stage)
            _fits(f"times.{stage}", limit, TIME, "as 24:00:00 or 2-00:00:00")
        # The report does not stop on a warning.
        for stage in STAGES[:-1]:
            self._check_warning(stage)
        for name, value in self.options.items():
            if not OPTION.fullmatch(name) or name in TAKEN:
                raise UserError(
                    f"slurm.options.{name}: not an option that can be given here; another key of "
                    "slurm or the job graph may set it"
                )
            _fits(f"options.{name}", value, WORD, "as a word of letters, digits and _ . , : / @ + = # -")

    def _check_warning(self, stage: str) -> None:
        """A job that is warned as soon as it starts would requeue itself for ever."""
        key, limit = f"times.{stage}", self.times.get(stage)
        if limit is None:
            key, limit = "time", self.time
        allowed = seconds(limit) if limit else 0
        if allowed and allowed <= self.warning + EARLY:
            raise UserError(
                f"slurm.{key} is {limit!r}, {allowed} s, and slurm.warning is {self.warning} s: Slurm may "
                f"warn {EARLY} s early, and {stage} would stop as soon as it starts; raise the one or lower "
                "the other"
            )


def seconds(limit: str) -> int:
    """A time in Slurm's forms, M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0 is no limit."""
    days, dash, clock = limit.rpartition("-")
    units = (3600, 60, 1) if dash or clock.count(":") == 2 else (60, 1)
    return 86400 * int(days or 0) + sum(
        unit * int(part) for unit, part in zip(units, clock.split(":"), strict=False)
    )


def _fits(key: str, value: str, pattern: re.Pattern, example: str) -> None:
    if value and not pattern.fullmatch(value):
        raise UserError(f"slurm.{key} is {value!r}; write it {example}")
