"""A stage that is called from Python gives torch's threads back."""

from __future__ import annotations

import fusion_run
import pytest
import torch

from mer_dist.core.errors import UserError
from mer_dist.processes.threads import torch_threads
from mer_dist.stages.fuse import fuse


@pytest.fixture(autouse=True)
def three():
    """Threads that no stage asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_are_given_back_also_when_the_work_fails():
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    with pytest.raises(UserError), torch_threads(2):
        assert torch.get_num_threads() == 2
        raise UserError("fails")
    assert torch.get_num_threads() == 3


@pytest.mark.slow
def test_fuse_computes_with_the_threads_of_the_configuration_and_gives_them_back(tmp_path, monkeypatch):
    from mer_dist.fusion import ensemble

    used, train = [], ensemble.train
    monkeypatch.setattr(
        ensemble, "train", lambda *told, **more: used.append(torch.get_num_threads()) or train(*told, **more)
    )
    fusion_run.make(tmp_path, labeled=30, unlabeled=10, epochs=1, rounds=0)
    fuse(fusion_run.configure(tmp_path, overrides=("fuse.dropout=[0.2]", "run.threads=2")))
    assert {*used} == {2} and torch.get_num_threads() == 3
