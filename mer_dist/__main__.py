"""The command as a process of its own."""

import sys

from mer_dist.cli import main
from mer_dist.processes import preempt


def process() -> None:
    code = main()
    preempt.nothing_left()
    sys.exit(code)


if __name__ == "__main__":
    process()
