"""``accelerate launch`` as ``mer-dist run`` starts it: what became of the ranks in one line, in its own log.

Called as ``python -m mer_dist.dist.launcher LOG [option of accelerate launch ...]``.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mer_dist.errors import DONE, FAILED
from mer_dist.log import logger, setup

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
    # What these say of signals and failures is in the lines below and in those of the ranks.
    for module in (agent, processes):
        module.logger.setLevel(logging.CRITICAL)
    try:
        launch.launch_command(launch.launch_command_parser().parse_args(options))
    except ChildFailedError as error:
        logger.error("%s", cause(error.failures))
        return FAILED
    except SignalException as error:
        logger.info("the ranks were asked to stop (%s), and have ended", signal.Signals(error.sigval).name)
        return FAILED
    return DONE


def cause(failures: Mapping[int, ProcessFailure]) -> str:
    """One line on ranks that failed: those that were killed, or else those that broke down.

    Args:
        failures: rank -> how it ended, also of those that ended because they had lost another, or that
            the launcher ended after the first.
    """
    first = min(failure.timestamp for failure in failures.values())
    codes = {rank: failure.exitcode for rank, failure in failures.items()
             if failure.timestamp - first < TOGETHER}
    # The launcher ends with SIGTERM those that are left.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        names = ", ".join(sorted({_name(number) for number in killed.values()}))
        memory = " (if nobody did so: for want of memory)" if signal.SIGKILL in killed.values() else ""
        return f"{_ranks(killed)} ended by {names}{memory}, and so the others were ended"
    broken = [rank for rank, code in codes.items() if code > 0]
    if broken:
        return f"{_ranks(broken)} broke down, and so the others were ended; the log of each says more"
    return f"{_ranks(codes)} ended by SIGTERM, which the launcher was not sent"


def _ranks(ranks: Iterable[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)))
    return f"ranks {names}" if "," in names else f"rank {names}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
