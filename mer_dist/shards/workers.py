"""Worker processes with ordered results; a clip that kills one loses only itself."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import TypeVar

from mer_dist.core.log import logger

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Items queued per worker: enough that none waits, few enough that memory stays small.
AHEAD = 4
#: A decoder that takes longer for one clip counts as hung.
SECONDS = 600
#: Bytes that decoding one clip may use. A file of a few kilobytes can request any amount.
MEMORY = 4 << 30


def in_order(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    crashed: Callable[[Item], Result],
    seconds: int = SECONDS,
) -> Iterator[Result]:
    """``map(task, items)`` over processes; ``crashed(item)`` is the result where a process died.

    A killed process breaks the pool, and the clip that caused it is not known. So each clip in
    flight is tried again alone, and only a clip that kills its process again is given up. A task
    that takes longer than ``seconds`` is killed too.

    Raises:
        RuntimeError: worker processes cannot be started at all.
    """
    guarded = partial(_guarded, task, seconds)
    queue, waiting = iter(items), deque[tuple[Item, Future[Result] | None]]()
    pool = _start(workers)
    try:
        while True:
            try:
                for item in islice(queue, AHEAD * workers - len(waiting)):
                    waiting.append((item, None))
                    waiting[-1] = (item, pool.submit(guarded, item))
                if not waiting:
                    return
                future = waiting[0][1]
                assert future is not None, "None only if its submission broke the pool"
                result = future.result()
            except BrokenProcessPool:
                logger.warning("a worker process died; %d clips are tried again", len(waiting))
                pool.shutdown()
                while waiting:
                    item, future = waiting.popleft()
                    yield _settle(guarded, item, future, crashed)
                pool = _start(workers)
                continue
            waiting.popleft()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(
    task: Callable[[Item], Result],
    item: Item,
    future: Future[Result] | None,
    crashed: Callable[[Item], Result],
) -> Result:
    """The result of a future of a broken pool: its own, or that of a retry alone."""
    if future is not None and future.done() and future.exception() is None:
        return future.result()
    with _start(1) as pool:
        try:
            return pool.submit(task, item).result()
        except BrokenProcessPool:
            return crashed(item)


def _start(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork would copy threads and locks of OpenCV and PyAV midway.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_initialize)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        pool.shutdown()
        raise RuntimeError("worker processes cannot be started; see their output above") from None
    return pool


def _initialize() -> None:
    """Set up a worker: one thread, bounded memory, an end when the parent ends. It ignores signals meant for
    the parent: Ctrl-C, and those with which Slurm warns every process of a job. SIGTERM works: the pool ends
    the other workers with it when one has died."""
    import cv2

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if most < 0 else min(MEMORY, most), most))
    cv2.setNumThreads(1)
    for name in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called only in a worker"
    parent.join()
    os._exit(1)


def _guarded(task: Callable[[Item], Result], seconds: int, item: Item) -> Result:
    # The default action of SIGALRM kills the process, even inside a library that never returns.
    signal.alarm(seconds)
    try:
        return task(item)
    finally:
        signal.alarm(0)
