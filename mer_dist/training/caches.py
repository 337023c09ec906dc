"""Where libraries keep what they compile: below HOME, or below the run folder if HOME is unusable. No
process waits for a killed compiler."""

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
    """Environment variable -> the folder to which its library compiles now.

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
    """Let libraries compile to folders below ``instead`` if their own are unusable.

    Call before the libraries are imported.
    """
    unfit = {name: why for name, folder in folders().items() if (why := fault(folder))}
    for name in unfit:
        os.environ[name] = str(instead / name.lower().removesuffix("_dir"))
    if "TORCH_EXTENSIONS_DIR" in unfit and process_info().local_rank == 0:
        logger.warning("%s; what DeepSpeed compiles is kept in %s", unfit["TORCH_EXTENSIONS_DIR"], instead)


def compile_communication() -> None:
    """Let DeepSpeed compile and load its communication between processes on CPUs, one process at a time.

    torch writes a lock file while it compiles, and waits for ever for one that a killed compiler left. Here
    a system lock is held as well, which ends with its process: the next holder removes the lock file of a
    process that did not finish.
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
    """Exclusive access to the build folders of this name, without the lock file of a killed process.

    Processes without our lock (other programs with DeepSpeed) are waited for as in torch, until their
    lock file is older than any compilation.
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
        for lock in root.glob(f"**/{name}/lock"):
            _wait_for(lock, 0 if unfinished else LONGEST)
        file.write("compiling")
        file.flush()
        yield
        file.truncate(0)


def _wait_for(lock: Path, seconds: float) -> None:
    """Wait until torch's lock file is gone, or so many ``seconds`` old: then remove it."""
    announced = False
    while (age := _age(lock)) is not None:
        if age >= seconds:
            logger.warning("%s is of a compilation that was killed; it is removed", lock)
            lock.unlink(missing_ok=True)
        elif not announced:
            logger.info("waiting for another process that compiles in %s", lock.parent)
            announced = True
        time.sleep(0.1)


def _age(path: Path) -> float | None:
    """Seconds since the file was written; None if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def fault(folder: Path) -> str:
    """Why libraries cannot be compiled to a folder, which need not exist yet, and loaded from it; empty if
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
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if _is_there(folder))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # below a folder without read permission nothing is visible
        return False
