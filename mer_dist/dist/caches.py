"""Where libraries keep what they compile: below HOME, or below the run folder where HOME does not serve."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mer_dist.dist.env import place
from mer_dist.log import logger


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


def settle(instead: Path) -> None:
    """Have what is compiled kept below ``instead`` wherever its own place does not serve.

    Call before the libraries are imported.
    """
    unfit = {name: why for name, folder in folders().items() if (why := fault(folder))}
    for name in unfit:
        os.environ[name] = str(instead / name.lower().removesuffix("_dir"))
    if "TORCH_EXTENSIONS_DIR" in unfit and place().local_rank == 0:
        logger.warning("%s; what DeepSpeed compiles is kept in %s", unfit["TORCH_EXTENSIONS_DIR"], instead)


def unlock(instead: Path) -> None:
    """Remove the locks that a compiler left which was killed: torch would wait for it for ever.

    Call while the run folder is locked and none of its ranks has started, so that nobody compiles there.
    """
    for lock in instead.glob("torch_extensions/*/lock"):
        lock.unlink()


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
