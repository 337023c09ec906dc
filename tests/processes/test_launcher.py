"""What the launcher says of the ranks that it has lost."""

from signal import SIGABRT, SIGKILL, SIGSEGV, SIGTERM
from types import SimpleNamespace

import pytest

from mer_dist.processes.launcher import cause


@pytest.mark.parametrize(
    "ends, told",
    [
        # rank -> (exit status, second at which it was noticed), the first one first
        ({1: (-SIGKILL, 10), 0: (1, 11)}, "rank 1 ended by SIGKILL (if nobody did so: for want of memory);"),
        ({0: (1, 10), 1: (-SIGKILL, 10)}, "rank 1 ended by SIGKILL"),
        ({2: (-SIGSEGV, 10), 0: (-SIGTERM, 11)}, "rank 2 ended by SIGSEGV; those left were ended"),
        ({1: (-SIGSEGV, 10), 0: (-SIGKILL, 10)}, "rank 0 ended by SIGKILL, rank 1 ended by SIGSEGV"),
        ({3: (-64, 10)}, "rank 3 ended by SIGRTMAX;"),
        ({3: (-99, 10)}, "rank 3 ended by signal 99;"),
        (
            {0: (1, 10), 1: (-SIGKILL, 40)},
            (
                "rank 0 ended with an error, and the log of each says more; those left "
                "were ended, rank 1 by force"
            ),
        ),
        (
            {0: (1, 10), 1: (1, 40)},
            "rank 0 ended with an error, and the log of each says more; those left were ended$",
        ),
        ({2: (1, 10), 1: (1, 10), 0: (-SIGTERM, 11)}, "ranks 1, 2 ended with an error"),
        ({0: (1, 10), 1: (-SIGABRT, 10)}, "ranks 0, 1 ended with an error"),
        ({1: (-SIGTERM, 10), 0: (-SIGTERM, 10)}, "rank 1 ended by SIGTERM, which"),
    ],
)
def test_the_rank_that_others_lost_is_named_with_its_end(ends, told):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=when) for rank, (code, when) in ends.items()}
    assert f"{cause(failures)}$".startswith(told)


@pytest.mark.parametrize("ends", [{0: (2, 10)}, {1: (2, 10), 0: (-SIGTERM, 11)}, {0: (2, 10), 1: (2, 10)}])
def test_ranks_that_refuse_their_input_have_said_why(ends):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=when) for rank, (code, when) in ends.items()}
    assert cause(failures) == ""
