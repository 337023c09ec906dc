"""Two real processes under ZeRO-3 against one plain process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from mer_dist.config import ExtractorConfig
from mer_dist.dist import env
from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM, BaichuanModel
from mer_dist.models.classifier import load_extractor
from mer_dist.models.tokenizer import BaichuanTokenizer

WORKER = Path(__file__).with_name("zero3_worker.py")
sys.path.insert(0, str(WORKER.parent))
import zero3_worker  # noqa: E402

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = BaichuanTokenizer.train(zero3_worker.lines()[0] * 4, 400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BaichuanConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=6, initializer_range=0.05,
    )
    BaichuanForCausalLM(config).save_pretrained(folder)
    return folder


def train(model: Path, out: Path, method: str, precision: str, processes: int) -> dict:
    command = [sys.executable]
    if processes > 1:
        command += [
            "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/zero3-cpu.yaml"),
            "--num_processes", str(processes), "--main_process_port", str(env.free_port()),
        ]
    command += [str(WORKER), str(model), str(out), method, precision]
    done = subprocess.run(
        command, env=env.for_children(1), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "facts.json").read_text())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_ranks_learn_what_one_process_learns(model, tmp_path, method):
    alone = train(model, tmp_path / "alone", method, "fp32", 1)
    shared = train(model, tmp_path / "shared", method, "fp32", 2)
    assert (shared["processes"], shared["zero_stage"], alone["zero_stage"]) == (2, 3, 0)
    assert np.allclose(alone["losses"], shared["losses"], atol=1e-5)
    assert np.allclose(alone["held_out"], shared["held_out"], atol=1e-5)
    # Without the mask of empty places the short last batch would weigh its filler clips.
    assert shared["losses"][1] < shared["losses"][0]
    # ZeRO-3 left each rank empty shells of the weights it does not own.
    assert shared["weights_held"] < 0.5 * alone["weights_held"]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.1)])
def test_a_saved_adapter_is_whole_and_gives_the_same_logits_in_a_plain_process(
    model, tmp_path, precision, tolerance
):
    facts = train(model, tmp_path, "lora", precision, 2)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 8 and all(value.numel() > 0 for value in saved.values())

    loaded = load_extractor(ExtractorConfig(family="baichuan", path=str(model)), tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    texts, _ = zero3_worker.lines()
    batch = loaded.collate([loaded.tokenizer.encode(text) for text in texts[:4]])
    with torch.no_grad():
        utterance = loaded(**batch)
        frozen = load_extractor(ExtractorConfig(family="baichuan", path=str(model)))(**batch)
    normal = torch.nn.functional.layer_norm(utterance, utterance.shape[1:])
    logits = normal @ head["head.weight"].T + head["head.bias"]
    assert (logits - torch.tensor(facts["logits"])).abs().max() < tolerance
    assert (utterance - frozen).abs().max() > 0.05, "the adapter changed nothing"


def test_fully_trained_weights_load_in_the_hugging_face_layout(model, tmp_path):
    train(model, tmp_path, "full", "fp32", 2)
    loaded, report = BaichuanModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    before = BaichuanModel.from_pretrained(model)
    assert not torch.equal(loaded.layers[0].mlp.up_proj.weight, before.layers[0].mlp.up_proj.weight)
