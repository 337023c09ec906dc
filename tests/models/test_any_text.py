"""The family ``text``: every architecture gives what plain transformers computes, alone as in a batch, learns, and loads
again elsewhere."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import any_encoder
import pytest
import torch
from any_encoder import LINES, TEXT, apart, embedded, fine_tuned, learned
from safetensors.torch import load_file, save_file

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import UserError
from mer_dist.models.classifier import check_files, load_extractor, trainable_classifier
from mer_dist.models.extractor import Unusable
from mer_dist.models.text_family import DECODERS, ENCODERS

pytestmark = pytest.mark.slow
#: One encoder and one decoder always, the others in the long suite.
ALWAYS = ("modernbert", "qwen3")
every_type = pytest.mark.parametrize(
    "model_type", [own if own in ALWAYS else pytest.param(own, marks=pytest.mark.long) for own in TEXT]
)
SAID = [LINES[0], LINES[11] + LINES[37], "今", LINES[5]]
config_of = partial(any_encoder.config_of, "text")


def clip(text: str) -> SimpleNamespace:
    return SimpleNamespace(name=text, transcript=text)


CLIPS = [*map(clip, SAID)]


@torch.no_grad()
def plain(folder, text: str) -> torch.Tensor:
    """The challenge's features by transformers alone: its tokenizer, its model, special tokens left out."""
    from transformers import AutoModel, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", return_special_tokens_mask=True)
    own = batch.pop("special_tokens_mask")[0] == 0
    batch.pop("token_type_ids", None)
    out = AutoModel.from_pretrained(folder).eval()(**batch, output_hidden_states=True)
    return sum([*out.hidden_states[-4:-1], out.last_hidden_state])[0][own]


def test_every_type_of_the_family_is_tried():
    assert {*TEXT} == {*ENCODERS, *DECODERS}


@every_type
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, model_type):
    folder = any_encoder.text(tmp_path, model_type)
    extractor = load_extractor(config_of(folder))
    together = embedded(extractor, CLIPS)
    assert extractor.width == 32 and len(together[2]) == (3 if model_type.startswith("qwen") else 1)
    for text, found in zip(SAID, together, strict=True):
        assert apart(found, plain(folder, text)) < 1e-4
        assert apart(found, embedded(extractor, [clip(text)])[0]) < 1e-4
    # One of another text is far away: the model does look at it.
    assert apart(together[0].mean(0), together[1].mean(0)) > 0.05


@every_type
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(
    tmp_path, model_type, method
):
    folder = any_encoder.text(tmp_path / "base", model_type)
    whole, own = fine_tuned(config_of(folder), method, CLIPS, [0, 1, 1, 0], tmp_path)
    assert apart(plain(whole, SAID[1]), own[1]) < 1e-4
    assert apart(plain(folder, SAID[1]), own[1]) > 1e-3, "it learned something"


@pytest.mark.parametrize("model_type", ["qwen3", "bert"])
def test_weights_of_4_bits_compute_nearly_the_same_and_learn(tmp_path, model_type):
    folder = any_encoder.text(tmp_path, model_type)
    whole, small = (
        embedded(load_extractor(config_of(folder, quantize=kind)), CLIPS) for kind in ("none", "nf4")
    )
    assert 1e-3 < apart(small[0], whole[0]) < 0.5
    config = config_of(folder, quantize="nf4", finetune=FinetuneConfig(method="lora", precision="fp32"))
    losses = learned(trainable_classifier(config, 2, seed=0, sharded=False), CLIPS, [0, 1, 1, 0])
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("model_type", ["roberta", "qwen2"])
def test_longer_transcripts_are_cut_where_model_or_settings_end_and_keep_their_last_special_token(
    tmp_path, model_type
):
    extractor = load_extractor(config_of(any_encoder.text(tmp_path, model_type)))
    long = "今" * 200
    ((ids, own),) = extractor.prepare(clip(long))
    # RoBERTa's positions begin after that of its padding.
    most = 81 if model_type == "roberta" else 80
    assert len(ids) == extractor.longest == most
    assert f"were longer than {most} tokens and were cut" in extractor.note()
    assert own[-1] == (0 if model_type == "roberta" else 1)
    assert len(embedded(extractor, [clip(long)])[0]) == sum(own)
    short = load_extractor(config_of(tmp_path, max_tokens=10))
    assert len(short.prepare(clip(long))[0][0]) == 10
    with pytest.raises(Unusable, match="no token"):
        extractor.prepare(clip(""))


def test_folders_that_are_not_of_the_family_are_refused_in_a_line(tmp_path):
    folder = any_encoder.text(tmp_path / "m", "bert")
    settings = json.loads((folder / "config.json").read_text())
    for change, why in (
        ({"model_type": "t5"}, "model_type is 't5'; the family text needs 'bert' or"),
        ({"model_type": "nothing"}, "model_type is 'nothing'"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "it asks for code of its own"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=why):
            check_files(config_of(folder))
    (folder / "config.json").write_text(json.dumps(settings))
    other = any_encoder.tokenizer("qwen3")
    other.save_pretrained(folder)
    with pytest.raises(UserError, match="one of the two is of another model"):
        load_extractor(config_of(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_extractor(config_of(folder))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="tokenizer_config.json: there is no such file"):
        check_files(config_of(folder))


@pytest.mark.parametrize("model_type", ["bert", "qwen2"])
def test_layers_and_pooling_are_those_that_are_asked_for(tmp_path, model_type):
    from transformers import AutoModel, AutoTokenizer

    folder = any_encoder.text(tmp_path, model_type)
    batch = AutoTokenizer.from_pretrained(folder)(
        SAID[1], return_tensors="pt", return_special_tokens_mask=True
    )
    own = batch.pop("special_tokens_mask")[0] == 0
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        out = AutoModel.from_pretrained(folder).eval()(**batch, output_hidden_states=True)
    states = [*out.hidden_states[:-1], out.last_hidden_state]
    last = int(own.nonzero()[-1])
    for options, expected in (
        ({"layers": [2]}, states[2][0][own]),
        ({"layers": [0, -1]}, (states[0] + states[-1])[0][own]),
        ({"pooling": "first", "layers": [-1]}, states[-1][0][:1]),
        ({"pooling": "last"}, sum(states[-4:])[0][last : last + 1]),
    ):
        extractor = load_extractor(config_of(folder, **options))
        for clips in (CLIPS, CLIPS[1:2]):
            found = embedded(extractor, clips)[clips.index(CLIPS[1])]
            assert found.shape == expected.shape and apart(found, expected) < 1e-4, options
    for options, why in (
        ({"layers": [6]}, "layers names 6; .* has the hidden states 0 to 5"),
        ({"pooling": "max"}, "pooling is 'max'; .* one of mean, first, last"),
    ):
        with pytest.raises(UserError, match=why):
            load_extractor(config_of(folder, **options))


@pytest.mark.parametrize("model_type", ["qwen2", "bert"])
@torch.no_grad()
def test_of_a_prompt_the_tokens_of_the_transcript_alone_are_embedded(tmp_path, model_type):
    from transformers import AutoModel, AutoTokenizer

    folder = any_encoder.text(tmp_path, model_type)
    prompt = "he says 我说{transcript} and feels"
    extractor = load_extractor(config_of(folder, prompt=prompt))
    batch = AutoTokenizer.from_pretrained(folder)(prompt.format(transcript=SAID[3]), return_tensors="pt")
    batch.pop("token_type_ids", None)
    out = AutoModel.from_pretrained(folder)(**batch, output_hidden_states=True)
    states = sum([*out.hidden_states[-4:-1], out.last_hidden_state])[0]
    # Tokens are letters, of Qwen bytes; BERT has one more in front.
    before, own = (
        len(part.encode() if model_type == "qwen2" else part) for part in ("he says 我说", SAID[3])
    )
    start = before + (model_type == "bert")
    for clips in (CLIPS, CLIPS[3:]):
        found = embedded(extractor, clips)[clips.index(CLIPS[3])]
        assert found.shape == (own, 32) and apart(found, states[start : start + own]) < 1e-4
    first = load_extractor(config_of(folder, prompt=prompt, pooling="first"))
    assert apart(embedded(first, CLIPS[2:])[1], states[start : start + 1]) < 1e-4
    # A long transcript is cut, and the words behind it stay.
    ((ids, real),) = extractor.prepare(clip("今" * 200))
    plain_ids, _ = extractor.encoded("")
    assert len(ids) == extractor.longest and sum(real) == extractor.longest - len(plain_ids)
    assert ids[-5:] == plain_ids[-5:] and "were cut" in extractor.note()
    with pytest.raises(Unusable, match="no token"):
        extractor.prepare(clip(""))


def test_a_prompt_that_cannot_be_read_is_refused_in_a_line(tmp_path):
    folder = any_encoder.text(tmp_path / "text", "qwen2")
    for prompt in ("how does it feel", "{transcript} or {transcript}"):
        with pytest.raises(UserError, match=r"it must contain \{transcript\} once"):
            config_of(folder, prompt=prompt)
    with pytest.raises(UserError, match=r"prompt has 90 tokens, and .* reads 80 at most"):
        load_extractor(config_of(folder, prompt="x" * 90 + "{transcript}"))
    sound = any_encoder.audio(tmp_path / "sound", "wavlm")
    with pytest.raises(UserError, match="prompt: the family audio reads none"):
        load_extractor(any_encoder.config_of("audio", sound, prompt="{transcript}"))


@pytest.mark.parametrize("family", ["audio", "image", "video"])
def test_a_folder_that_asks_for_code_of_its_own_is_refused_in_a_line(tmp_path, family):
    make, model_type = {
        "audio": (any_encoder.audio, "wavlm"),
        "image": (any_encoder.image, "vit"),
        "video": (any_encoder.video, "vivit"),
    }[family]
    path = make(tmp_path, model_type) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(UserError, match="it asks for code of its own"):
        check_files(any_encoder.config_of(family, tmp_path))


@pytest.mark.parametrize(
    ("model_type", "file", "kind"),
    [
        ("xlm-roberta", "sentencepiece.bpe.model", "XLMRobertaTokenizer"),
        pytest.param("deberta-v2", "spm.model", "DebertaV2Tokenizer", marks=pytest.mark.long),
        pytest.param("llama", "tokenizer.model", "LlamaTokenizer", marks=pytest.mark.long),
    ],
)
def test_a_tokenizer_may_be_a_sentencepiece_model_alone(tmp_path, model_type, file, kind):
    from sentencepiece import SentencePieceTrainer

    folder = any_encoder.text(tmp_path / "m", model_type)
    for path in folder.glob("*token*"):
        path.unlink()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(tmp_path / "own"),
        vocab_size=40,
        model_type="bpe" if model_type == "llama" else "unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "own.model").rename(folder / file)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    extractor = load_extractor(config_of(folder))
    ids, own = extractor.encoded(LINES[3])
    pieces = extractor.tokenizer.convert_ids_to_tokens(
        [one for one, real in zip(ids, own, strict=True) if real]
    )
    assert 3 < sum(own) < len(LINES[3]) and "今天是" in "".join(pieces)
    assert apart(embedded(extractor, CLIPS)[3], plain(folder, SAID[3])) < 1e-4


def test_a_folder_without_the_pooler_that_nobody_reads_is_whole(tmp_path):
    """As published models of masked language are."""
    folder = any_encoder.text(tmp_path, "bert")
    before = embedded(load_extractor(config_of(folder)), CLIPS)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("pooler.") for name in weights)
    save_file(
        {name: own for name, own in weights.items() if not name.startswith("pooler.")},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    for one, other in zip(before, embedded(load_extractor(config_of(folder)), CLIPS), strict=True):
        assert torch.equal(one, other)
    save_file(
        {name: own for name, own in weights.items() if "layer.2." not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match="its weights lack encoder.layer.2"):
        load_extractor(config_of(folder))
