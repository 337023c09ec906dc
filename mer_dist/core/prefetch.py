"""Work done in threads ahead of its use, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
#: More threads decode no faster: their Python code runs one thread at a time.
MOST_LOADERS = 4


def loaders(here: int) -> int:
    """Threads that read and decode in one of ``here`` processes beside a GPU: its share of the CPU cores,
    less one that drives the GPU."""
    return max(1, min(MOST_LOADERS, len(os.sched_getaffinity(0)) // here - 1))


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2, threads: int = 1
) -> Generator[Result, None, None]:
    """``map(function, items)`` that computes the next ``ahead`` results while one is used."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
