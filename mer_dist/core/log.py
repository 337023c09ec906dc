"""One line format for every stage: on the terminal, in a plain log file, and as JSON lines.

A bar with rate and time left is drawn where the output is a terminal; elsewhere, and always in
the log file, the same facts come as a plain line every few seconds.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

logger = logging.getLogger("mer_dist")
Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
#: After which a command that shows no progress says what it is at.
SECONDS_OF_SILENCE = 5.0
#: To the beginning of the row, and away with what is on it.
CLEAR_ROW = "\r\x1b[K"
#: The bars that this process draws now.
_bars: list[Progress] = []


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "rank": getattr(record, "rank", 0),
            "stage": getattr(record, "stage", ""),
            "message": record.getMessage(),
        }
        return json.dumps(row, ensure_ascii=False)


class _Context(logging.Filter):
    def __init__(self, stage: str, rank: int):
        super().__init__()
        self.stage, self.rank = stage, rank

    def filter(self, record: logging.LogRecord) -> bool:
        record.stage, record.rank = self.stage, self.rank
        return True


class _File(logging.FileHandler):
    """A full disk must not bury the line that says so, which the terminal has too, under tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Terminal(logging.StreamHandler):
    """A row of its own for each line, whether or not a bar is drawn, by this process or another."""

    def __init__(self):
        super().__init__(sys.stderr)
        self.console = Console(stderr=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if _bars:
                # It takes the bar away, prints the line, and draws the bar again below.
                _bars[-1].console.print(Text(self.format(record)), soft_wrap=True)
                return
            if self.console.is_terminal and not self.console.is_dumb_terminal:
                # The bar may be that of rank 0 or of a launched stage, which draws it again by itself.
                self.stream.write(CLEAR_ROW)
        except Exception:
            # A terminal that is gone ends no work, as with every handler.
            self.handleError(record)
        else:
            super().emit(record)


def _quiet_libraries() -> None:
    """Keep two notes of libraries, which every process of a job would repeat, off the terminal.

    That their own calls to each other are to change is nothing that a user could mend. bitsandbytes says on
    some processors that it works without a package that is not asked for.
    """
    for library in ("torch", "transformers", "deepspeed", "accelerate", "peft", "bitsandbytes"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}(\.|$)")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_note_on_kernels)


def _is_no_note_on_kernels(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


def setup(stage: str, log_file: Path | None = None, rank: int = 0) -> None:
    """Send log lines of ``stage`` to standard error and, with ``log_file``, to it and a .jsonl.

    Ranks other than 0 are silent on the terminal below WARNING; their files are complete.
    """
    _quiet_libraries()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(stage)s[%(rank)d] %(message)s", "%H:%M:%S")
    terminal = _Terminal()
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handlers: list[tuple[logging.Handler, logging.Formatter]] = [(terminal, plain)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append((_File(log_file, encoding="utf-8"), plain))
        handlers.append((_File(log_file.with_suffix(".jsonl"), encoding="utf-8"), _JsonLines()))
    logger.handlers.clear()
    for handler, formatter in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(_Context(stage, rank))
        logger.addHandler(handler)


@contextmanager
def announce_if_long(what: str) -> Iterator[None]:
    """One line that says ``what`` is under way, if it takes longer than a reader waits without a word."""
    timer = threading.Timer(SECONDS_OF_SILENCE, logger.info, ("%s ...", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed or 0:.1f} {task.fields['unit']}/s")


def _draws(console: Console) -> bool:
    """One bar on a terminal: of several ranks, that of rank 0."""
    of_others = any(
        isinstance(part, _Context) and part.rank for handler in logger.handlers for part in handler.filters
    )
    return console.is_terminal and not console.is_dumb_terminal and not of_others


@contextmanager
def _drawn(bar: Progress) -> Iterator[Progress]:
    with bar:
        if not bar.disable:
            _bars.append(bar)
        try:
            yield bar
        finally:
            if bar in _bars:
                _bars.remove(bar)


def progress(items: Iterable[Item], total: int, what: str, unit: str = "clips") -> Iterator[Item]:
    """Pass ``items`` through and show how many of ``total`` are done, the rate and the time left."""
    started = last_line = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with _drawn(Progress(*columns, console=console, transient=True, disable=not _draws(console))) as bar:
        task = bar.add_task(what, total=total, unit=unit)
        count = 0
        for count, item in enumerate(items, start=1):
            yield item
            bar.advance(task)
            now = time.monotonic()
            if now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                rate = count / (now - started)
                left = (total - count) / rate
                logger.info("%s: %d/%d, %.1f %s/s, %.0f s left", what, count, total, rate, unit, left)
    seconds = max(time.monotonic() - started, 1e-9)
    logger.info("%s: %d %s in %.1f s (%.1f/s)", what, count, unit, seconds, count / seconds)
