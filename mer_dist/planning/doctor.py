"""Check that this machine is ready for a run; each check is independent and shows a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mer_dist.config.config import Config
from mer_dist.config.slurm import SlurmConfig
from mer_dist.core.errors import UserError
from mer_dist.core.log import announce_if_long
from mer_dist.models import model_folder
from mer_dist.planning import doctor_corpus, plan
from mer_dist.processes import launch_config
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training import caches, supported
from mer_dist.training.caches import existing

PYTHON = (3, 11)
#: For sockets, libraries and loader files of a process, besides one tar per shard.
OPEN_FILES = 1024


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's output."""

    name: str
    ok: bool
    #: What was found, or what to do.
    text: str

    def __str__(self) -> str:
        return f"{'ok ' if self.ok else 'FIX'} {self.name}: {self.text}"


def doctor(config: Config) -> Iterator[Check]:
    """Every check, one after the other; a failing one does not stop the others."""
    for name, check in _checks(config):
        try:
            with announce_if_long(f"looking at {name}"):
                text = check(config)
            yield Check(name=name, ok=True, text=text)
        except UserError as error:
            yield Check(name=name, ok=False, text=str(error))
        except Exception as error:  # a broken installation may raise anything
            yield Check(name=name, ok=False, text=f"{type(error).__name__}: {error}".splitlines()[0])


def _checks(config: Config) -> Iterator[tuple[str, Callable[[Config], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "launch", _launch
    yield "processors", _processors
    if config.extractors:
        yield "memory", _memory
    yield "communication", _communication
    if any(extractor.quantize != "none" for extractor in config.extractors.values()):
        yield "bitsandbytes", _bitsandbytes
    for name in config.extractors:
        yield f"model {name}", partial(_model, name=name)
    yield from doctor_corpus.checks(config)
    yield "run folder", _run_folder
    yield "home", _home
    yield "disk", _disk
    yield "port", _port
    yield "open files", _open_files
    # A configuration without Slurm keys is not for Slurm, even if it is installed here.
    if config.slurm != SlurmConfig() and config.slurm.extract_tasks > 1 and shutil.which("scontrol"):
        yield "job array", _job_array


def _python(config: Config) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        raise UserError(f"{version} is too old; make the environment with 3.11 or newer")
    return version


def _packages(config: Config) -> str:
    """The requirements of the installed package, in the versions of constraints.txt."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in importlib.metadata.requires("mer-dist") or []]
    except importlib.metadata.PackageNotFoundError:
        raise UserError("mer-dist is not installed; pip install -c constraints.txt -e '.[train]'") from None
    names = [item for item in required if item.marker is None or item.marker.evaluate({"extra": "train"})]
    tested = _tested_versions()
    wrong = [text for item in names if (text := _package_fault(item, tested))]
    # Accelerate would silently ignore a missing tracker.
    wrong += [f"{name} of trackers is missing" for name in config.trackers if find_spec(name) is None]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: pip install the versions of {files.shipped('constraints.txt')}")
    return f"{len(names)} installed, in the tested versions"


def _tested_versions() -> dict[str, str]:
    path = files.shipped("constraints.txt")
    pins = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return dict(pin.split("==") for pin in pins if "==" in pin)


def _package_fault(item, tested: dict[str, str]) -> str:
    try:
        found = importlib.metadata.version(item.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{item.name} is missing"
    # torch's version ends with its build, as +cpu or +cu130; any build will do.
    plain = found.partition("+")[0]
    if plain not in item.specifier:
        return f"{item.name} is {found}, needed is {item.specifier}"
    wanted = tested.get(item.name, plain)
    return f"{item.name} is {found}, tested is {wanted}" if plain != wanted else ""


def _launch(config: Config) -> str:
    layout = launch_config.layout(config.run)
    supported.check(layout.zero_stage)
    supported.check_batches(config, layout.processes)
    how = layout.description
    return f"{layout.processes} processes, {layout.machines} machines, {how}"


def _processors(config: Config) -> str:
    import torch

    here = launch_config.layout(config.run).per_machine
    if not torch.cuda.is_available():
        cores = os.cpu_count() or 1
        if here > cores:
            raise UserError(
                f"{here} processes, no GPU and {cores} processors; set run.processes={cores} or "
                "go where the GPUs are"
            )
        return f"torch {torch.__version__} sees no GPU; {here} processes on {cores} processors"
    count = torch.cuda.device_count()
    if count < here:
        raise UserError(f"{here} processes on this machine and {count} GPUs; set run.processes={count}")
    capacity = min(torch.cuda.get_device_properties(card).total_memory for card in range(count))
    needs = plan.plan(config)["extractors"]
    full = [
        f"{stage} {name} {facts[stage]['gpu_total'] / 1e9:.1f} GB"
        for name, facts in needs.items()
        for stage in ("finetune", "extract")
        if facts[stage] and facts[stage]["gpu_total"] > capacity
    ]
    if full:
        raise UserError(
            f"GPUs of {capacity / 1e9:.1f} GB are too small for {', '.join(full)}; "
            "mer-dist plan shows what would fit"
        )
    return f"torch {torch.__version__}, {count} GPUs of {capacity / 1e9:.1f} GB"


def _memory(config: Config) -> str:
    """Whether the processes of this machine can load their models."""
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = plan.host_needed(config)
    (stage, name), most = max(needed.items(), key=lambda pair: pair[1])
    if most > here:
        raise UserError(
            f"{stage} {name}: its processes take about {most / 1e9:.1f} GB to load, and this machine has "
            f"{here / 1e9:.1f} GB; start fewer processes on it, or give extractors.{name}.quantize"
        )
    return f"{here / 1e9:.1f} GB, about {most / 1e9:.1f} GB needed to load ({stage} {name})"


def _communication(config: Config) -> str:
    import torch
    import torch.distributed as group

    if launch_config.layout(config.run).processes == 1:
        return "one process needs none"
    if torch.cuda.is_available():
        if not group.is_nccl_available():
            raise UserError("this torch has no NCCL; install a torch built for CUDA")
        return "NCCL"
    if not group.is_gloo_available():
        raise UserError("this torch has no gloo; install torch from its own packages")
    # DeepSpeed compiles its shared-memory communication when it is first used on a CPU.
    absent = [tool for tool in ("ninja", "g++") if shutil.which(tool) is None]
    if absent:
        raise UserError(
            f"DeepSpeed compiles with {' and '.join(absent)}, not found on PATH; install them, "
            "or activate the environment that has them"
        )
    return "gloo; ninja and g++ for DeepSpeed"


def _bitsandbytes(config: Config) -> str:
    import bitsandbytes

    return f"{bitsandbytes.__version__}, for extractors.*.quantize"


def _model(config: Config, name: str) -> str:
    extractor = config.extractors[name]
    model_folder.check(Path(extractor.path), extractor.family)
    return f"{extractor.path} is complete"


def _run_folder(config: Config) -> str:
    folder = existing(Path(config.run.folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return f"{folder} can be written"
    except OSError as error:
        raise UserError(
            f"{folder}: nothing can be written there ({error.strerror}); choose another run.folder"
        ) from None


def _home(config: Config) -> str:
    """Whether DeepSpeed can compile to a folder below HOME, or else below the run folder."""
    if launch_config.layout(config.run).processes == 1:
        return "one process compiles nothing"
    own, instead = caches.folders()["TORCH_EXTENSIONS_DIR"], Run(config.run.folder).caches
    if not (why := caches.fault(own)):
        return f"DeepSpeed compiles to {own}"
    if other := caches.fault(instead):
        raise UserError(
            f"DeepSpeed has no folder to compile to: {why}; {other}; set HOME or "
            "TORCH_EXTENSIONS_DIR to a folder of yours from which programs can be run"
        )
    return f"{why}; what DeepSpeed compiles is kept in {instead}"


def _disk(config: Config) -> str:
    free = shutil.disk_usage(existing(Path(config.run.folder))).free
    needed = plan.disk_needed(config)
    if needed is None:
        return f"{free / 1e9:.1f} GB free; what is needed is known once the corpus is there"
    if needed > free:
        raise UserError(
            f"about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free at "
            f"{config.run.folder}; mer-dist plan shows for what"
        )
    return f"{free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed"


def _port(config: Config) -> str:
    if launch_config.layout(config.run).processes == 1:
        return "one process needs none"
    port = launch_config.launch_port(config.run)
    with socket.socket() as listener:
        # As in the launcher: a port that a finished run has just left counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            raise UserError(
                f"{port}, the default of accelerate launch, is taken; give it another "
                "--main_process_port (mer-dist run finds one itself)"
            ) from None
    return f"{port} is free"


def _open_files(config: Config) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        raise UserError(f"a process may open {soft} files, {OPEN_FILES} are needed; ulimit -n {OPEN_FILES}")
    return f"{soft}"


def _job_array(config: Config) -> str:
    """At submission, Slurm refuses an array whose largest index is not below its MaxArraySize."""
    result = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=60
    )
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", result.stdout, re.MULTILINE)
    if not found:
        reason = " ".join(result.stderr.split()) or "MaxArraySize is missing"
        raise UserError(f"scontrol show config: {reason}; check there whether Slurm is up")
    tasks, most = config.slurm.extract_tasks, int(found[1])
    if tasks > most:
        raise UserError(
            f"slurm.extract_tasks is {tasks}, and this cluster takes arrays of {most} tasks at "
            f"most (MaxArraySize); set slurm.extract_tasks={max(most, 1)}"
        )
    return f"{tasks} tasks of at most {most}"
