"""The family ``audio``: every architecture gives what plain transformers computes, alone as in a batch, learns, and loads
again elsewhere."""

from __future__ import annotations

from functools import partial

import any_encoder
import numpy as np
import pytest
import torch
from any_encoder import AUDIO, SPECTROGRAM, apart, embedded, fine_tuned, heard, noises

from mer_dist.core.errors import UserError
from mer_dist.models.audio_family import AUDIO as FACTS
from mer_dist.models.classifier import check_files, load_extractor

pytestmark = pytest.mark.slow
#: The one with most quirks always, the others in the long suite.
ALWAYS = ("data2vec-audio",)
every_case = pytest.mark.parametrize(
    "case", [own if own in ALWAYS else pytest.param(own, marks=pytest.mark.long) for own in AUDIO]
)
WAVES = noises(16_000, 9_000, 400, 23_456)
config_of = partial(any_encoder.config_of, "audio")


CLIPS = [*map(heard, WAVES)]


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
    assert {model_type for model_type, _ in AUDIO.values()} | {*SPECTROGRAM} == {*FACTS.model_types}


@every_case
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, case):
    folder = any_encoder.audio(tmp_path, case)
    extractor = load_extractor(config_of(folder))
    together = embedded(extractor, CLIPS)
    assert extractor.width == 32 and [len(one) for one in together] == [49, 27, 1, 73]
    for wave, found in zip(WAVES, together, strict=True):
        assert apart(found, plain(folder, wave)) < 1e-4
        assert apart(found, embedded(extractor, [heard(wave)])[0]) < 1e-4
    assert apart(together[0].mean(0), together[1].mean(0)) > 0.05


@every_case
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(tmp_path, case, method):
    folder = any_encoder.audio(tmp_path / "base", case)
    whole, own = fine_tuned(config_of(folder), method, CLIPS, [0, 1, 1, 0], tmp_path)
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
