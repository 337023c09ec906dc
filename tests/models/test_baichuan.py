"""The native Baichuan against what the official code computed from the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mer_dist.errors import UserError
from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM, alibi_slopes
from mer_dist.models.tokenizer import BaichuanTokenizer

TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference"
    expected = folder / "baichuan-tiny-expected"
    facts = json.loads((expected / "references.json").read_text())
    tensors = load_file(expected / "references.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder / "baichuan-tiny", dtype=torch.float32)
    return folder / "baichuan-tiny", facts, tensors, model.eval()


def hidden_states(model, **inputs):
    with torch.no_grad():
        return torch.stack(model.model(output_hidden_states=True, **inputs).hidden_states)


def test_hidden_states_and_logits_equal_the_official_ones(reference):
    _, facts, tensors, model = reference
    for row in range(len(facts["sentences"])):
        ids = tensors[f"s{row:02d}.input_ids"].reshape(1, -1)
        states = hidden_states(model, input_ids=ids)[:, 0]
        assert (states - tensors[f"s{row:02d}.hidden_states"]).abs().max() < TOLERANCE
        logits = model(ids).logits[0, -1]
        assert (logits - tensors[f"s{row:02d}.last_logits"].reshape(-1)).abs().max() < TOLERANCE


@pytest.mark.parametrize("side", ["pad_right", "pad_left"])
def test_padded_batches_equal_the_official_ones_on_real_tokens(reference, side):
    _, _, tensors, model = reference
    mask = tensors[f"{side}.attention_mask"]
    states = hidden_states(model, input_ids=tensors[f"{side}.input_ids"], attention_mask=mask)
    expected = tensors[f"{side}.hidden_states"]
    difference = (states - expected).abs().amax(-1)[:, mask.bool()]
    assert difference.max() < TOLERANCE
    assert torch.isfinite(states).all()


def test_a_text_longer_than_model_max_length_equals_the_official_one(reference):
    _, _, tensors, model = reference
    last = hidden_states(model, input_ids=tensors["long.input_ids"])[-1, 0]
    assert len(last) == 176
    assert (last - tensors["long.last_hidden"]).abs().max() < TOLERANCE


def test_training_loss_and_gradients_equal_the_official_ones(reference):
    folder, _, tensors, _ = reference
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, mask = tensors["pad_right.input_ids"], tensors["pad_right.attention_mask"]
    loss = model(ids, attention_mask=mask, labels=tensors["train.labels"]).loss
    assert abs(loss.item() - tensors["train.loss"].item()) < TOLERANCE
    loss.backward()
    parameters = dict(model.named_parameters())
    checked = [key for key in tensors if key.startswith("train.grad.")]
    assert checked
    for key in checked:
        gradient = parameters[key.removeprefix("train.grad.")].grad
        assert (gradient - tensors[key]).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype, key", [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_half_precision_is_as_near_to_float32_as_the_official_code(reference, dtype, key):
    folder, facts, tensors, _ = reference
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    off, official = [], []
    for row, sentence in enumerate(facts["sentences"]):
        states = hidden_states(model, input_ids=tensors[f"s{row:02d}.input_ids"].reshape(1, -1))
        utterance = states[-4:, 0].float().sum(0).mean(0)
        off.append((utterance - tensors[f"s{row:02d}.mer_utt"].reshape(-1)).abs().max().item())
        official.append(sentence[f"mer_utt_{key}_max_abs_diff_vs_fp32"])
    assert sum(off) <= sum(official)


def test_greedy_generation_with_a_cache_gives_the_official_tokens(reference):
    _, facts, _, model = reference
    prompt = torch.tensor([facts["greedy"]["prompt_ids"]])
    expected = facts["greedy"]["new_ids"]
    new = model.generate(prompt, max_new_tokens=len(expected), do_sample=False)[0, prompt.shape[1] :]
    assert new.tolist() == expected


def test_slopes_of_the_published_head_count(shared):
    facts = json.loads((shared / "reference" / "baichuan-13b-facts.json").read_text())
    (slopes,) = [value for key, value in facts.items() if "slope" in key]
    assert torch.allclose(torch.tensor(alibi_slopes(40)), torch.tensor(slopes), rtol=1e-6, atol=0)
    assert alibi_slopes(8) == [2.0**-power for power in range(1, 9)]


def test_tokenizer_gives_the_official_ids(reference):
    folder, facts, _, _ = reference
    tokenizer = BaichuanTokenizer.from_pretrained(folder)
    rows = facts["tokenizer"]["edge"] + facts["tokenizer"]["sentences"]
    assert [tokenizer.encode(row["text"]) for row in rows] == [row["ids"] for row in rows]
    batch = [tokenizer.encode(row["text"]) for row in facts["tokenizer"]["sentences"][:4]]
    ids, mask = tokenizer.pad(batch)
    assert ids.tolist() == facts["tokenizer"]["padded_batch_default"]["input_ids"]
    assert mask.tolist() == facts["tokenizer"]["padded_batch_default"]["attention_mask"]


@pytest.mark.parametrize(
    "other, name",
    [({"vocab_size": 125696}, "Baichuan2"), ({"architectures": ["BaiChuanForCausalLM"]}, "Baichuan-7B")],
)
def test_sibling_architectures_are_refused_by_name(other, name):
    with pytest.raises(UserError, match=name):
        BaichuanConfig(**other)


def test_saved_weights_load_again_with_the_same_output(tmp_path):
    torch.manual_seed(0)
    config = BaichuanConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6
    )
    model = BaichuanForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
