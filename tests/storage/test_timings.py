"""What the work took, read back from what every start and rank noted."""

from types import SimpleNamespace

import pytest

from mer_dist.core.errors import mending
from mer_dist.storage import timings
from mer_dist.storage.run_folder import Run


def test_ranks_side_by_side_count_once_and_starts_one_after_the_other_add_up(tmp_path, monkeypatch):
    run = Run(tmp_path)
    for rank, ended, seconds in ((0, 110.0, 10), (1, 112.0, 10), (0, 500.0, 4)):
        monkeypatch.setattr(timings.time, "time", lambda ended=ended: ended)
        timings.note(run, "extract", run.features("clip"), seconds=seconds, clips=8, rank=rank, piece="00001")
    told = timings.by_part(run)
    assert told.keys() == {"features/clip"}
    # 100 to 112, of which both worked from 102 to 110, and 496 to 500.
    assert told["features/clip"].seconds == pytest.approx(16) and told["features/clip"].clips == 24
    assert told["features/clip"].ended == "1970-01-01T00:08:20+00:00"


def test_a_block_is_noted_when_it_ends_and_one_that_raises_is_not(tmp_path, monkeypatch):
    run, clock = Run(tmp_path), iter([100.0, 102.5, 200.0])
    # Not time's own, which pytest's plugins read, too.
    monkeypatch.setattr(timings, "time", SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 1000.0))
    with timings.record(run, "extract", run.features("clip"), clips=8, piece="load", rank=3):
        assert timings.read(run) == []
    with pytest.raises(KeyError), timings.record(run, "extract", run.features("clip"), clips=8):
        raise KeyError
    assert timings.read(run) == [
        timings.Spent(
            stage="extract", part="features/clip", piece="load", rank=3, ended=1000.0, seconds=2.5, clips=8
        )
    ]


def test_a_torn_line_costs_itself_alone(tmp_path):
    run = Run(tmp_path)
    timings.note(run, "fuse", run.vote.folder, seconds=1, clips=5)
    with open(run.timings("fuse", 0), "a", encoding="utf-8") as file:
        file.write('\n{"stage": "fuse", "par')
    timings.note(run, "fuse", run.vote.folder, seconds=2, clips=5)
    assert [spent.seconds for spent in timings.read(run)] == [1, 2]


def test_a_full_disk_is_told_with_the_name_of_the_file(full):
    run = Run(full)
    with pytest.raises(OSError) as told:
        timings.note(run, "extract", run.features("clip"), seconds=1, clips=5)
    assert f"{run.timings('extract', 0)}: No space left on device" in mending(told.value)


def test_a_run_of_which_nothing_was_noted_has_no_times(tmp_path):
    assert timings.by_part(Run(tmp_path)) == {}
