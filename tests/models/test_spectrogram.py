"""Models that hear a spectrogram: features of plain transformers without those of padding, alone as in a batch; they learn,
and load again elsewhere."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import any_encoder
import numpy as np
import pytest
import torch
from any_encoder import SPECTROGRAM, apart, embedded, fine_tuned, heard, noises

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import UserError
from mer_dist.models.classifier import load_extractor
from mer_dist.models.extractor import Unusable
from mer_dist.models.family import family_of
from mer_dist.planning.size import bare_classifier

pytestmark = pytest.mark.slow
every_type = pytest.mark.parametrize(
    "model_type",
    [own if own == "whisper" else pytest.param(own, marks=pytest.mark.long) for own in SPECTROGRAM],
)
WAVES = noises(16_000, 9_000, 5_000, 23_456)
WAVES[2] += np.sin(np.arange(5_000) / 4).astype(np.float32)
config_of = partial(any_encoder.config_of, "audio")


CLIPS = [*map(heard, WAVES)]


@torch.no_grad()
def plain(folder, wave: np.ndarray) -> torch.Tensor:
    """(steps, D) of a clip of one window, by transformers alone; what follows from padding is cut off by hand."""
    from transformers import AutoFeatureExtractor, AutoModel

    found = AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=16_000, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    kind = model.config.model_type
    out = getattr(model, "encoder" if kind == "whisper" else "forward")(**found, output_hidden_states=True)
    states = sum([*out.hidden_states[-4:-1], out.last_hidden_state])[0]
    if kind == "whisper":
        return states[: -(-len(wave) // 320)]
    if kind == "wav2vec2-bert":
        return states[: int(found["attention_mask"].sum())]
    # Three bands of nine patches in time, behind two tokens; a patch is 16 columns, from 10 after the one before.
    columns = 1 + (len(wave) - 400) // 160
    return states[2:].reshape(3, 9, -1).mean(0)[: (columns - 16) // 10 + 1]


def of_clip(extractor, wave: np.ndarray) -> torch.Tensor:
    return torch.cat(embedded(extractor, [heard(wave)]))


@every_type
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, model_type):
    folder = any_encoder.audio(tmp_path, model_type)
    extractor = load_extractor(config_of(folder))
    alone = [of_clip(extractor, wave) for wave in WAVES]
    assert extractor.width == 32
    for wave, found in zip(WAVES[1:3], alone[1:3], strict=True):
        assert found.shape[1] == 32 and apart(found, plain(folder, wave)) < 1e-4
    together = torch.cat(embedded(extractor, CLIPS))
    assert apart(together, torch.cat(alone)) < 1e-4
    assert apart(alone[0].mean(0), alone[1].mean(0)) > 0.01


def test_whisper_hears_windows_of_its_own_length_and_counts_the_steps_of_real_sound(tmp_path):
    extractor = load_extractor(config_of(any_encoder.audio(tmp_path, "whisper"), window=0.3))
    row = SimpleNamespace(samples=23_456)
    assert extractor.cost(row) == 2.0, "a window that is not full costs as much"
    assert extractor.shape(row) == (2, 1.0) and [steps for _, steps in extractor.prepare(CLIPS[3])] == [
        50,
        24,
    ]
    assert [len(one) for one in embedded(extractor, CLIPS)] == [50, 29, 16, 50, 24]
    # A rest in which there is no step is no window.
    assert len(extractor.prepare(heard(np.zeros(16_399, np.float32)))) == 1
    with pytest.raises(Unusable, match="399 audio samples; at least 400 are needed"):
        extractor.prepare(heard(WAVES[0][:399]))


def test_wav2vec2_bert_takes_windows_as_configured_of_one_spectrogram(tmp_path):
    folder = any_encoder.audio(tmp_path, "wav2vec2-bert")
    extractor = load_extractor(config_of(folder, window=0.6))
    whole = load_extractor(config_of(folder)).prepare(CLIPS[0])
    parts = extractor.prepare(CLIPS[0])
    assert [steps for _, steps in parts] == [30, 19] and [steps for _, steps in whole] == [49]
    assert torch.equal(torch.cat([own for own, _ in parts]), whole[0][0])
    least = family_of("audio", folder).enough
    assert not least(SimpleNamespace(samples=559)) and least(SimpleNamespace(samples=560))
    assert len(of_clip(extractor, WAVES[0][:560])) == 1
    with pytest.raises(Unusable, match="559 audio samples; at least 560 are needed"):
        extractor.prepare(heard(WAVES[0][:559]))


@torch.no_grad()
def test_the_transformer_of_spectrograms_may_pool_itself(tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    folder = any_encoder.audio(tmp_path, "audio-spectrogram-transformer")
    extractor = load_extractor(config_of(folder, pooling="pooled"))
    values = AutoFeatureExtractor.from_pretrained(folder)(WAVES[1], sampling_rate=16_000, return_tensors="pt")
    assert (
        apart(of_clip(extractor, WAVES[1]), AutoModel.from_pretrained(folder)(**values).pooler_output) < 1e-4
    )
    with pytest.raises(UserError, match="with pooling: pooled the model has no layers to choose"):
        load_extractor(config_of(folder, pooling="pooled", layers=[1]))


@every_type
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(
    tmp_path, model_type, method
):
    folder = any_encoder.audio(tmp_path / "base", model_type)
    rate = {"lora": 1e-2, "full": 1e-3}[method]
    whole, own = fine_tuned(config_of(folder), method, CLIPS[1:3], [0, 1], tmp_path, rate)
    assert apart(plain(whole, WAVES[1]), own[0]) < 1e-4
    assert apart(plain(folder, WAVES[1]), own[0]) > 1e-3, "it learned something"


def test_in_full_every_weight_is_trained_and_saved_though_the_class_freezes_one(tmp_path):
    """Whisper's positions: ZeRO-3 keeps them frozen, and what is not trained is not saved."""
    folder = any_encoder.audio(tmp_path, "whisper")
    model = bare_classifier(config_of(folder, finetune=FinetuneConfig(method="full")), 2, sharded=True)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_whole_of_whisper_loads_as_its_encoder_alone(tmp_path):
    """As it is published: with a decoder and a head."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = any_encoder.audio(tmp_path / "encoder", "whisper")
    whole = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder))
    whole.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "preprocessor_config.json").write_bytes(
        (folder / "preprocessor_config.json").read_bytes()
    )
    extractor = load_extractor(config_of(tmp_path / "whole"))
    assert not [name for name, _ in extractor.backbone.named_parameters() if "decoder" in name]
    assert apart(of_clip(extractor, WAVES[1]), plain(tmp_path / "whole", WAVES[1])) < 1e-4


@pytest.mark.parametrize(
    ("model_type", "change", "said"),
    [
        ("whisper", {"feature_size": 80}, "it makes 80 bands of 1 s, and the model reads 16 of 1 s"),
        ("whisper", {"chunk_length": 30}, "it makes 16 bands of 30 s, and the model reads 16 of 1 s"),
        (
            "audio-spectrogram-transformer",
            {"num_mel_bins": 128},
            "it makes 128 bands of sound, and the model",
        ),
        ("audio-spectrogram-transformer", {"max_length": 1024}, "of 1024 columns, and the model reads 96"),
        ("wav2vec2-bert", {"num_mel_bins": 80}, "it makes 160 numbers a step, and the model reads 32"),
        ("whisper", {"feature_size": "many"}, "preprocessor_config.json cannot be read"),
    ],
)
def test_a_preprocessor_of_another_model_is_refused_in_a_line(tmp_path, model_type, change, said):
    folder = any_encoder.audio(tmp_path, model_type)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_extractor(config_of(folder))


def test_steps_that_an_adapter_in_the_model_changes_are_refused(tmp_path):
    folder = any_encoder.audio(tmp_path, "wav2vec2-bert")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_adapter": True}))
    with pytest.raises(UserError, match=r"its adapter \(add_adapter\) changes the number of steps"):
        load_extractor(config_of(folder))
