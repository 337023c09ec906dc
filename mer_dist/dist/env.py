"""The only reader of the variables that launchers and Slurm set."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


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
    if not _has_gpu():
        inherited.setdefault("DS_ACCELERATOR", "cpu")
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # Freed buffers of loading go back to the system instead of staying in the heap.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        # The libraries' notes to each other about coming versions would drown the log.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        # Time for ranks to reach a boundary after SIGTERM, before the launcher kills them.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300",
    }
    return {**inherited, **own}


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
