"""What several tests share: the reference data beside the checkout, and skips that CI refuses."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import forks
import long_suite
import pytest
from costs import Costs
from long_suite import cases  # noqa: F401  (for the tests)

from mer_dist.core.log import logger

ROOT = Path(__file__).resolve().parent.parent
#: What may be said to the process of the tests.
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
_ACTIONS = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out what starts processes that compute, and the tests marked slow",
    )
    parser.addoption("--costs", type=Path, help="append what each test costs to this file (tests/costs.py)")
    long_suite.addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--costs"):
        config.pluginmanager.register(Costs(path.resolve()), "costs")
    if config.getoption("--long"):
        config.pluginmanager.register(long_suite.Slice(config), "slice")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long_suite.select(config, items)
    if config.getoption("--fast"):
        slow = [item for item in items if _is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not _is_slow(item)]
    # Those take longest, so that they begin first.
    items.sort(key=lambda item: FIRST.get(group(item.nodeid), len(FIRST)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--fast`` what would be left out whole is not even imported."""
    if not config.getoption("--fast") or not collection_path.is_relative_to(ROOT):
        return None
    text = collection_path.read_text("utf-8") if collection_path.suffix == ".py" else ""
    whole = re.search(r"^pytestmark = .*\b(slow|processes)\b", text, re.MULTILINE)
    return bool(whole) or collection_path.relative_to(ROOT).as_posix().startswith(RANKS + CLUSTER) or None


def _is_slow(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("slow") or item.get_closest_marker("processes")
    return bool(marked) or group(item.nodeid) in FIRST


#: Files, and tests, that start several processes that compute. One worker takes them all: two such tests at once
#: would be four processes on two cores, each of which waits busily for its peer.
RANKS = (
    "tests/training/test_resume.py",
    "tests/training/test_zero3.py",
    "tests/test_whole_job.py",
    "tests/stages/test_extract.py::test_two_processes",
    *(f"tests/stages/test_{name}.py" for name in ("finetune_kills", "kills", "disk", "finetune")),
    "tests/interop/test_export.py",
)


#: On a local Slurm, where most of the time is waiting for its daemons: a worker of its own beside the other two.
CLUSTER = ("tests/slurm/test_cluster.py", "tests/slurm/test_whole_demo.py")
#: The groups that begin first, in this order.
FIRST = {"cluster": 0, "ranks": 1}


def group(nodeid: str) -> str:
    """Tests of one group run in one worker: those of :data:`CLUSTER`, of :data:`RANKS`, else those of a file."""
    file = nodeid.partition("::")[0]
    return "cluster" if nodeid.startswith(CLUSTER) else "ranks" if nodeid.startswith(RANKS) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        # pytest-xdist's own way, the mark xdist_group, does nothing under this pytest.
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return Groups(config, log)


_SERVER = pytest.StashKey[forks.Server]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not item.nodeid.startswith(RANKS):
        return (yield)
    stash = item.config.stash
    if _SERVER not in stash:
        said = item.config._tmp_path_factory.getbasetemp() / "forks"
        stash[_SERVER] = forks.Server(said, _environment)
    with stash[_SERVER].forking():
        return (yield)


def _environment() -> dict[str, str]:
    from mer_dist.processes import env

    return env.for_children(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SERVER in config.stash:
        config.stash[_SERVER].close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_ACTIONS] = {number: signal.getsignal(number) for number in SIGNALS}
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail the test that leaves the process another reaction to a signal, fixtures included: SIGTERM would
    no longer end the suite, and what a later test sends to itself would be lost."""
    result = yield
    _close_log()
    if left := taken_back(item.stash[_ACTIONS]):
        pytest.fail(f"left in the process of the tests: {', '.join(left)}")
    return result


def _close_log() -> None:
    """The log as it is before a command sets it up: a handler would write to the last test's streams, and a
    logger that does not propagate is given pytest's handler a second time."""
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def taken_back(actions: dict[int, object]) -> list[str]:
    """Give signals the actions that they had, and say which had others."""
    left = []
    for number, action in actions.items():
        if (found := signal.getsignal(number)) is not action:
            left.append(f"{signal.Signals(number).name} -> {found}")
            signal.signal(number, action)
    return left


def skip(reason: str) -> None:
    """Skip with a reason; under ``CI=true`` everything is meant to be there, so it is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"must not be skipped under CI: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        skip(f"no reference data at {folder}")
    return folder


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    """The programs in benchmarks/ can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the stages do it: several threads on small products mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[..., None]]:
    """A file system of its own at ``tmp_path/run``: call it with mount options, first of all its size."""
    folder = tmp_path / "run"
    folder.mkdir()

    def mount(*options: str) -> None:
        again = ["remount"] if os.path.ismount(folder) else []
        told = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join([*again, *options]), "tmpfs", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            skip(f"a file system cannot be mounted here: {told.stderr.strip()}")

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def full(disk, tmp_path) -> Path:
    """``tmp_path/run`` on a file system in which not a byte is left."""
    disk("size=64k")
    # Without a buffer, so that every block is taken that there is.
    with suppress(OSError), open(tmp_path / "run" / "filling", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return tmp_path / "run"
