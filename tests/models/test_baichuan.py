"""The native Baichuan against what the official code computed from the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from mer_dist.core.errors import UserError
from mer_dist.models.baichuan import (
    BaichuanConfig,
    BaichuanForCausalLM,
    BaichuanForSequenceClassification,
    BaichuanModel,
    alibi_slopes,
)
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


def test_packed_texts_do_not_see_each_other(reference):
    _, _, tensors, model = reference
    ids, segments = tensors["packed.input_ids"], tensors["packed.attention_mask"]
    last = hidden_states(model, input_ids=ids, attention_mask=segments)[-1, 0]
    assert (last - tensors["packed.last_hidden"]).abs().max() < TOLERANCE
    blind = hidden_states(model, input_ids=ids)[-1, 0]
    assert (blind - last).abs().max() > 0.1


def small(model_class=BaichuanForCausalLM, heads: int = 6, width: int = 24, **settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BaichuanConfig(
        **sizes, num_attention_heads=heads, initializer_range=0.3, eos_token_id=49, **settings
    )
    return model_class(config).eval()


def explicit_attention(layer, x: torch.Tensor, slopes: list[float]) -> torch.Tensor:
    """Attention as in the paper: a (heads, L, L) bias of slope times distance, then the softmax."""
    batch, length, width = x.shape
    heads = len(slopes)
    query, key, value = layer.W_pack(x).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    places = torch.arange(length)
    bias = torch.tensor(slopes)[:, None, None] * (places - places[:, None])
    bias = bias.masked_fill(places > places[:, None], -torch.inf)
    scores = query @ key.mT / (width // heads) ** 0.5 + bias
    return layer.o_proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))


@pytest.mark.parametrize("heads", [8, 10, 40])
def test_the_forward_pass_equals_attention_with_an_explicit_bias(shared, heads):
    facts = json.loads((shared / "reference/baichuan-tiny-expected/references.json").read_text())
    slopes = facts["alibi_slopes"][str(heads)]
    model = small(BaichuanModel, heads, 2 * heads)
    ids = torch.randint(3, 50, (2, 70))
    x = model.embed_tokens(ids)
    for layer in model.layers:
        x = x + explicit_attention(layer.self_attn, layer.input_layernorm(x), slopes)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    assert (model(ids).last_hidden_state - model.norm(x)).abs().max() < TOLERANCE


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.slow
def test_no_mask_is_built_for_right_padded_batches():
    length, heads = 512, 8
    model = small(BaichuanModel, heads, 64)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, 100:] = 0
    ids = torch.randint(3, 50, (2, length))
    largest = {}
    for side, padding in (("right", mask), ("left", mask.flip(1))):
        with LargestTensor() as recorder:
            model(ids, attention_mask=padding).last_hidden_state.sum().backward()
        largest[side] = recorder.elements
    assert largest["right"] < length * length
    # Left padding needs one, but not one for each head.
    assert 2 * length * length <= largest["left"] < heads * length * length


def test_greedy_generation_of_a_left_padded_batch_equals_single_prompts(reference):
    _, facts, _, model = reference
    whole = facts["greedy"]["prompt_ids"]
    prompts = [whole, whole[:4], whole[3:9]]
    ids = torch.tensor([[0] * (len(whole) - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (len(whole) - len(row)) + [1] * len(row) for row in prompts])
    options = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(ids, attention_mask=mask, **options)[:, len(whole) :]
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert together[row].tolist() == alone.tolist()


@pytest.mark.parametrize("padding", [0, 5])
def test_a_prompt_in_chunks_with_a_cache_equals_the_whole_pass(padding):
    model = small()
    ids = torch.randint(3, 49, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    whole = model(ids, attention_mask=mask).logits
    cache, parts = None, []
    for start, end in ((0, 7), (7, 8), (8, 15), (15, 20)):
        part = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = part.past_key_values
        parts.append(part.logits)
    assert (torch.cat(parts, 1) - whole)[mask.bool()].abs().max() < TOLERANCE


def test_gradient_checkpointing_gives_the_same_gradients():
    ids = torch.randint(3, 50, (2, 9))
    gradients = []
    for checkpointing in (False, True):
        model = small().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, labels=ids).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, atol=1e-7)


@pytest.mark.parametrize("side", ["right", "left"])
def test_sequence_classification_reads_the_last_real_token(side):
    model = small(BaichuanForSequenceClassification, num_labels=3)
    # The last real token of the second text is the unknown one, which is the padding id as well.
    texts = [[5, 6, 7, 8, 9], [10, 11, 0]]
    rows = [row + [0] * (5 - len(row)) if side == "right" else [0] * (5 - len(row)) + row for row in texts]
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, slice(3, 5) if side == "right" else slice(0, 2)] = 0
    labels = torch.tensor([2, 0])
    out = model(torch.tensor(rows), attention_mask=mask, labels=labels)
    for row, text in enumerate(texts):
        alone = model.score(model.model(torch.tensor([text])).last_hidden_state[0, -1])
        assert (out.logits[row] - alone).abs().max() < TOLERANCE
    assert torch.isclose(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    out.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("name, why", [("eager", "only sdpa"), ("flash_attention_2", "[Ff]lash")])
def test_other_attention_than_sdpa_is_refused(tmp_path, name, why):
    small().save_pretrained(tmp_path)
    AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    with pytest.raises((UserError, ValueError, ImportError), match=why):
        AutoModel.from_pretrained(tmp_path, attn_implementation=name)


@pytest.mark.parametrize(
    "other, name",
    [
        ({"vocab_size": 125696}, "Baichuan2"),
        ({"z_loss_weight": 0, "vocab_size": 64000}, "Baichuan2"),
        ({"architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 4096}, "Baichuan-7B"),
        ({"rope_theta": 1e6}, "rope_theta belongs to another architecture"),
        ({"architectures": ["OrionForCausalLM"]}, "OrionForCausalLM is unknown"),
        ({"hidden_size": 100}, "no multiple"),
    ],
)
def test_sibling_architectures_are_refused_by_name(other, name):
    with pytest.raises(UserError, match=name):
        BaichuanConfig(**other)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_saved_weights_load_again_with_the_same_output(tmp_path, auto):
    model = small(auto.from_config, num_labels=3)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = auto.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(ids)[0], again(ids)[0])


def test_every_class_reads_the_published_layout_and_writes_one_that_reads_the_same(reference, tmp_path):
    folder, _, _, model = reference
    assert list(folder.glob("*.bin.index.json")) and not list(folder.glob("*.safetensors"))
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    expected = model.model(ids).last_hidden_state
    assert torch.equal(body(ids).last_hidden_state, expected)
    assert torch.equal(again(ids).last_hidden_state, expected)
    check_given_prior = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(check_given_prior.model(ids).last_hidden_state, expected)
