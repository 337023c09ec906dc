"""Whether RANK and WORLD_SIZE come from a launcher that is at work, by what stands above a process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from mer_dist.processes import ancestry
from mer_dist.processes.ancestry import Process, Starter

OURS, OTHERS = ("0", "4"), (None, None)
RANK = Process(("python", "-m", "mer_dist", "extract"), OURS)
SHELL, ROOT = Process(("bash",), OTHERS), Process(("systemd",), OTHERS)
SLURM = Process(("slurmstepd",), None)


@pytest.mark.parametrize(
    ("above", "name"),
    [
        ([RANK, Process(("python", "torchrun", "--nproc"), OTHERS), SHELL, ROOT], "torchrun"),
        (
            [RANK, Process(("python3.11", "-m", "torch.distributed.run"), OTHERS), SHELL],
            "torch.distributed.run",
        ),
        # Left over in the shell, and equal by chance to what the launcher sets.
        ([RANK, Process(("python", "accelerate", "launch"), OURS), SHELL, ROOT], "accelerate"),
        (
            [RANK, Process(("python", "-u", "-m", "deepspeed.launcher.launch"), OTHERS), SHELL],
            "deepspeed.launcher.launch",
        ),
        # Wrappers that translate the variables of another launcher.
        ([RANK, Process(("bash", "-c", "RANK"), OTHERS), SLURM, ROOT], "slurmstepd"),
        (
            [RANK, Process(("sh", "r.sh"), OTHERS), Process(("hydra_pmi_proxy",), OTHERS), ROOT],
            "hydra_pmi_proxy",
        ),
        ([RANK, Process(("bash",), OTHERS), Process(("perl", "parallel"), OTHERS), SHELL, ROOT], "parallel"),
        # A command that pdsh or ssh sends to a node.
        ([RANK, SHELL, Process(("sshd",), None), ROOT], "ssh"),
        # What srun starts, also in a container that shows nothing of srun.
        ([Process(("python3", "mer-dist", "slurm-task", "extract"), OTHERS)], "slurm-task"),
        ([Process(("python3", "-m", "mer_dist", "slurm-task"), OTHERS)], "slurm-task"),
        # Containers: entered with the variables, started with them, or with a script that sets them.
        ([RANK], "what started this container"),
        ([RANK, Process(("sh", "-c", "mer-dist"), OURS)], "what started this container"),
        ([RANK, Process(("bash", "entry.sh"), OTHERS)], "what started this container"),
        (
            [RANK, Process(("bash", "go.sh"), OTHERS), Process(("tini",), OTHERS)],
            "what started this container",
        ),
        # Another user's processes do not show what they were started with.
        ([RANK, Process(("sudo",), None), SHELL, ROOT], "a program that is not shown here"),
    ],
)
def test_a_rank_of_a_launcher_is_none_of_those_left_over(above, name):
    assert ancestry._judged(OURS, above, terminal=False) == Starter(name)


def test_a_program_that_sets_the_variables_is_a_launcher_of_which_nothing_more_is_known():
    above = [RANK, Process(("python", "start_ranks"), OTHERS), SHELL, ROOT]
    assert ancestry._judged(OURS, above, terminal=True) == Starter("python", known=False)


@pytest.mark.parametrize(
    "above",
    [
        [RANK, SHELL, ROOT],
        [RANK, Process(("-zsh",), OTHERS), Process(("sshd",), None), ROOT],
        # What stands between hands them on.
        [RANK, Process(("uv", "run"), OURS), Process(("make",), OURS), SHELL, ROOT],
        [RANK, Process(("bash", "job.sh"), OURS), SHELL, ROOT],
        # A terminal multiplexer that was started from within a job that is over.
        [RANK, Process(("bash",), OURS), Process(("tmux",), OURS), ROOT],
        [RANK, Process(("fish",), OURS), Process(("tmux server",), OURS), Process(("systemd",), None)],
    ],
)
def test_variables_that_a_shell_has_set_or_kept_are_left_over(above):
    assert ancestry._judged(OURS, above, terminal=True) is None


def test_the_processes_above_are_read_as_the_system_shows_them():
    """A shell that stays above a process with variables, itself without; this process above the shell."""
    told = subprocess.run(
        [
            "sh",
            "-c",
            (
                f"RANK=0 WORLD_SIZE=4 {sys.executable} -c 'from mer_dist.processes.ancestry import *; "
                "from mer_dist.processes import ancestry; print([(p.words[0], p.values) for p in "
                "ancestry._above()]); print(started_by())'; true"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.getcwd(),
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    ).stdout.splitlines()
    above = ast.literal_eval(told[0])
    assert above[0][1] == ("0", "4") and "python" in above[0][0]
    assert above[1] == ("sh", (None, None)) and above[2][1] == (None, None)
    assert told[1] == "None"


def test_ranks_by_hand_are_said_to_be_so(monkeypatch):
    monkeypatch.setenv(ancestry.BY_HAND, "1")
    assert ancestry.started_by() == Starter("hand")
