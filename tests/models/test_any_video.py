"""The family ``video``: every architecture gives what plain transformers computes of a window of frames, learns, and loads
again elsewhere."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import any_encoder
import numpy as np
import pytest
import torch
from any_encoder import VIDEO, apart, embedded, fine_tuned
from PIL import Image

from mer_dist.core.errors import UserError
from mer_dist.models.classifier import check_files, load_extractor
from mer_dist.models.extractor import Unusable
from mer_dist.models.video import windows
from mer_dist.models.video_family import VIDEO as FACTS

pytestmark = pytest.mark.slow
ALWAYS = ("vjepa2",)
every_type = pytest.mark.parametrize(
    "model_type", [own if own in ALWAYS else pytest.param(own, marks=pytest.mark.long) for own in VIDEO]
)
config_of = partial(any_encoder.config_of, "video")


def clip(frames: int, seed: int = 0) -> SimpleNamespace:
    """Smooth pictures, as frames are: (T, 48, 60, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 255, (frames, 6, 8, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize((60, 48), Image.Resampling.BICUBIC)) for one in coarse]
        or [np.zeros((0, 0, 0), np.uint8)]
    )[:frames]
    return SimpleNamespace(images=lambda count: images[:: max(1, frames // count)] if count else images)


@torch.no_grad()
def plain(folder, pixels: torch.Tensor) -> torch.Tensor:
    """(D,) of a window of bytes (T, 3, H, W), by transformers alone."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    kind = model.config.model_type
    mean, std = (torch.tensor(own)[:, None, None] for own in ([0.5, 0.4, 0.45], [0.25, 0.3, 0.27]))
    values = pixels[None] / 255
    if kind == "vivit":
        values = values * 2 - 1
    more = {"skip_predictor": True} if kind == "vjepa2" else {}
    states = model((values - mean) / std, **more).last_hidden_state[0]
    return states[0] if kind in ("vivit", "timesformer") else states.mean(0)


def test_every_type_of_the_family_is_tried():
    assert {*VIDEO} == {*FACTS.model_types}


@every_type
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, model_type):
    folder = any_encoder.video(tmp_path, model_type)
    extractor = load_extractor(config_of(folder))
    clips = [clip(extractor.window, seed) for seed in range(3)]
    pixels = [extractor.prepare(own)[0] for own in clips]
    assert all(own.shape == (extractor.window, 3, 32, 32) and own.dtype == torch.uint8 for own in pixels)
    together = embedded(extractor, clips)
    for own, window, found in zip(clips, pixels, together, strict=True):
        assert found.shape == (1, extractor.width)
        assert apart(found[0], plain(folder, window)) < 1e-4
        assert apart(embedded(extractor, [own])[0], found) < 1e-4
    assert apart(together[0], together[1]) > 0.01


@every_type
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(
    tmp_path, model_type, method
):
    folder = any_encoder.video(tmp_path / "base", model_type)
    base = load_extractor(config_of(folder))
    clips = [clip(base.window, seed) for seed in range(4)]
    rate = {"lora": 1e-2, "full": 1e-3}[method]
    whole, own = fine_tuned(config_of(folder), method, clips, [0, 1, 1, 0], tmp_path, rate)
    window = base.prepare(clips[1])[0]
    assert apart(plain(whole, window), own[1][0]) < 1e-4
    assert apart(plain(folder, window), own[1][0]) > 1e-3, "it learned something"


def test_windows_show_every_frame_and_too_few_frames_are_repeated_and_told(tmp_path):
    assert [own.tolist() for own in windows(4, 4)] == [[0, 1, 2, 3]]
    assert [own.tolist() for own in windows(6, 4)] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert [own.tolist() for own in windows(9, 4)] == [[0, 1, 2, 3], [2, 3, 4, 5], [5, 6, 7, 8]]
    assert [own.tolist() for own in windows(3, 4)] == [[0, 0, 1, 2]]
    assert [own.tolist() for own in windows(1, 4)] == [[0, 0, 0, 0]]
    extractor = load_extractor(config_of(any_encoder.video(tmp_path, "videomae")))
    assert [len(embedded(extractor, [clip(frames)])) for frames in (4, 6, 9)] == [1, 2, 3]
    assert extractor.note() == ""
    assert (
        extractor.shape(SimpleNamespace(frames=9)) == (3, 4)
        and extractor.cost(SimpleNamespace(frames=9)) == 12
    )
    short = extractor.prepare(clip(3))[0]
    assert torch.equal(short[0], short[1]) and not torch.equal(short[1], short[2])
    assert extractor.note().startswith("1 clips have fewer frames than the 4 that the model sees at once")
    with pytest.raises(Unusable, match="no frame"):
        extractor.prepare(clip(0))


def test_v_jepa_2_takes_as_many_frames_at_once_as_are_asked_for(tmp_path):
    folder = any_encoder.video(tmp_path, "vjepa2")
    assert [load_extractor(config_of(folder, frames=frames)).window for frames in (0, 1, 5, 6, 64)] == [
        8,
        2,
        4,
        6,
        8,
    ]
    extractor = load_extractor(config_of(folder, frames=4))
    (window,) = extractor.prepare(clip(8))
    assert len(window) == 4 and apart(embedded(extractor, [clip(8)])[0][0], plain(folder, window)) < 1e-4


def test_what_is_no_model_of_video_or_lacks_its_preprocessor_is_refused_in_a_line(tmp_path):
    folder = any_encoder.video(tmp_path / "video", "vivit")
    assert load_extractor(config_of(folder, pooling="mean")).pooling == "mean"
    (folder / "preprocessor_config.json").rename(folder / "video_preprocessor_config.json")
    check_files(config_of(folder))
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"size": 3}))
    with pytest.raises(
        UserError, match="video_preprocessor_config.json: size, crop_size, resample, image_mean"
    ):
        load_extractor(config_of(folder))
    (folder / "video_preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="there is neither preprocessor_config.json nor video_preproc"):
        check_files(config_of(folder))
    with pytest.raises(UserError, match="model_type is 'vit'; the family video needs 'vivit' or"):
        check_files(config_of(any_encoder.image(tmp_path / "image", "vit")))
