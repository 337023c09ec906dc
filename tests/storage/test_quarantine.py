import csv
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_dist.cli import main, quarantined
from mer_dist.config.config import Config
from mer_dist.config.sections import RunConfig
from mer_dist.core.errors import DONE, QUARANTINED
from mer_dist.core.records import Modality, Problem
from mer_dist.inspect import problems
from mer_dist.stages import run as whole
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run


def problem(stage, name, lost="clip", reason="torn", part="") -> Problem:
    return Problem(stage=stage, name=name, lost=lost, reason=reason, part=part)


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


def test_a_file_of_an_earlier_version_has_rows_without_a_part(tmp_path):
    path = tmp_path / "quarantine.parquet"
    old = {"stage": "fuse", "name": "a", "lost": "text", "reason": "features line: torn"}
    pq.write_table(pa.Table.from_pylist([old]), path)
    assert quarantine.read(path) == [Problem(**old, part="")]
    quarantine.replace(path, "extract", [problem("extract", "a", "text", part="line")])
    assert [row.part for row in quarantine.read(path)] == ["line", ""]
    assert pq.read_schema(path).names == ["stage", "name", "lost", "reason", "part"]


def test_a_reason_that_two_sets_share_counts_a_clip_once():
    (kind,) = quarantine.kinds([problem("extract", "a", "audio", "short", part) for part in ("one", "two")])
    assert kind.names == ["a"] and str(kind) == "1 x audio: short"


MANY = [
    *(problem("shard", f"a{number}", "audio", f"a{number}.mp4: no audio stream") for number in range(7)),
    problem("shard", "l", "text", "l.mp4: gone"),
    problem("shard", "m", "text", "m.webm: gone"),
    problem("shard", "b", "video", "/data/my clips/b 2.mp4: 3 of 25 frames are there"),
    problem("shard", "c", "video", "c.mp4: 4 of 25 frames are there"),
    problem("shard", "d", "clip", "label-disdim.csv line 12: label 'bored' is not in corpus.labels: sad"),
    problem("shard", "e", "clip", "label-disdim.csv line 4: label 'bored' is not in corpus.labels: sad"),
    problem("shard", "f", "clip", "label-disdim.csv line 5: video-labeled has no file f.mp4"),
    problem("shard", "g", "clip", "label-disdim.csv line 9: video-labeled has no file g.mp4"),
    problem("shard", "h", "clip", "nothing of it can be used: video: h.mp4: the file is empty; text: none"),
    problem("fuse", "a0", "audio", "features ep1.v2: values that are NaN", "ep1.v2"),
    problem("fuse", "k", "audio", "the decoder crashed on it or took over 600 s"),
]
COUNTED = {
    ("shard", "audio", "*.mp4: no audio stream"): 7,
    ("shard", "text", "*: gone"): 2,
    ("shard", "video", "as *.mp4: 3 of 25 frames are there"): 2,
    ("shard", "clip", "label-disdim.csv: label 'bored' is not in corpus.labels: sad"): 2,
    ("shard", "clip", "label-disdim.csv: video-labeled has no file *.mp4"): 2,
    ("shard", "clip", "nothing of it can be used: video: *.mp4: the file is empty; text: none"): 1,
    ("fuse", "audio", "features ep1.v2: values that are NaN"): 1,
    ("fuse", "audio", "the decoder crashed on it or took over 600 s"): 1,
}


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            "t.csv line 2: label '1.0' is not in corpus.labels: 0, 1",
            "t.csv line 3: label '0.0' is not in corpus.labels: 0, 1",
            "as t.csv: label '1.0' is not in corpus.labels: 0, 1",
        ),
        (
            "confidence 87: it must be in [0, 1], as 0.87 and not 87",
            "confidence 9: it must be in [0, 1], as 0.87 and not 87",
            "as confidence 87: it must be in [0, 1], as 0.87 and not 87",
        ),
        ("a.mp4: 1 of 2 s", "b.mkv: 1 of 2 s", "*: 1 of 2 s"),
        ("a.mp4: 1 of 2 s", "b.mkv: 1 of 3 s", "as *.mp4: 1 of 2 s"),
    ],
)
def test_of_reasons_that_differ_in_numbers_one_is_shown_as_it_is(one, other, told):
    (kind,) = quarantine.kinds([problem("shard", "a", reason=one), problem("shard", "b", reason=other)])
    assert (kind.reason, kind.names) == (told, ["a", "b"])


@pytest.fixture
def run(tmp_path):
    for stage in ("shard", "fuse"):
        quarantine.replace(Run(tmp_path).quarantine, stage, [row for row in MANY if row.stage == stage])
    return tmp_path


def test_problems_that_differ_in_nothing_but_the_clip_are_one_reason():
    found = quarantine.kinds(MANY)
    assert {(kind.stage, kind.lost, kind.reason): len(kind.names) for kind in found} == COUNTED
    assert [len(kind.names) for kind in found] == sorted(COUNTED.values(), reverse=True)
    assert found[0].names == [f"a{number}" for number in range(7)]


def test_a_stage_tells_its_reasons_by_count_and_where_the_rest_is(run, caplog):
    assert quarantined(Run(run), "shard") == QUARANTINED and quarantined(Run(run), "extract") == DONE
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f"16 problems in quarantine; all of them: mer-dist quarantine {run} --stage shard"
    assert told[1] == "  7 x audio: *.mp4: no audio stream" and len(told) == 1 + 6
    caplog.clear()
    many = [problem("x", f"clip{number}", reason=f"reason {'z' * number}") for number in range(12)]
    quarantine.replace(Run(run).quarantine, "x", many)
    quarantined(Run(run), "x")
    assert caplog.records[-1].getMessage() == "  and 4 rarer reasons" and len(caplog.records) == 10


def test_each_stage_of_a_whole_run_tells_them_too(run, caplog, monkeypatch):
    called = []
    monkeypatch.setattr(
        "mer_dist.stages.shard.shard", lambda config, fused, should_stop: called.append(fused)
    )
    assert whole._here("shard", Config(run=RunConfig(folder=str(run)))) == DONE
    assert called == [True] and "  7 x audio: *.mp4: no audio stream" in caplog.text


def test_the_quarantine_is_read_as_counts_rows_names_csv_and_json(run, capsys):
    def told(*options) -> str:
        assert main(["quarantine", str(run), *options]) == DONE
        return capsys.readouterr().out

    lines = told().splitlines()
    assert lines[0] == "18 problems of 17 clips"
    assert lines[1].split() == ["count", "stage", "lost", "reason"]
    assert lines[2].split(maxsplit=3) == ["7", "shard", "audio", "*.mp4: no audio stream (a0, a1, a2, …)"]
    assert "2 problems of 2 clips" in told("--stage", "fuse")
    assert told("--lost", "clip", "--reason", "no file", "--names") == "f\ng\n"
    assert told("--lost", "clip", "--reason", "No File", "--names") == "f\ng\n"
    rows = list(csv.DictReader(io.StringIO(told("--csv"))))
    assert len(rows) == 18 and rows[0] == {
        "stage": "fuse",
        "name": "a0",
        "lost": "audio",
        "reason": "features ep1.v2: values that are NaN",
        "part": "ep1.v2",
    }
    assert json.loads(told("--json", "--stage", "fuse")) == rows[:2]
    assert len(told("--rows").splitlines()) == 18


def test_a_stage_that_does_not_exist_and_a_folder_without_a_run_are_told(run, tmp_path, caplog, capsys):
    assert main(["quarantine", str(run), "--stage", "sharding"]) == 2
    assert main(["quarantine", str(tmp_path / "nowhere")]) == 2
    Run(run).quarantine.unlink()
    Run(run).config.touch()
    assert main(["quarantine", str(run)]) == 0
    assert capsys.readouterr().out == "nothing is in quarantine\n"
    assert main(["quarantine", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_reader_that_has_seen_enough_is_no_fault(monkeypatch):
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        problems.show("row\n" * 100_000)
        print("more", flush=True)
        assert os.path.samestat(os.fstat(theirs), os.stat(os.devnull)), "the rest goes nowhere"


def test_no_name_needs_a_pattern_of_its_own(monkeypatch):
    """Compiling one for each of 115,000 clips takes half a minute at the end of every stage."""
    rows = [problem("shard", f"c{number}", "video", f"/data/c{number}.mp4: gone") for number in range(700)]
    monkeypatch.setattr(quarantine.re, "compile", None)
    monkeypatch.setattr(quarantine.re, "_compile", None, raising=False)
    (kind,) = quarantine.kinds(rows)
    assert kind.reason == "*.mp4: gone" and len(kind.names) == 700


def test_a_problem_beside_a_shard_is_written_as_before_it_could_have_a_part():
    """Its bytes are in fingerprints: a key more would have every corpus sharded anew."""
    assert problem("shard", "a", Modality.TEXT).as_values() == {
        "stage": "shard",
        "name": "a",
        "lost": "text",
        "reason": "torn",
    }
    assert problem("fuse", "a", part="clip").as_values()["part"] == "clip"
