"""``accelerate launch`` as ``mer-dist run`` starts it: what became of the ranks in one line, in its own log.

Called as ``python -m mer_dist.processes.launcher LOG [option of accelerate launch ...]``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING

from mer_dist.core.errors import DONE, FAILED, USAGE
from mer_dist.core.log import logger, setup

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

#: Seconds within which ranks lose one another; the launcher waits longer before it kills one itself.
TOGETHER = 5


def main(arguments: list[str]) -> int:
    from accelerate.commands import launch
    from torch.distributed.elastic.agent.server import api as agent
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing import api as processes
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    log, *options = arguments
    setup("run", Path(log))
    # Of signals and failures the lines below tell, and those of the ranks.
    for module in (agent, processes):
        module.logger.setLevel(logging.CRITICAL)
    try:
        launch.launch_command(launch.launch_command_parser().parse_args(options))
    except ChildFailedError as error:
        if text := cause(error.failures):
            logger.error("%s", text)
        return FAILED
    except SignalException as error:
        logger.info("the ranks were asked to stop (%s), and have ended", Signals(error.sigval).name)
        return FAILED
    return DONE


def cause(failures: Mapping[int, ProcessFailure]) -> str:
    """One line on ranks that failed: those that were killed, or else those that ended with an error; empty
    where they only refused the input, since each has said why in a line of its own.

    Args:
        failures: rank -> how it ended, in the order in which it was noticed; also of those that ended
            because they had lost another, or that the launcher ended after the first.
    """
    first = min(failure.timestamp for failure in failures.values())
    codes = {
        rank: failure.exitcode for rank, failure in failures.items() if failure.timestamp - first < TOGETHER
    }
    # With SIGTERM the launcher ends those that are left; NCCL aborts those that have lost another.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code not in (-SIGTERM, -SIGABRT)}
    broken = [rank for rank, code in codes.items() if code > 0 or code == -SIGABRT]
    if killed:
        text = ", ".join(f"rank {rank} ended by {_name(killed[rank])}" for rank in sorted(killed))
        text += " (if nobody did so: for want of memory)" if SIGKILL in killed.values() else ""
    elif {codes[rank] for rank in broken} == {USAGE}:
        return ""
    elif broken:
        text = f"{_ranks(broken)} ended with an error, and the log of each says more"
    else:
        text = f"rank {next(iter(codes))} ended by SIGTERM, which the launcher was not sent"
    stuck = [rank for rank in failures.keys() - codes.keys() if failures[rank].exitcode == -SIGKILL]
    return f"{text}; those left were ended" + (f", {_ranks(stuck)} by force" if stuck else "")


def _ranks(ranks: Iterable[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)))
    return f"ranks {names}" if "," in names else f"rank {names}"


def _name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
