"""Work done in threads ahead of its use, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2, threads: int = 1
) -> Generator[Result, None, None]:
    """``map(function, items)`` whose next ``ahead`` results are made while one is used."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
