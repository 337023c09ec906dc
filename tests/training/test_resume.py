"""A training goes on where it was stopped: on as many processes bit for bit, on others as closely as
sums in another order allow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rank_models
import torch
import zero3_worker
from processes import launched, run
from safetensors.torch import load_file

from mer_dist.core.errors import UserError
from mer_dist.processes import env
from mer_dist.storage import files
from mer_dist.training.checkpoint import _convert, tensors_only, trained_weights, whole
from mer_dist.training.partition import PAD_INDEX

WORKER = Path(__file__).with_name("resume_worker.py")
FAULTS = ("position", "random", "mode", "order", "rate", "moments")
WAYS = ("full", "lora", "nf4", "int8", "split", "length")
HALF = ("full", "lora", "nf4")
STOP = 4

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return rank_models.make(tmp_path_factory.mktemp("models"))


def train(models: Path, out: Path, *told: int | str, precision="fp32") -> Path:
    done = launch(models, out, *told, precision=precision)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def launch(
    models: Path, out: Path, processes: int, stage: int, *cases: str, precision="fp32"
) -> subprocess.CompletedProcess:
    command = launched(stage, processes) if processes > 1 else [sys.executable]
    command += [str(WORKER), str(models), str(out), precision, *cases]
    return run(command, env.for_children(1), 900)


def moved(source: Path, target: Path) -> Path:
    """A copy of the checkpoints, as a folder of its own to go on in."""
    for way in (*WAYS, "groups"):
        if (source / way).exists():
            shutil.copytree(source / way, target / way)
    return target


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def two(models, here) -> Path:
    """Two ranks under ZeRO-3, undisturbed and stopped."""
    cases = [f"{way}+{mode}" for way in WAYS for mode in ("through", "until")]
    return train(models, here / "two", 2, 3, *cases, "lora+deferred", "groups")


@pytest.fixture(scope="module")
def one(models, here) -> Path:
    """One process without DeepSpeed, stopped; by LoRA undisturbed, too, and gone on with each fault."""
    faults = [f"lora+onward-{fault}" for fault in FAULTS]
    return train(
        models,
        here / "one",
        1,
        0,
        *(f"{way}+until" for way in WAYS),
        "lora+through",
        "length+through",
        "lora+onward",
        "lora+deferred",
        "lora+midway",
        *faults,
    )


@pytest.fixture(scope="module")
def zero2(models, here) -> Path:
    """Two ranks under ZeRO-2, stopped."""
    return train(models, here / "zero2", 2, 2, "full+until", "lora+until")


@pytest.fixture(scope="module")
def ddp(models, here) -> Path:
    """Two ranks of plain data parallelism, undisturbed and stopped."""
    return train(models, here / "ddp", 2, 0, "lora+through", "lora+until", "full+until")


@pytest.fixture(scope="module")
def half(models, here) -> Path:
    """Two ranks under ZeRO-3 in bf16, undisturbed and stopped."""
    cases = [f"{way}+{mode}" for way in HALF for mode in ("through", "until")]
    return train(models, here / "half", 2, 3, *cases, precision="bf16")


#: title -> who was stopped, how many processes go on, and at which ZeRO stage (0: without DeepSpeed, and
#: several are plainly data parallel)
MOVES = {
    "2 to 2": ("two", 2, 3),
    "2 to 1": ("two", 1, 0),
    "2 to 3": ("two", 3, 3),
    "1 to 2": ("one", 2, 3),
    "ZeRO-3 to ZeRO-2": ("two", 2, 2),
    "ZeRO-2 to 1": ("zero2", 1, 0),
    "ZeRO-3 to DDP": ("two", 2, 0),
    "DDP to ZeRO-3": ("ddp", 2, 3),
    "DDP to 1": ("ddp", 1, 0),
}
#: Of other moves than "2 to 2", the ways that always go on; all others do in the long suite.
OFTEN = ("lora", "length")


def each_move() -> list:
    rest = [way for way in WAYS if way not in OFTEN]
    long = [
        pytest.param(move, rest, marks=pytest.mark.long, id=f"{move}, rest")
        for move in MOVES
        if move != "2 to 2"
    ]
    return [pytest.param(move, WAYS if move == "2 to 2" else OFTEN, id=move) for move in MOVES] + long


@pytest.mark.parametrize("move, ways", each_move())
def test_a_training_goes_on_with_any_number_of_processes(request, models, here, two, move, ways):
    stopped, processes, stage = MOVES[move]
    source = request.getfixturevalue(stopped)
    ways = [way for way in ways if (source / way).exists()]
    folder = moved(source, here / "-".join([*move.split(), *ways]))
    train(models, folder, processes, stage, *(f"{way}+onward" for way in ways))
    for way in ways:
        told, whole_run = (
            json.loads(path.read_text())
            for path in (folder / f"{way}+onward.json", two / f"{way}+through.json")
        )
        assert told["started_at"] == STOP
        # Other random numbers, batches, moments or counters would show in the first digits.
        assert np.allclose(told["losses"], whole_run["losses"][STOP:], rtol=1e-4, atol=1e-4)
        weights, wanted = (
            load_file(path)
            for path in (folder / f"{way}+onward.safetensors", two / f"{way}+through.safetensors")
        )
        apart = max((weights[name] - wanted[name]).abs().max().item() for name in wanted)
        if move == "2 to 2":
            assert apart == 0 and told["losses"] == whole_run["losses"][STOP:]
            assert told["epochs"] == whole_run["epochs"]
        assert apart < 1e-3, f"{way}: {apart}"
        assert not list((folder / way).glob(".*")), "the converted checkpoint was left behind"
        every_clip_once_an_epoch(trained(source, f"{way}+until"), trained(folder, f"{way}+onward"))


@pytest.mark.long  # as many ranks do so in test_zero3
@pytest.mark.parametrize("processes, stage", [(1, 0), (3, 3)])
def test_it_does_so_in_half_precision(models, here, half, processes, stage):
    """Sums in another order end in another bf16 number, and a process alone keeps float32 weights."""
    folder = moved(half, here / f"half-{processes}")
    train(models, folder, processes, stage, *(f"{way}+onward" for way in HALF), precision="bf16")
    for way in HALF:
        told, whole_run = losses(folder / f"{way}+onward.json"), losses(half / f"{way}+through.json")
        assert np.abs(told - whole_run[STOP:]).max() < 0.005 * whole_run[0]


def test_ranks_that_hold_all_of_the_model_go_on_bit_for_bit(models, here, ddp):
    folder = moved(ddp, here / "ddp-to-ddp")
    train(models, folder, 2, 0, "lora+onward")
    told, whole_run = (
        json.loads(path.read_text()) for path in (folder / "lora+onward.json", ddp / "lora+through.json")
    )
    assert told["started_at"] == STOP and told["epochs"] == whole_run["epochs"]
    assert told["losses"] == whole_run["losses"][STOP:]
    weights, wanted = (
        path.read_bytes() for path in (folder / "lora+onward.safetensors", ddp / "lora+through.safetensors")
    )
    assert weights == wanted
    every_clip_once_an_epoch(trained(ddp, "lora+until"), trained(folder, "lora+onward"))


def losses(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text())["losses"])


def test_what_was_done_of_an_epoch_is_not_read_again(one):
    """Three epochs of 31 clips in batches of twelve, each followed by the 11 that are held out; of the
    second epoch the first batch was done."""
    read = {
        mode: json.loads((one / f"lora+{mode}.json").read_text())["read"] for mode in ("through", "onward")
    }
    assert read == {"through": 3 * (36 + 12), "onward": 24 + 12 + 36 + 12}


def trained(folder: Path, case: str) -> dict[str, list[int]]:
    """epoch -> positions of the clips that a step was taken on, of all ranks together."""
    found: dict[str, list[int]] = {}
    for path in folder.glob(f"{case}.rank-*.json"):
        for epoch, positions in json.loads(path.read_text()).items():
            found.setdefault(epoch, []).extend(position for position in positions if position != PAD_INDEX)
    return found


def every_clip_once_an_epoch(*parts: dict[str, list[int]]) -> None:
    for epoch in ("1", "2", "3"):
        done = [position for part in parts for position in part.get(epoch, [])]
        assert sorted(done) == list(range(zero3_worker.TRAINED))


def test_two_ranks_learn_the_same_from_passes_by_length_as_one(one, two):
    """They cut other passes, of which every rank has as many."""
    assert np.allclose(losses(one / "length+through.json"), losses(two / "length+through.json"), atol=1e-5)
    every_clip_once_an_epoch(trained(two, "length+through"))


@pytest.mark.parametrize("who, ranks", [("one", 1), ("two", 2)])
def test_the_ranks_together_train_on_every_clip_once_an_epoch(request, who, ranks):
    folder = request.getfixturevalue(who)
    every_clip_once_an_epoch(trained(folder, "lora+through"))
    assert len(list(folder.glob("lora+through.rank-*.json"))) == ranks


@pytest.mark.parametrize("who", ["one", "two"])
def test_a_request_to_stop_inside_a_step_waits_for_its_end(request, who):
    """Before it, a part of the gradients would be lost."""
    folder = request.getfixturevalue(who)
    told, undisturbed = (
        json.loads((folder / f"lora+{mode}.json").read_text()) for mode in ("deferred", "through")
    )
    assert told["started_at"] == STOP + 1
    assert told["losses"] == undisturbed["losses"][STOP + 1 :] and told["epochs"] == undisturbed["epochs"]
    weights, wanted = ((folder / f"lora+{mode}.safetensors").read_bytes() for mode in ("deferred", "through"))
    assert weights == wanted


def test_a_checkpoint_from_inside_a_step_loses_no_gradients(one):
    """It counts whole steps, so the step begins again with its first micro-batch."""
    told, wanted = losses(one / "lora+midway.json"), losses(one / "lora+through.json")[STOP:]
    assert np.array_equal(told, wanted)
    weights, wanted = ((one / f"lora+{mode}.safetensors").read_bytes() for mode in ("midway", "through"))
    assert weights == wanted


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_resume_can_get_wrong_without_an_error_would_be_seen(one, fault):
    wanted = losses(one / "lora+through.json")[STOP:]
    assert np.array_equal(losses(one / "lora+onward.json"), wanted)
    spoilt = losses(one / f"lora+onward-{fault}.json")
    assert len(spoilt) != len(wanted) or np.abs(spoilt - wanted).max() > 1e-3


def test_deepspeeds_two_faults_are_there_and_are_mended(models, here, two):
    """If ``left`` comes out right one day, DeepSpeed has mended its loading, and our mending can go."""
    folder = moved(two, here / "groups")
    train(models, folder, 3, 3, "groups")
    told = json.loads((folder / "groups-3.json").read_text())
    assert json.loads((two / "groups-2.json").read_text())["left"]["decays"] == [0.1, 0.0]
    assert told["left"]["decays"] == [0.1, 0.1] and told["mended"]["decays"] == [0.1, 0.0]
    assert max(told["left"]["steps"]) > 3 and set(told["mended"]["steps"]) == {3}


def test_a_checkpoint_of_another_number_of_processes_holds_the_same_tensors(two, one):
    """What a checkpoint of one process calls a weight, and how it is cut, is that of two."""
    (of_two,), (of_one,) = whole(two / "full"), whole(one / "full")
    weights, same = (trained_weights(path, torch.float32) for path in (of_two, of_one))
    assert weights.keys() == same.keys()
    assert max((weights[name] - same[name]).abs().max().item() for name in weights) < 1e-3


class Planted:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def hostile(two, tmp_path) -> tuple[Path, Path]:
    """A checkpoint of two ranks in which one file runs code, with a mark and checksums as if it belonged
    there; and the folder that shows that it ran."""
    (checkpoint,) = whole(moved(two, tmp_path / "moved") / "full")
    part, sign = max(checkpoint.glob("*_optim_states.pt")), tmp_path / "sign"
    with tensors_only(checkpoint):
        content = torch.load(part, weights_only=False)
    content["optimizer_state_dict"]["planted"] = Planted(sign)
    torch.save(content, part)
    facts = files.read_marker(checkpoint)
    facts["content"] |= files.contents([part])
    files.write_marker(checkpoint, **facts)
    assert not files.damaged(checkpoint, facts["content"])
    torch.load(part, weights_only=False)
    sign.rmdir()
    return checkpoint, sign


def test_code_in_a_checkpoint_is_neither_run_nor_converted(hostile, tmp_path):
    checkpoint, sign = hostile
    for read in (
        lambda: trained_weights(checkpoint, torch.float32),
        lambda: _convert(checkpoint, tmp_path / "converted", STOP),
    ):
        with pytest.raises(
            UserError, match=f"{checkpoint}: refused, and nothing of it is run: it holds posix.mkdir;"
        ):
            read()
        assert not sign.exists()


@pytest.mark.parametrize("processes, stage", [(2, 3), (1, 0)])
def test_no_rank_goes_on_from_a_checkpoint_with_code(models, hostile, processes, stage):
    checkpoint, sign = hostile
    done = launch(models, checkpoint.parent.parent, processes, stage, "full+onward")
    assert done.returncode == 1
    assert f"{checkpoint}: refused, and nothing of it is run: it holds posix.mkdir" in done.stderr
    assert not sign.exists()
