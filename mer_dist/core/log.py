"""One line format for every stage: on the terminal, in a plain log file, and as JSON lines.

On a terminal, a bar shows rate and time left; elsewhere, and always in the log file, the same facts
are logged as a plain line every few seconds.
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
#: After which a command without progress logs what it is doing.
SECONDS_OF_SILENCE = 5.0
#: Move to the start of the row and clear it.
CLEAR_ROW = "\r\x1b[K"
#: The bars that this process is drawing.
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
    """Tracebacks of a full disk must not bury the line that reports it, which the terminal shows too."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Terminal(logging.StreamHandler):
    """Prints each line on its own row, even if this or another process draws a bar."""

    def __init__(self):
        super().__init__(sys.stderr)
        self.console = Console(stderr=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if _bars:
                # This removes the bar, prints the line, and redraws the bar below.
                _bars[-1].console.print(Text(self.format(record)), soft_wrap=True)
                return
            if self.console.is_terminal and not self.console.is_dumb_terminal:
                # The bar may belong to rank 0 or a launched stage, which redraws it by itself.
                self.stream.write(CLEAR_ROW)
        except Exception:
            # A closed terminal does not end the work, as with every handler.
            self.handleError(record)
        else:
            super().emit(record)


def _quiet_libraries() -> None:
    """Keep two library warnings, which every process of a job would repeat, off the terminal.

    A user cannot fix deprecated calls between libraries. On some processors bitsandbytes reports that it
    works without an optional package.
    """
    for library in ("torch", "transformers", "deepspeed", "accelerate", "peft", "bitsandbytes"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}(\.|$)")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_note_on_kernels)


def _is_no_note_on_kernels(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


def setup(stage: str, log_file: Path | None = None, rank: int = 0) -> None:
    """Send log lines of ``stage`` to standard error and, if set, to ``log_file`` and a .jsonl beside it.

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
    """Log that ``what`` is in progress if it takes longer than :data:`SECONDS_OF_SILENCE`."""
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
    """Whether to draw a bar: only on a terminal, and only on rank 0."""
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
