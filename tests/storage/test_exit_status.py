"""The code that a stage leaves: the worst of its ranks, and one line where something else is in its file."""

from __future__ import annotations

import fusion_run
import pytest
from conftest import cases
from fuzz.mutations import mutate

from mer_dist import cli
from mer_dist.core.errors import DONE, FAILED, GRAVITY, QUARANTINED, REQUEUE, USAGE, UserError
from mer_dist.stages import run as whole
from mer_dist.storage import exit_status, files
from mer_dist.storage.lock import held
from mer_dist.storage.run_folder import Run

#: No code of a stage, whatever it looks like.
DAMAGED = (
    "",
    "{",
    "[]",
    "0",
    "null",
    "{}",
    '{"code": "0"}',
    '{"code": true}',
    '{"code": 0.0}',
    '{"code": 64}',
    '{"code": -1}',
    '{"code": [0]}',
    '{"code": null}',
    '{"code": "--all"}',
    "[" * 9000,
    "\0",
    "\ud800",
)


@pytest.fixture
def path(tmp_path):
    path = Run(tmp_path).status("finetune")
    path.parent.mkdir()
    return path


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_status_is_one_line_and_code_2_and_no_hindrance_to_the_next_code(path, capsys, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert cli.main(["status", str(path.parent.parent), "finetune"]) == USAGE
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(path) in said.err
    assert exit_status.leave(path, QUARANTINED) == QUARANTINED
    assert files.read_json(path) == {"code": QUARANTINED}


@pytest.mark.parametrize("seed", cases(short=4, long=40))
def test_a_status_with_any_damage_gives_a_code_or_one_line(path, seed):
    files.write_json(path, {"code": REQUEUE})
    whole, outcomes = path.read_bytes(), []
    for number in range(25):
        _, content = mutate(whole, ".json", f"{seed} {number}")
        path.write_bytes(content)
        try:
            code = exit_status.read(path)
            assert code in GRAVITY
            outcomes.append("harmless")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            outcomes.append("message")
    assert outcomes.count("message") > 12


def test_a_stage_that_left_no_status_has_failed(path):
    assert exit_status.read(path) is None
    assert cli.main(["status", str(path.parent.parent), "finetune"]) == FAILED


def test_of_the_codes_of_several_ranks_the_worst_stays(path):
    for code in (DONE, REQUEUE, QUARANTINED):
        assert exit_status.leave(path, code) == code
    assert cli.main(["status", str(path.parent.parent), "finetune"]) == REQUEUE


@pytest.mark.slow
def test_a_stage_that_nobody_launched_leaves_its_code_and_one_that_was_refused_does_not(tmp_path, capsys):
    config, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    job, run = str(tmp_path / "job.yaml"), str(tmp_path / "run")
    assert cli.main(["finetune", job]) == cli.main(["status", run, "finetune"]) == DONE
    assert cli.main(["finetune", job, "folds.count=2"]) == DONE
    assert cli.main(["extract", job]) == cli.main(["status", run, "extract"]) == USAGE
    with held(Run(run).lock, "extract"):
        assert cli.main(["finetune", job]) == USAGE
    assert cli.main(["status", run, "finetune"]) == DONE, "the code of the one that ran"
    capsys.readouterr()
    assert cli.main(["status", run, "shard"]) == FAILED
    assert "shard was not started here yet" in capsys.readouterr().err


def test_the_stages_of_a_run_leave_their_codes_too(tmp_path):
    config, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    assert whole._here("finetune", config) == DONE
    assert exit_status.read(Run(config.run.folder).status("finetune")) == DONE
    with pytest.raises(UserError):
        whole._here("shard", config)
    assert exit_status.read(Run(config.run.folder).status("shard")) == USAGE


def test_a_code_of_a_faster_rank_of_the_same_start_is_not_forgotten(tmp_path):
    path = tmp_path / "status" / "extract.json"
    exit_status.forget(path, 0.0)
    exit_status.leave(path, 2)
    left = path.stat().st_mtime
    exit_status.forget(path, left - 1)
    assert exit_status.read(path) == 2
    exit_status.forget(path, left + 1)
    assert exit_status.read(path) is None
