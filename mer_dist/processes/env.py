"""The only reader of the variables that launchers set; ``slurm/rank.py`` reads those of Slurm."""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from mer_dist.core.errors import UserError

_OUTER = "MER_DIST_OUTER_PROCESS"
#: What a launcher tells each of its ranks.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
UNSET = f"if no launcher is at work: unset {' '.join(OF_A_RANK)}"


@dataclass(frozen=True)
class ProcessInfo:
    """Which of how many processes this one is."""

    rank: int
    world: int
    local_rank: int
    #: True if a launcher started this process; it then reports through status.json.
    launched: bool


def process_info() -> ProcessInfo:
    """
    Raises:
        UserError: RANK and WORLD_SIZE are set, and not to the numbers of a process.
    """
    if not ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        return ProcessInfo(rank=0, world=1, local_rank=0, launched=False)
    variables = {name: os.environ[name] for name in OF_A_RANK if name in os.environ}
    if any(not re.fullmatch("[0-9]{1,6}", value) for value in variables.values()) or (
        int(variables["RANK"]) >= int(variables["WORLD_SIZE"])
    ):
        said = " ".join(f"{name}={value}" for name, value in variables.items())
        raise UserError(f"the environment has {said}, which is no process of a launcher; {UNSET}")
    return ProcessInfo(
        rank=int(variables["RANK"]),
        world=int(variables["WORLD_SIZE"]),
        local_rank=int(variables.get("LOCAL_RANK", 0)),
        launched=True,
    )


def ranks_here() -> int:
    """Processes of the launcher on this machine, as far as it says so."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(value)) if re.fullmatch("[0-9]{1,6}", value) else 1


def under_deepspeed() -> bool:
    """Whether ``accelerate launch`` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def alone() -> None:
    """From now on this process is the only one, whatever a launcher, or one of before, has told it."""
    for name in OF_A_RANK:
        os.environ.pop(name, None)


def for_children(threads: int) -> dict[str, str]:
    """The environment of processes that this one launches: bounded threads, no inherited rank."""
    inherited = {key: value for key, value in os.environ.items() if key not in OF_A_RANK}
    if "DS_ACCELERATOR" not in inherited and not has_gpu():
        inherited["DS_ACCELERATOR"] = "cpu"
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # Freed buffers of loading go back to the system instead of staying in the heap.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        _OUTER: f"{os.getpid()}@{socket.gethostname()}",
        # Time for ranks to reach a boundary after SIGTERM, before the launcher kills them.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300",
    }
    return {**inherited, **own, "PATH": own_tools_first()}


def own_tools_first() -> str:
    """``PATH`` with the tools beside this Python in front, whether or not its environment is activated.

    Without its ninja DeepSpeed could not compile its operators, and with another one it would compile
    them again.
    """
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    return path if path.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{path}"


def outer() -> int | None:
    """The process on this machine that launched the launcher of this one, if it said so."""
    process, _, host = os.environ.get(_OUTER, "").partition("@")
    return int(process) if host == socket.gethostname() else None


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
