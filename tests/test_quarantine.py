from mer_dist import quarantine
from mer_dist.records import Problem


def problem(stage, name, lost="clip", reason="torn") -> Problem:
    return Problem(stage=stage, name=name, lost=lost, reason=reason)


def test_no_file_means_no_problems(tmp_path):
    assert quarantine.read(tmp_path / "quarantine.parquet") == []


def test_a_stage_replaces_its_own_rows_and_keeps_those_of_others(tmp_path):
    path = tmp_path / "quarantine.parquet"
    quarantine.replace(path, "shard", [problem("shard", "b"), problem("shard", "a", "audio")])
    long = problem("extract", "a", "text", "太长 <b>")
    quarantine.replace(path, "extract", [long])
    quarantine.replace(path, "shard", [problem("shard", "c")])
    assert quarantine.read(path) == [long, problem("shard", "c")]
    quarantine.replace(path, "extract", [])
    assert quarantine.read(path) == [problem("shard", "c")]


def test_rows_have_one_order_whatever_order_they_came_in(tmp_path):
    rows = [problem("shard", "b"), problem("shard", "a", "video"), problem("shard", "a", "audio")]
    quarantine.replace(tmp_path / "1", "shard", rows)
    quarantine.replace(tmp_path / "2", "shard", reversed(rows))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
