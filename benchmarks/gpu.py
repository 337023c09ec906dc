"""What the whole tool costs at full size on one GPU, and whether it is right there.

    python benchmarks/gpu.py --out runs/gpu                 # every step, the most valuable first
    python benchmarks/gpu.py --out runs/gpu --only fusion   # one of them
    python benchmarks/gpu.py --out runs/gpu --tiny          # the same code with toy shapes, on a CPU
    python benchmarks/gpu.py --out runs/gpu --table         # what was measured, in Markdown

Models have random weights in the published layouts. Each step is a process of its own that appends rows to
OUT/results.jsonl, and is left out once the deadline is near: nine minutes hold about half of them; what one prints is in OUT/STEP.log. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Step:
    """A part of the check: the function ``step_<name>`` of a module beside this one."""

    name: str
    module: str
    #: It may take so many seconds at most at full size; it is not begun later.
    seconds: int
    #: Whether the next ones may begin while it runs.
    beside: bool = False

    @property
    def alone(self) -> bool:
        """Whether it needs the machine for itself."""
        return self.module in ("gpu_train", "gpu_extract", "gpu_fusion")


STEPS = [
    Step("device", "gpu_device", 20),
    Step("shards", "gpu_inputs", 20, beside=True),
    Step("job", "gpu_job", 90, beside=True),
    Step("models", "gpu_inputs", 60),
    Step("plan", "gpu_plan", 40, beside=True),
    Step("train_text", "gpu_train", 60),
    Step("fusion", "gpu_fusion", 35),
    Step("extract_text", "gpu_extract", 40),
    Step("extract_frames", "gpu_extract", 60),
    Step("extract_sound", "gpu_extract", 60),
    Step("train_kill", "gpu_train", 75),
    Step("train_zero3", "gpu_train", 60),
    Step("train_nf4", "gpu_train", 60),
    Step("train_by_clips", "gpu_train", 60),
    Step("train_copies", "gpu_train", 60),
    Step("extract_nf4", "gpu_extract", 50),
]


@dataclass
class Check:
    """Where a step works, and how large everything is."""

    out: Path
    work: Path
    tiny: bool
    started: float = field(default_factory=time.time)

    @property
    def command(self) -> list[str]:
        """The command line of mer_dist of this checkout."""
        return [sys.executable, "-m", "mer_dist"]

    @property
    def environment(self) -> dict[str, str]:
        found = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(REPOSITORY), *([found] if found else [])])
        cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if self.tiny else {}
        return {**os.environ, "PYTHONPATH": path, **cpu}

    def tell(self, step: str, **facts) -> None:
        """Append a row to the results."""
        short = {key: float(f"{it:.4g}") if isinstance(it, float) else it for key, it in facts.items()}
        line = json.dumps({"step": step, **short, "at": round(time.time() - self.started, 1)})
        print(line, flush=True)
        with open(self.out / RESULTS, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rows(self) -> list[dict]:
        path = self.out / RESULTS
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def measured(self, step: str, key: str, default=None):
        """What the last row of a step that has this key says."""
        return next(
            (row[key] for row in reversed(self.rows()) if row["step"] == step and key in row), default
        )


def run_all(check: Check, limit: float, steps: list[Step]) -> None:
    """These steps, the next only if its time is left."""
    beside: dict[str, subprocess.Popen] = {}
    for step in steps:
        if step.alone:
            # Its times count, and the models and shards must be there.
            _wait_for(check, beside, limit - (time.time() - check.started))
        left = limit - (time.time() - check.started)
        if left < step.seconds:
            check.tell("left out", what=step.name)
            continue
        child = _start(check, step)
        if step.beside:
            beside[step.name] = child
        else:
            _wait_for(check, {step.name: child}, left)
    _wait_for(check, beside, limit + 20 - (time.time() - check.started))


def _start(check: Check, step: Step) -> subprocess.Popen:
    given = ["--out", str(check.out), "--work", str(check.work), "--started", str(check.started)]
    command = [sys.executable, __file__, "--step", step.name, *given, *["--tiny"] * check.tiny]
    with open(check.out / f"{step.name}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=check.environment)


def _wait_for(check: Check, children: dict[str, subprocess.Popen], seconds: float) -> None:
    end = time.time() + max(5, seconds)
    for name, child in children.items():
        try:
            code: int | str = child.wait(max(1, end - time.time()))
        except subprocess.TimeoutExpired:
            # A step ends what it has started.
            child.terminate()
            child.wait()
            code = "out of time"
        if code:
            said = (check.out / f"{name}.log").read_text("utf-8", "replace")
            check.tell("failed", what=name, code=str(code), said=said[-1500:])
    children.clear()


def _asked(check: Check, only: str) -> list[Step]:
    """The step, and before it what is not there yet."""
    made = {
        "device": (check.out / RESULTS).exists(),
        "shards": (check.work / "lines" / "shards" / "index.parquet").exists(),
        "models": (check.work / "models" / "baichuan" / "config.json").exists(),
    }
    return [step for step in STEPS if step.name == only or not made.get(step.name, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where results and logs go")
    parser.add_argument("--work", type=Path, help="where 30 GB of weights go (OUT/work)")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", choices=names, help="one step, and what it needs")
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="toy shapes on a CPU: shows that it runs")
    parser.add_argument("--table", action="store_true", help="print the results that are there")
    parser.add_argument("--limit", type=float, default=530, help="seconds in all (530)")
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work or given.out / "work"
    check = Check(given.out.absolute(), work.absolute(), given.tiny, given.started)
    for folder in (check.out, check.work):
        folder.mkdir(parents=True, exist_ok=True)
    if given.table:
        print("\n".join(importlib.import_module("gpu_table").tables(check)))
        return
    if not given.step:
        run_all(check, given.limit, _asked(check, given.only) if given.only else STEPS)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))
    module = importlib.import_module(next(step.module for step in STEPS if step.name == given.step))
    getattr(module, f"step_{given.step}")(check)


if __name__ == "__main__":
    main()
