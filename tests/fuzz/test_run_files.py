"""Damaged files of a run: a line that names the file, or the file made again, and no clip lost."""

from __future__ import annotations

import shutil

import pytest
from conftest import ROOT, cases

from fuzz import whole_run
from fuzz.sandbox import Broken

#: Mutations of one test, read by verify, score, explain and report; every so many times by the stages, too.
EACH, STAGES_EVERY = 3, 3


@pytest.fixture(scope="module")
def base(tmp_path_factory, sandbox):
    folder = tmp_path_factory.mktemp("base")
    sandbox.call(whole_run.build, folder, seconds=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=1, long=33))
@pytest.mark.parametrize("suffix", [".tar", ".parquet", ".safetensors", ".json", ".csv"])
def test_a_damaged_file_of_a_run_is_named_or_made_again(base, tmp_path, sandbox, count, suffix, seed):
    outcomes, broken = [], []
    for number in range(EACH):
        name, folder = f"{suffix} {seed} {number}", tmp_path / str(number)
        try:
            what, outcome = sandbox.call(
                whole_run.attack, base, folder, suffix, name, number % STAGES_EVERY == 0, seconds=120
            )
            outcomes.append(outcome)
        except Broken as error:
            broken.append(f"{name}\n{error}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not broken, "\n".join(broken)
    count(suffix[1:], outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=1, long=20))
def test_a_damaged_configuration_is_refused_by_its_file(tmp_path, sandbox, count, seed):
    outcomes, broken = [], []
    sources = sorted((ROOT / "configs").glob("*.yaml"))
    for number in range(5):
        try:
            _, outcome = sandbox.call(
                whole_run.yaml,
                sources[number % len(sources)],
                tmp_path / str(number),
                ".yaml",
                f"{seed} {number}",
                seconds=20,
            )
            outcomes.append(outcome)
        except Broken as error:
            broken.append(f"{seed} {number}\n{error}")
    assert not broken, "\n".join(broken)
    count("yaml", outcomes)
