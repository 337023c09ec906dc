"""Where libraries keep what they compile: below HOME, or below the run folder where HOME does not serve; and that nobody waits
for a compiler that was killed."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mer_dist.core.log import logger
from mer_dist.processes.env import process_info

#: Seconds after which a compilation has ended or was killed: one takes a minute or two.
LONGEST = 15 * 60


def folders() -> dict[str, Path]:
    """Variable of the environment -> where its library compiles to as things are.

    DeepSpeed has torch compile its operators, and Triton compiles kernels on GPUs.
    """
    from torch.utils.cpp_extension import get_default_build_root

    of_triton = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton")
    return {
        "TORCH_EXTENSIONS_DIR": Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()),
        "TRITON_HOME": of_triton,
        "TRITON_CACHE_DIR": Path(os.environ.get("TRITON_CACHE_DIR") or of_triton / "cache"),
    }


def use_writable(instead: Path) -> None:
    """Have what is compiled kept below ``instead`` wherever its own place does not serve.

    Call before the libraries are imported.
    """
    unfit = {name: why for name, folder in folders().items() if (why := fault(folder))}
    for name in unfit:
        os.environ[name] = str(instead / name.lower().removesuffix("_dir"))
    if "TORCH_EXTENSIONS_DIR" in unfit and process_info().local_rank == 0:
        logger.warning("%s; what DeepSpeed compiles is kept in %s", unfit["TORCH_EXTENSIONS_DIR"], instead)


def compile_communication() -> None:
    """Have DeepSpeed compile and load its communication between processes on CPUs, one process at a time.

    torch marks what it compiles by a file and waits for ever for the one that a killed compiler left. Here a
    lock of the system is held meanwhile, which goes with its process: whoever gets it after a process that
    had not finished takes that file away.
    """
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return
    with _turn(folders()["TORCH_EXTENSIONS_DIR"], builder.name):
        builder.load(verbose=False)


@contextmanager
def _turn(root: Path, name: str) -> Iterator[None]:
    """Alone with what is compiled under this name, and without the mark of a process that was killed.

    Processes that hold no lock of ours (other programs with DeepSpeed) are waited for as torch does, until
    their mark is older than any compilation.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{name}.turn", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems know no locks
            yield
            return
        file.seek(0)
        unfinished = file.read() != ""
        for mark in root.glob(f"**/{name}/lock"):
            _wait_for(mark, 0 if unfinished else LONGEST)
        file.write("compiling")
        file.flush()
        yield
        file.truncate(0)


def _wait_for(mark: Path, seconds: float) -> None:
    """Until torch's mark is gone, or older than that: then it is taken away."""
    announced = False
    while (age := _age(mark)) is not None:
        if age >= seconds:
            logger.warning("%s is of a compilation that was killed; it is removed", mark)
            mark.unlink(missing_ok=True)
        elif not announced:
            logger.info("waiting for another process that compiles in %s", mark.parent)
            announced = True
        time.sleep(0.1)


def _age(path: Path) -> float | None:
    """Seconds since the file was written; None where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def fault(folder: Path) -> str:
    """Why libraries cannot be compiled to a folder, which need not be there yet, and loaded from it; empty:
    they can."""
    if "~" in folder.parts:
        return f"{folder}: the user of this process has no home folder, and HOME is not set"
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return f"{there}: nothing can be written there ({error.strerror})"
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        return f"{there}: it is mounted so that nothing can be run from there (noexec)"
    return ""


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if _is_there(folder))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # nothing below a folder that must not be looked into can be seen
        return False
