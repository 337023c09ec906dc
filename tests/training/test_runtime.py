"""What is refused before any model is loaded, and what is not imported for nothing."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from mer_dist.core.errors import UserError
from mer_dist.processes import env
from mer_dist.training.accelerator import _group, make_accelerator, unknown_kind, unwrapped


def test_a_tracker_that_is_not_installed_is_refused_not_left_out(tmp_path):
    with pytest.raises(UserError, match="no_such_tracker, which is not installed"):
        make_accelerator("fp32", ["no_such_tracker"], tmp_path, threads=1)


def test_one_process_does_not_ask_accelerate_which_would_import_deepspeed():
    def asked(model):
        raise AssertionError("asked")

    alone = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=None), unwrap_model=asked)
    split = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=object()), unwrap_model=lambda model: "own"
    )
    assert unwrapped(alone, "model") == "model" and unwrapped(split, "model") == "own"


def test_torch_is_not_imported_to_choose_what_the_environment_says(monkeypatch):
    def asked():
        raise AssertionError("asked")

    monkeypatch.setattr(env, "has_gpu", asked)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert env.for_children(1)["DS_ACCELERATOR"] == "cuda"
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(env, "has_gpu", lambda: False)
    assert env.for_children(1)["DS_ACCELERATOR"] == "cpu"
    monkeypatch.setattr(env, "has_gpu", lambda: True)
    assert "DS_ACCELERATOR" not in env.for_children(1)


def test_nccl_is_told_its_device_and_deepspeed_joins_the_ranks_itself(monkeypatch):
    """NCCL would guess the device at the first barrier; DeepSpeed tells it, too."""
    import torch

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *told, **more: asked.append((told, more))
    )
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    (group,) = _group(timedelta(minutes=3))
    assert (group.backend, group.timeout) == ("nccl", timedelta(minutes=3)) and not asked
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    (plain,) = _group(timedelta(minutes=3))
    wanted = {"timeout": timedelta(minutes=3), "device_id": torch.device("cuda", 1)}
    assert asked == [(("nccl",), wanted)]
    # Otherwise buckets are cut anew after the first step, and a resumed training sums in another order.
    assert plain.find_unused_parameters and not plain.broadcast_buffers


def test_other_ways_of_joining_ranks_are_named():
    from accelerate.utils import DistributedType

    kinds = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP")
    named = [unknown_kind(SimpleNamespace(distributed_type=DistributedType[kind])) for kind in kinds]
    assert named == ["", "", "", "", "FSDP"]
