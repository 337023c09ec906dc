"""A real Slurm of four nodes on this machine, and small jobs for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, skip

SCRIPT = ROOT / "slurm" / "local-cluster.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def needed() -> None:
    """Skip where there can be no such cluster."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.getuid() != 0:
        skip(
            "a local Slurm needs root and the packages munge, slurmctld, slurmd and slurm-client; missing: "
            f"{', '.join(missing) or 'root'}"
        )


class Cluster:
    """Commands as a user of the cluster gives them."""

    def __init__(self, folder: Path, nodes: int):
        needed()
        self.folder = folder
        self._script("up", NODES=str(nodes))
        links = folder / "bin"
        links.mkdir()
        # The sbatch files call mer-dist, as an activated environment has it.
        command = links / "mer-dist"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mer_dist "$@"\n')
        command.chmod(0o755)
        self.variables = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "PATH": f"{links}{os.pathsep}{os.environ['PATH']}",
        }

    def _script(self, action: str, **variables: str) -> None:
        done = subprocess.run(
            ["bash", SCRIPT, action, self.folder],
            env=os.environ | variables,
            text=True,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        self._script("down")

    def __call__(
        self, *command: str | Path, cwd: Path | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(word) for word in command],
            env=self.variables,
            cwd=cwd,
            text=True,
            capture_output=True,
            timeout=seconds,
            check=False,
        )

    def output(self, *command: str | Path, cwd: Path | None = None, seconds: float = 120) -> str:
        done = self(*command, cwd=cwd, seconds=seconds)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def sbatch(self, name: str, job: Path, *overrides: str, dependency: str = "") -> str:
        """Submit one of the files in slurm/ as the README says; returns the job's id."""
        stage = "finetune" if name == "run" else name
        options = self.output("mer-dist", "slurm-options", stage, job, *overrides).split()
        options += [f"--dependency={dependency}"] * bool(dependency)
        file = [ROOT / "slurm/run.sbatch"] if name == "run" else [ROOT / "slurm/stage.sbatch", stage]
        return self.output("sbatch", "--parsable", *options, *file, job, *overrides, cwd=job.parent).strip()

    def state(self, job: str) -> str:
        """RUNNING, COMPLETED, ...; of an array that of all its tasks."""
        rows = self.output("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()
        return ",".join(sorted(set(rows)))

    def restarts(self, job: str) -> int:
        (field,) = [
            word for word in self.output("scontrol", "show", "job", job).split() if "Restarts=" in word
        ]
        return int(field.partition("=")[2])

    def nodes(self, job: str) -> list[str]:
        """The nodes that began a part of the job's steps, one for each part."""
        began = f"launch task StepId={job}."
        return [
            log.stem.removeprefix("slurmd-")
            for log in sorted(self.folder.glob("slurmd-n*.log"))
            for line in log.read_text("utf-8").splitlines()
            if began in line
        ]

    @staticmethod
    def ranks(job: str) -> dict[int, str]:
        """Processes that srun has started for the job and that live, and the node of each."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                entries = (process / "environ").read_text(errors="replace").split("\0")
            except OSError:
                continue
            variables = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            if command[1:4] == [b"-m", b"mer_dist", b"slurm-task"] and variables.get("SLURM_JOB_ID") == job:
                found[int(process.name)] = variables["SLURMD_NODENAME"]
        return found

    def wait(self, condition: Callable[[], bool], seconds: float, what: str, every: float = 0.3) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.output('squeue')}"
            time.sleep(every)

    def ended(self, job: str, seconds: float = 300) -> str:
        """The final state of a job, after it has left the queue for good."""
        self.wait(lambda: not self.output("squeue", "-h", "-j", job), seconds, f"job {job}")
        return self.state(job)
