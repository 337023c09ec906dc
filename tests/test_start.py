"""What a command imports before it works: a question to a run must not wait for torch."""

from __future__ import annotations

from pathlib import Path

import fusion_run
import pytest
from imported import heavy

from mer_dist.stages.fuse import fuse
from mer_dist.storage.run_folder import Run


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> Path:
    """The folder of a run that is done."""
    config, _ = fusion_run.make(tmp_path_factory.mktemp("start"), epochs=1)
    fuse(config)
    return Path(config.run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("status", ["fuse"]),
        ("verify", []),
        ("explain", [fusion_run.names(1)[0]]),
        ("quarantine", []),
        ("score", []),
        ("report", []),
    ],
)
def test_a_question_to_a_run_imports_nothing_that_computes(fused, command, more):
    # The run was fused in this process, without a command that would leave its code.
    assert heavy(command, fused, *more, code=1 if command == "status" else 0) == set()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["keys", "fuse"]])
def test_help_and_the_reference_of_keys_import_nothing_that_computes(words):
    assert heavy(*words) == set()


@pytest.mark.slow
def test_a_fusion_that_is_done_says_so_without_torch(fused):
    assert heavy("fuse", Run(fused).config) == set()
