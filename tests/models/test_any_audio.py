"""The family ``audio``: every architecture gives what plain transformers computes, alone as in a batch, learns, and loads
again elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import any_encoder
import numpy as np
import pytest
import torch
from any_encoder import AUDIO, apart, learned, saved

from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.core.errors import UserError
from mer_dist.models.audio_family import AUDIO as FACTS
from mer_dist.models.classifier import check_files, load_extractor, merged, trainable_classifier

pytestmark = pytest.mark.slow
#: One with each quirk always, the others in the long suite.
ALWAYS = ("wavlm", "data2vec-audio")
every_case = pytest.mark.parametrize(
    "case", [own if own in ALWAYS else pytest.param(own, marks=pytest.mark.long) for own in AUDIO]
)
_DRAW = np.random.default_rng(0)
WAVES = [(0.1 * _DRAW.normal(size=count)).astype(np.float32) for count in (16_000, 9_000, 400, 23_456)]


def clip(wave: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(name="clip", waveform=lambda: wave)


def config_of(folder, **options) -> ExtractorConfig:
    return ExtractorConfig(**({"family": "audio", "path": str(folder), "precision": "fp32"} | options))


@torch.no_grad()
def embedded(extractor, waves) -> list[torch.Tensor]:
    segments = [segment for wave in waves for segment in extractor.prepare(clip(wave))]
    embeddings, lengths = extractor.embed(**extractor.collate(segments))
    return list(embeddings.split(lengths.tolist()))


@torch.no_grad()
def plain(folder, wave: np.ndarray) -> torch.Tensor:
    """The challenge's features by transformers alone."""
    from transformers import AutoFeatureExtractor, AutoModel

    values = AutoFeatureExtractor.from_pretrained(folder)(
        wave, sampling_rate=16_000, return_tensors="pt"
    ).input_values
    out = AutoModel.from_pretrained(folder).eval()(values, output_hidden_states=True)
    return sum([*out.hidden_states[-4:-1], out.last_hidden_state])[0]


def test_every_type_of_the_family_is_tried():
    assert {model_type for model_type, _ in AUDIO.values()} == {*FACTS.model_types}


@every_case
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, case):
    folder = any_encoder.audio(tmp_path, case)
    extractor = load_extractor(config_of(folder))
    together = embedded(extractor, WAVES)
    assert extractor.width == 32 and [len(one) for one in together] == [49, 27, 1, 73]
    for wave, found in zip(WAVES, together, strict=True):
        assert apart(found, plain(folder, wave)) < 1e-4
        assert apart(found, embedded(extractor, [wave])[0]) < 1e-4
    assert apart(together[0].mean(0), together[1].mean(0)) > 0.05


@every_case
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(tmp_path, case, method):
    folder = any_encoder.audio(tmp_path / "base", case)
    finetune = FinetuneConfig(method=method, precision="fp32", lora=LoraConfig(rank=4, alpha=8, dropout=0.0))
    config = config_of(folder, finetune=finetune)
    model = trainable_classifier(config, 2, seed=0, sharded=False)
    segments = [segment for wave in WAVES for segment in model.extractor.prepare(clip(wave))]
    batch = model.extractor.collate_clips([[segment] for segment in segments])
    losses = learned(model, batch, [0, 1, 1, 0])
    assert losses[-1] < 0.9 * losses[0]
    saved(model, tmp_path / "adapter")
    own = embedded(model.extractor, WAVES)
    again = load_extractor(config, tmp_path / "adapter")
    for before, after in zip(own, embedded(again, WAVES), strict=True):
        assert apart(after, before) < 1e-4
    if method == "lora":
        backbone, _ = merged(config, tmp_path / "adapter", torch.float32)
        backbone.save_pretrained(tmp_path / "merged")
        (tmp_path / "merged" / "preprocessor_config.json").write_bytes(
            (folder / "preprocessor_config.json").read_bytes()
        )
    whole = tmp_path / ("merged" if method == "lora" else "adapter")
    assert apart(plain(whole, WAVES[1]), own[1]) < 1e-4
    assert apart(plain(folder, WAVES[1]), own[1]) > 1e-3, "it learned something"


def test_a_folder_of_another_family_or_without_its_preprocessor_is_refused_in_a_line(tmp_path):
    folder = any_encoder.audio(tmp_path / "sound", "wavlm")
    with pytest.raises(
        UserError, match="model_type is 'bert'; the family audio needs 'hubert' or 'wav2vec2'"
    ):
        check_files(config_of(any_encoder.text(tmp_path / "text", "bert")))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config.json: there is no such file"):
        check_files(config_of(folder))
