"""Damaged checkpoints and fine-tuned copies: passed over or named, and never another result."""

from __future__ import annotations

import shutil

import pytest
from conftest import cases

from fuzz import tuned_run
from fuzz.sandbox import Broken

#: Mutations of one test.
EACH = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory, sandbox):
    folder = tmp_path_factory.mktemp("base")
    sandbox.call(tuned_run.build, folder, seconds=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=1, long=30))
@pytest.mark.parametrize("kind", [*tuned_run.UNDERWAY, "copy"])
def test_a_damaged_file_of_a_training_is_passed_over_or_named(base, tmp_path, sandbox, count, kind, seed):
    outcomes, broken = [], []
    for number in range(EACH):
        name, folder = f"{kind} {seed} {number}", tmp_path / str(number)
        act, which = (tuned_run.use, ()) if kind == "copy" else (tuned_run.go_on, (kind,))
        try:
            _, outcome = sandbox.call(act, base, folder, *which, name, seconds=120)
            outcomes.append(outcome)
        except Broken as error:
            broken.append(f"{name}\n{error}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not broken, "\n".join(broken)
    count({"pt": "checkpoint", "best": "best epoch"}.get(kind, kind), outcomes)
