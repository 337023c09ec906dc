"""Two real processes under ZeRO against one plain process, for every way of training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from safetensors.torch import load_file

from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.models.baichuan import BaichuanModel
from mer_dist.models.classifier import load_extractor
from mer_dist.processes import env
from mer_dist.training.checkpoint import trained_weights, whole
from mer_dist.training.supported import check

WORKER = Path(__file__).with_name("zero3_worker.py")
sys.path.insert(0, str(WORKER.parent))
import rank_models
import zero3_worker

pytestmark = pytest.mark.processes
WAYS = ("full", "lora", "nf4", "int8", "hubert", "hubert-full", "clip", "own")
#: Tried by plain data parallelism, whose other ways go on in test_resume.
PLAIN = ("full", "nf4", "int8", "hubert-full")
#: Tried under ZeRO-2 always; all others are in the long suite.
ZERO2 = ("full", "lora", "own")
RESUMED = ("full+resumed", "lora+resumed", "nf4+resumed")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return rank_models.make(tmp_path_factory.mktemp("models"))


def train(models: Path, out: Path, precision: str, cases: tuple[str, ...], zero_stage: int | None) -> Path:
    """Run the cases in one process (no stage) or in two, of stage 0 without DeepSpeed; returns ``out``."""
    command = [sys.executable] if zero_stage is None else processes.launched(zero_stage)
    command += [str(WORKER), str(models), str(out), precision, *cases]
    done = processes.run(command, env.for_children(1), 900)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory) -> Path:
    return train(models, tmp_path_factory.mktemp("alone"), "fp32", (*WAYS, *RESUMED), None)


@pytest.fixture(scope="module")
def zero0(models, tmp_path_factory) -> Path:
    return train(models, tmp_path_factory.mktemp("zero0"), "fp32", PLAIN, 0)


@pytest.fixture(scope="module")
def zero2(models, tmp_path_factory) -> Path:
    return train(models, tmp_path_factory.mktemp("zero2"), "fp32", ZERO2, 2)


@pytest.fixture(scope="module")
def zero2_rest(models, tmp_path_factory) -> Path:
    rest = tuple(way for way in WAYS if way not in ZERO2)
    return train(models, tmp_path_factory.mktemp("zero2-rest"), "fp32", rest, 2)


@pytest.fixture(scope="module")
def zero3(models, tmp_path_factory) -> Path:
    return train(models, tmp_path_factory.mktemp("zero3"), "fp32", (*WAYS, "wide"), 3)


def in_half_precision(models: Path, tmp_path_factory, cases: tuple[str, ...]) -> tuple[Path, Path]:
    """One process and two under ZeRO-3, both in bf16."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    return train(models, one, "bf16", cases, None), train(models, two, "bf16", cases, 3)


@pytest.fixture(scope="module")
def half(models, tmp_path_factory) -> tuple[Path, Path]:
    return in_half_precision(models, tmp_path_factory, ("lora-long", "hubert", "lora+resumed"))


@pytest.fixture(scope="module")
def half_full(models, tmp_path_factory) -> tuple[Path, Path]:
    return in_half_precision(models, tmp_path_factory, ("full-long", "full+resumed"))


def under_zero2() -> list:
    """(way, fixture) of each way of training."""
    rest = [way for way in WAYS if way not in ZERO2]
    return [
        *((way, "zero2") for way in ZERO2),
        *(pytest.param(way, "zero2_rest", marks=pytest.mark.long) for way in rest),
    ]


@pytest.mark.parametrize(
    "way, ranks", [*((way, "zero0") for way in PLAIN), *under_zero2(), *((way, "zero3") for way in WAYS)]
)
def test_two_ranks_learn_what_one_process_learns(request, alone, way, ranks):
    stage = int(ranks[4])
    one = facts(alone / way)
    two = facts(request.getfixturevalue(ranks) / way)
    assert (two["processes"], two["zero_stage"], one["zero_stage"]) == (2, stage, 0)
    assert np.allclose(one["first_logits"], two["first_logits"], atol=1e-5)
    # Without the mask of empty places the short last batch would weigh its filler clips.
    assert np.allclose(one["losses"], two["losses"], atol=1e-5)
    # Evaluation lies between the epochs: bitsandbytes' repacking of 4-bit weights would show here.
    assert np.allclose(one["held_out"], two["held_out"], atol=1e-4)
    assert two["losses"][-1] < (0.8 if way in ("hubert", "clip") else 0.5) * two["losses"][0]
    share = two["weights_held"] / one["weights_held"]
    if stage in (0, 2):
        assert share == 1
    elif way == "int8":  # as the README says, and plan counts
        assert share > 1
    else:
        assert 0.5 <= share < 0.51


@pytest.mark.parametrize(
    "who", ["alone", "zero0", "zero3", pytest.param("zero2_rest", marks=pytest.mark.long)]
)
def test_of_a_model_that_is_trained_nothing_is_in_memory_when_the_next_one_comes(request, who):
    """A leak shows in every case but the first; the two numbers are classifiers, and bytes of all tensors."""
    found = [facts(path.parent) for path in request.getfixturevalue(who).glob("*/facts.json")]
    left = [told["in_memory_before"] for told in found if "in_memory_before" in told]
    assert len(left) >= 4
    # What a module of a library keeps, far less than the smallest weight matrix.
    assert all(classifiers == 0 and size < 1000 for classifiers, size in left), left


@pytest.mark.parametrize("way, ranks", [*under_zero2(), *((way, "zero3") for way in WAYS)])
def test_the_gradient_buffer_has_the_size_of_what_is_trained_unless_the_user_sets_it(request, way, ranks):
    found = facts(request.getfixturevalue(ranks) / way)
    assert found["reduce_bucket"] == (5000 if way == "own" else found["trained"])


@pytest.mark.parametrize(
    "who, case",
    [
        ("half", "lora-long"),
        ("half", "hubert"),
        pytest.param("half_full", "full-long", marks=pytest.mark.long),
    ],
)
def test_half_precision_under_zero3_follows_one_process(request, who, case):
    one, two = (facts(folder / case) for folder in request.getfixturevalue(who))
    assert len(one["losses"]) == len(two["losses"]) == (10 if case.endswith("long") else 3)
    # One process keeps its trained weights in float32, ranks in bf16 with float32 masters: they
    # part where the loss is nearly zero.
    assert np.abs(np.subtract(one["losses"], two["losses"])).max() < 0.05 * one["losses"][0]
    assert two["losses"][-1] < (0.8 if case == "hubert" else 0.25) * two["losses"][0]


@pytest.mark.parametrize(
    "case, family", [("lora", "baichuan"), ("wide", "baichuan"), ("hubert", "hubert"), ("clip", "clip")]
)
def test_a_saved_adapter_is_whole_and_gives_the_same_logits_in_a_plain_process(models, zero3, case, family):
    """``wide`` has adapters above the size that every rank keeps whole: saved without gathering they
    would be empty, and no error would tell."""
    saved = load_file(zero3 / case / "adapter_model.safetensors")
    # Two for each projection: one in each of two layers, or four.
    assert len(saved) == (4 if family == "baichuan" else 16) and all(
        value.numel() > 0 for value in saved.values()
    )
    assert (max(value.numel() for value in saved.values()) > 100_000) == (case == "wide")

    published = ExtractorConfig(family=family, path=str(models / family))
    loaded = load_extractor(published, zero3 / case)
    head = load_file(zero3 / case / "head.safetensors")
    batch = loaded.collate_clips(zero3_worker.segments(loaded)[:4])
    with torch.no_grad():
        utterance = loaded(**batch)
        frozen = load_extractor(published)(**batch)
    normal = torch.nn.functional.layer_norm(utterance, utterance.shape[1:])
    logits = normal @ head["head.weight"].T + head["head.bias"]
    assert (logits - torch.tensor(facts(zero3 / case)["logits"])).abs().max() < 1e-4
    assert (utterance - frozen).abs().max() > 0.05, "the adapter changed nothing"


def test_fully_trained_weights_load_in_the_hugging_face_layout(models, zero3):
    loaded, report = BaichuanModel.from_pretrained(zero3 / "full", output_loading_info=True)
    assert not report["missing_keys"]
    before = BaichuanModel.from_pretrained(models / "baichuan")
    assert not torch.equal(loaded.layers[0].mlp.up_proj.weight, before.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("case", ["full", "lora", "nf4", "wide"])
def test_a_checkpoint_of_two_ranks_gives_the_whole_trained_tensors(zero3, case):
    (checkpoint,) = whole(zero3 / case / "checkpoints")
    weights = trained_weights(checkpoint, torch.float32)
    head = load_file(zero3 / case / "head.safetensors")
    assert torch.equal(weights["head.weight"], head["head.weight"])
    file = "model" if case == "full" else "adapter_model"
    saved = load_file(zero3 / case / f"{file}.safetensors")
    own = {
        name.replace("extractor.backbone.", "").replace(".default", ""): value
        for name, value in weights.items()
        if not name.startswith("head.")
    }
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], saved[name]) for name in own)


@pytest.mark.parametrize("case", RESUMED)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(alone, case):
    """So do two ranks under ZeRO-3: test_resume, "2 to 2"."""
    stopped_and_not(alone / case)


@pytest.mark.parametrize(
    "who, case", [("half", "lora+resumed"), pytest.param("half_full", "full+resumed", marks=pytest.mark.long)]
)
def test_so_it_does_in_half_precision(request, who, case):
    for folder in request.getfixturevalue(who):
        stopped_and_not(folder / case)


def stopped_and_not(folder: Path) -> None:
    found = facts(folder)
    assert found["undisturbed"]["started_at"] == 0 and found["stopped"]["started_at"] == 6
    for key in ("losses", "digests"):
        assert found["undisturbed"][key] and found["undisturbed"][key] == found["stopped"][key]
    assert [path.name for path in whole(folder / "stopped")] == ["step-00000006"]


def test_a_way_of_launching_that_was_never_tried_is_refused():
    for stage in (0, 2, 3):
        check(stage)
    with pytest.raises(UserError, match="ZeRO stage 1"):
        check(1)
    with pytest.raises(UserError, match="NVMe"):
        check(3, {"nvme"})
    with pytest.raises(UserError, match="distributed_type FSDP is not supported"):
        check(0, kind="FSDP")
