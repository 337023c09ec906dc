"""The only reader of the variables that launchers set; ``slurmstep.py`` reads those of Slurm."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_OUTER = "MER_DIST_OUTER_PROCESS"


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is."""

    rank: int
    world: int
    local_rank: int
    #: True if a launcher started this process; it then reports through status.json.
    launched: bool


def place() -> Place:
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return Place(
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        launched=launched,
    )


def for_children(threads: int) -> dict[str, str]:
    """The environment of processes that this one launches: bounded threads, no inherited rank."""
    of_this_rank = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    inherited = {key: value for key, value in os.environ.items() if key not in of_this_rank}
    if not has_gpu():
        inherited.setdefault("DS_ACCELERATOR", "cpu")
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # Freed buffers of loading go back to the system instead of staying in the heap.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        # The libraries' notes to each other about coming versions would drown the log.
        "PYTHONWARNINGS": "ignore::FutureWarning",
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
