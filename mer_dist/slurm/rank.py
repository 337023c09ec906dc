"""A process that srun started becomes a rank: Slurm's variables in the words that launchers use.

No launcher stands between srun and the ranks. Slurm sends its signals to every process of a step, and
launchers die of the ones that ranks are to save on.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_dist.config.yaml_reader import parse
from mer_dist.core.errors import UserError
from mer_dist.processes.env import alone, has_gpu
from mer_dist.processes.launch_config import STAGES

#: Below the ports that Linux gives to outgoing connections, 32768 and up.
PORTS = range(20000, 32000)
#: Keys of ``deepspeed_config`` in an Accelerate launch file, and the variable that carries each.
DEEPSPEED = {
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
}
#: The batch script looks for the file that this variable names once its ranks have ended.
STOPPED = "MER_DIST_STOPPED"


@dataclass(frozen=True)
class Step:
    """Where this process stands in the cluster."""

    job: str
    """As squeue shows it: 12, or 12_3 in an array."""
    restarts: int
    index: int
    """Of an array's task; else 0."""
    speaks: bool
    """Whether this process leaves word for the job: its first, and so every task of an array."""


def become_rank(array: int, launch_file: str, layout: str = "auto") -> Step:
    """Set RANK, WORLD_SIZE and what else a launcher would set, and say which job this is.

    Args:
        array: number of tasks that the work of a job array is split over.
        launch_file: Accelerate's, for its DeepSpeed settings.
        layout: ``run.layout``, where there is no launch file; ``auto``: ZeRO-3.

    Raises:
        UserError: no srun started this process, or the array is larger than ``array``.
    """
    slurm = {key: value for key, value in os.environ.items() if key.startswith("SLURM_")}
    if "SLURM_PROCID" not in slurm:
        raise UserError("slurm-task is what srun starts in a batch job; to submit one: mer-dist slurm CONFIG")
    number, restarts = _number(slurm, "SLURM_JOB_ID"), _number(slurm, "SLURM_RESTART_COUNT", "0")
    rank, world, local = (_number(slurm, f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
    step = Step(str(number), restarts, 0, rank == 0)
    if "SLURM_ARRAY_TASK_ID" in slurm:
        rank, world, local = _number(slurm, "SLURM_ARRAY_TASK_ID"), array, 0
        step = Step(f"{_number(slurm, 'SLURM_ARRAY_JOB_ID')}_{rank}", restarts, rank, True)
        if rank >= world:
            raise UserError(
                f"this is task {rank} of the array, and slurm.extract_tasks is {array}; submit "
                f"it with --array=0-{array - 1} or fewer"
            )
    # Whatever launched the shell that submitted the job means nothing here.
    alone()
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if world > 1:
        # Where srun was called: the first node, which has rank 0.
        os.environ.update(
            MASTER_ADDR=slurm.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
            RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(local),
            MASTER_PORT=str(port(number, restarts)),
            **_joined(launch_file, layout),
        )
    return step


def _number(slurm: dict[str, str], name: str, default: str = "") -> int:
    value = slurm.get(name, default)
    if not re.fullmatch("[0-9]{1,10}", value):
        raise UserError(
            f"{name} is {value!r}, and srun sets it to a number; start the task by sbatch or by "
            "mer-dist slurm CONFIG"
        )
    return int(value)


def port(job: int, restarts: int) -> int:
    """Another one for every job, and for every restart: the old one may still be taken."""
    return PORTS[(31 * job + restarts) % len(PORTS)]


def _joined(launch_file: str, layout: str) -> dict[str, str]:
    """By what the ranks share the model: DeepSpeed with its settings, or neither."""
    settings: dict[str, Any] = {}
    stage = STAGES[layout]
    if launch_file:
        settings = parse(Path(launch_file).read_text(encoding="utf-8"), launch_file) or {}
        stage = 0 if settings.get("distributed_type") in ("MULTI_GPU", "MULTI_CPU") else 3
    if stage == 0:
        return {"ACCELERATE_USE_DEEPSPEED": "false"}
    own = settings.get("deepspeed_config") or {"zero_stage": stage, "zero3_init_flag": stage == 3}
    return {"ACCELERATE_USE_DEEPSPEED": "true", **_deepspeed(own, launch_file)}


def _deepspeed(settings: dict, launch_file: str) -> dict[str, str]:
    # How launchers of several nodes find each other says nothing here.
    settings = {key: value for key, value in settings.items() if key != "deepspeed_multinode_launcher"}
    unknown = settings.keys() - DEEPSPEED.keys()
    if unknown:
        raise UserError(
            f"{launch_file}: deepspeed_config has {', '.join(sorted(unknown))}; under Slurm only "
            f"these are read: {', '.join(DEEPSPEED)}; the rest goes into a deepspeed_config_file"
        )
    return {
        DEEPSPEED[key]: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in settings.items()
    }


def notify_batch_script() -> None:
    """Ask the batch script of this job to queue it again."""
    if path := os.environ.get(STOPPED):
        Path(path).touch()
