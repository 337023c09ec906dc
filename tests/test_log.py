import json

import pytest

from mer_dist import log


@pytest.fixture(autouse=True)
def _closed_handlers():
    yield
    for handler in log.logger.handlers:
        handler.close()
    log.logger.handlers.clear()


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
