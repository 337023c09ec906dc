import errno
import io
import json
import logging
import os
import pty
import re
import sys
import threading
import time
import warnings
from contextlib import suppress

import pytest

from mer_dist.core import log


def test_a_line_goes_to_the_terminal_the_file_and_the_json_lines(tmp_path, capsys):
    log.setup("extract", tmp_path / "logs" / "extract.0.log")
    log.logger.info("shard %05d 完", 3)
    assert "extract[0] shard 00003 完" in capsys.readouterr().err
    assert "extract[0] shard 00003 完" in (tmp_path / "logs/extract.0.log").read_text("utf-8")
    (line,) = (tmp_path / "logs/extract.0.jsonl").read_text("utf-8").splitlines()
    row = json.loads(line)
    assert (row["stage"], row["rank"], row["message"]) == ("extract", 0, "shard 00003 完")


def test_other_ranks_keep_the_terminal_quiet_but_their_files_complete(tmp_path, capsys):
    log.setup("finetune", tmp_path / "finetune.1.log", rank=1)
    log.logger.info("quiet")
    log.logger.warning("loud")
    terminal = capsys.readouterr().err
    assert "quiet" not in terminal and "finetune[1] loud" in terminal
    assert "quiet" in (tmp_path / "finetune.1.log").read_text()


def test_a_second_setup_does_not_double_the_lines(tmp_path, capsys):
    log.setup("shard")
    log.setup("fuse")
    log.logger.info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_progress_passes_everything_through_and_states_rate_and_total(capsys, monkeypatch):
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", 0.0)
    log.setup("shard")
    assert list(log.progress(iter("abc"), 3, "decode")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert "decode: 2/3" in lines[1] and "clips/s" in lines[1] and "s left" in lines[1]
    assert "decode: 3 clips in" in lines[-1]


def test_progress_over_nothing_says_zero(capsys):
    log.setup("shard")
    assert list(log.progress([], 0, "decode")) == []
    assert "decode: 0 clips" in capsys.readouterr().err


@pytest.fixture
def shown(monkeypatch):
    """Calls a function with standard error on a terminal, and gives the rows of this, without times."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def of(act):
        ours, theirs = pty.openpty()
        parts: list[bytes] = []
        # A terminal holds 4 KiB that nobody has read; a bar on a busy machine is drawn more often than that.
        reader = threading.Thread(target=_read_all, args=(ours, parts))
        reader.start()
        with os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            act()
            log.logger.handlers.clear()
        reader.join()
        os.close(ours)
        written = b"".join(parts).decode("utf-8", errors="replace")
        return [re.sub(r"^[\d:]+ ", "", row) for row in rows(written) if row]

    return of


def _read_all(handle: int, parts: list[bytes]) -> None:
    """Until the other end is closed, which Linux tells by an error."""
    with suppress(OSError):
        while part := os.read(handle, 2**16):
            parts.append(part)


def rows(written: str) -> list[str]:
    """What a terminal makes of it: of the codes only those that move the cursor or clear a row."""
    shown, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[\r\n]|[^\r\n\x1b]+", written):
        if code == "\r":
            column = 0
        elif code == "\n":
            row += 1
            shown += [""] * (row >= len(shown))
        elif code.startswith("\x1b"):
            row -= int(code[2:-1] or 1) if code[-1] == "A" else 0
            if code[-1] == "K":
                shown[row] = "" if code[2:-1] == "2" else shown[row][:column]
        else:
            shown[row] = shown[row][:column].ljust(column) + code + shown[row][column + len(code) :]
            column += len(code)
    return shown


def test_a_line_has_a_row_of_its_own_while_a_bar_is_drawn(shown):
    def act():
        log.setup("extract")
        for number in log.progress(range(12), 12, "clip"):
            time.sleep(0.05)
            if number % 4 == 3:
                log.logger.warning("line %d", number)
            if number == 6:
                print("a library's line", file=sys.stderr)

    lines = shown(act)
    assert lines[:4] == [
        "W extract[0] line 3",
        "a library's line",
        "W extract[0] line 7",
        "W extract[0] line 11",
    ]
    assert lines[4].startswith("I extract[0] clip: 12 clips in") and len(lines) == 5


def test_other_ranks_draw_no_bar_and_clear_the_row_of_the_one_that_is_drawn(shown):
    def act():
        log.setup("extract", rank=1)
        sys.stderr.write("clip ━━━━━━ 3/40 of rank 0")
        for _ in log.progress(range(3), 3, "clip"):
            time.sleep(0.15)
            log.logger.warning("line")

    assert shown(act) == ["W extract[1] line"] * 3


def test_a_line_in_a_file_or_a_pipe_has_no_codes(tmp_path, capsys):
    log.setup("extract", tmp_path / "extract.0.log")
    for _ in log.progress(range(3), 3, "clip"):
        log.logger.warning("line")
    assert "\x1b" not in capsys.readouterr().err + (tmp_path / "extract.0.log").read_text("utf-8")


def test_two_notes_of_libraries_are_silent_and_nothing_else():
    note = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        log.setup("finetune")
        for module, category in (
            ("torch.library", FutureWarning),
            ("bitsandbytes.functional", FutureWarning),
            ("torch.library", UserWarning),
            ("mer_dist.fusion.linear_probe", FutureWarning),
            ("torchlike", FutureWarning),
        ):
            warnings.warn_explicit(module, category, "file.py", 1, module)
    assert [(str(item.message), item.category) for item in told] == [
        ("torch.library", UserWarning),
        ("mer_dist.fusion.linear_probe", FutureWarning),
        ("torchlike", FutureWarning),
    ]
    # Asked of the logger's filters alone: what level it has is up to whatever else ran in this process.
    library = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def passes(message: str, *args) -> bool:
        return bool(
            library.filter(
                library.makeRecord(library.name, logging.WARNING, "file.py", 1, message, args, None)
            )
        )

    assert not passes(note, "No module named 'kernels'")
    assert passes("another")


def test_a_terminal_that_is_gone_ends_no_work_and_the_file_has_its_line(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone())
    log.setup("extract", tmp_path / "extract.0.log")
    log.logger.warning("shard 00003")
    assert "shard 00003" in (tmp_path / "extract.0.log").read_text("utf-8")


def test_what_takes_longer_than_a_reader_waits_is_told_once_and_what_is_quick_is_not(capsys, monkeypatch):
    log.setup("plan")
    monkeypatch.setattr(log, "SECONDS_OF_SILENCE", 0.05)
    with log.announce_if_long("tracing clip"):
        time.sleep(0.3)
    monkeypatch.setattr(log, "SECONDS_OF_SILENCE", 5.0)
    with log.announce_if_long("counting clips"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("plan[0] tracing clip ...")
