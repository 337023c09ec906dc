"""The family ``image``: every architecture gives what plain transformers computes, learns, and loads again elsewhere."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import any_encoder
import numpy as np
import pytest
import torch
from any_encoder import IMAGE, apart, embedded, fine_tuned
from PIL import Image

from mer_dist.core.errors import UserError
from mer_dist.models.classifier import check_files, load_extractor
from mer_dist.models.image_family import CLASS_TOKEN
from mer_dist.models.image_family import IMAGE as FACTS

pytestmark = pytest.mark.slow
ALWAYS = ("siglip2",)
every_type = pytest.mark.parametrize(
    "model_type", [own if own in ALWAYS else pytest.param(own, marks=pytest.mark.long) for own in IMAGE]
)


def pictures(seed: int = 0) -> np.ndarray:
    """Smooth ones, as frames are: (5, 48, 60, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 6, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((60, 48), Image.Resampling.BICUBIC)) for one in coarse]
    )


config_of = partial(any_encoder.config_of, "image")


def clip(images: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(images=lambda _: images)


def of_frames(extractor, images: np.ndarray) -> torch.Tensor:
    """(T, D)"""
    return torch.cat(embedded(extractor, [clip(images)]))


def preprocessed(images: np.ndarray, model_type: str) -> torch.Tensor:
    """(T, 3, H, W) by PIL, as the preprocessors of transformers do without torchvision."""
    more = IMAGE[model_type][1]
    kind = {2: Image.Resampling.BILINEAR}.get(more.get("resample", 3), Image.Resampling.BICUBIC)
    size = (50, 40) if more.get("do_center_crop") else (32, 24) if "max_num_patches" in more else (32, 32)
    scaled = np.stack([np.asarray(Image.fromarray(one).resize(size, kind)) for one in images])
    if more.get("do_center_crop"):
        scaled = scaled[:, 4:36, 9:41]
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


@torch.no_grad()
def plain(folder, pixels: torch.Tensor) -> torch.Tensor:
    """Of bytes (T, 3, H, W), by transformers alone."""
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    mean, std = (torch.tensor(own)[:, None, None] for own in ([0.5, 0.4, 0.45], [0.25, 0.3, 0.27]))
    values = (pixels / 255 - mean) / std
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind == "clip_vision_model":
        return CLIPVisionModelWithProjection.from_pretrained(folder)(values).image_embeds
    model = AutoModel.from_pretrained(folder).eval()
    if kind in ("clip", "chinese_clip"):
        return model.get_image_features(values).pooler_output
    tower = getattr(model, "vision_model", model)
    if kind.startswith("siglip2"):
        patches = np.stack([convert_image_to_patches(one.numpy(), 8) for one in values])
        seen = np.pad(patches, ((0, 0), (0, 4), (0, 0)))
        real = torch.arange(seen.shape[1]).expand(len(seen), -1) < patches.shape[1]
        shapes = torch.tensor([[pixels.shape[2] // 8, pixels.shape[3] // 8]] * len(seen))
        return tower(torch.from_numpy(seen), real.int(), shapes).pooler_output
    out = tower(values)
    return out.last_hidden_state[:, 0] if kind in CLASS_TOKEN else out.pooler_output


def test_every_type_of_the_family_is_tried():
    assert {*IMAGE} == {*FACTS.model_types}


@every_type
def test_features_are_those_of_plain_transformers_and_do_not_depend_on_the_batch(tmp_path, model_type):
    folder = any_encoder.image(tmp_path, model_type)
    extractor = load_extractor(config_of(folder))
    images = pictures()
    pixels = torch.stack(extractor.prepare(clip(images)))
    assert pixels.dtype == torch.uint8
    assert (pixels.int() - preprocessed(images, model_type).int()).abs().max() <= 1
    found = of_frames(extractor, images)
    assert found.shape == (5, extractor.width) and apart(found, plain(folder, pixels)) < 1e-4
    for row in range(5):
        assert apart(of_frames(extractor, images[row : row + 1]), found[row : row + 1]) < 1e-4
    assert apart(found[:1], found[1:2]) > 0.05


@every_type
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_it_learned_loads_again_and_as_a_model_of_transformers(
    tmp_path, model_type, method
):
    folder = any_encoder.image(tmp_path / "base", model_type)
    images = pictures()
    whole, own = fine_tuned(config_of(folder), method, [clip(images)], [0, 1, 1, 0, 1], tmp_path)
    pixels = torch.stack(load_extractor(config_of(folder)).prepare(clip(images)))
    assert apart(plain(whole, pixels), torch.cat(own)) < 1e-4
    assert apart(plain(folder, pixels), torch.cat(own)) > 1e-3, "it learned something"


def test_a_preprocessor_that_says_no_size_is_refused_in_a_line(tmp_path):
    folder = any_encoder.image(tmp_path, "vit")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"size"', '"sizes"'))
    with pytest.raises(UserError, match="size, crop_size, resample, image_mean and image_std are not there"):
        load_extractor(config_of(folder))
    path.unlink()
    with pytest.raises(UserError, match="preprocessor_config.json: there is no such file"):
        check_files(config_of(folder))


@pytest.mark.parametrize("model_type", ["siglip", "dinov3_vit"])
def test_pooling_is_that_which_is_asked_for(tmp_path, model_type):
    from transformers import AutoModel

    folder = any_encoder.image(tmp_path, model_type)
    extractor = load_extractor(config_of(folder, pooling="mean"))
    images = pictures()
    pixels = torch.stack(extractor.prepare(clip(images)))
    mean, std = (torch.tensor(own)[:, None, None] for own in ([0.5, 0.4, 0.45], [0.25, 0.3, 0.27]))
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = getattr(model, "vision_model", model)((pixels / 255 - mean) / std).last_hidden_state
    patches = states if model_type == "siglip" else states[:, 3:]
    assert patches.shape[1] == 16 and apart(of_frames(extractor, images), patches.mean(1)) < 1e-4
    if model_type == "siglip":
        with pytest.raises(
            UserError, match="pooling is 'class'; for the model in .* it is one of pooled, mean"
        ):
            load_extractor(config_of(folder, pooling="class"))
    with pytest.raises(UserError, match="layers: the family image has no layers to choose"):
        load_extractor(config_of(folder, layers=[1]))


def test_a_pooler_may_be_missing_only_where_it_is_not_read(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = any_encoder.image(tmp_path, "vit")
    path = folder / "model.safetensors"
    save_file(
        {name: own for name, own in load_file(path).items() if not name.startswith("pooler.")},
        path,
        {"format": "pt"},
    )
    assert of_frames(load_extractor(config_of(folder)), pictures()).shape == (5, 32)
    with pytest.raises(UserError, match=r"its weights lack pooler\.dense"):
        load_extractor(config_of(folder, pooling="pooled"))


@pytest.mark.parametrize(("model_type", "fits"), [("vit", False), ("siglip", False), ("dinov2", True)])
def test_a_preprocessor_of_other_pictures_than_the_model_sees_is_refused_in_a_line(
    tmp_path, model_type, fits
):
    folder = any_encoder.image(tmp_path, model_type)
    path = folder / "preprocessor_config.json"
    other = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    if fits:  # Its positions are fitted to any size.
        assert of_frames(load_extractor(config_of(folder)), pictures()).shape == (5, 32)
        return
    with pytest.raises(UserError, match="makes pictures of 16 x 16 pixels, and the model sees 32 x 32"):
        load_extractor(config_of(folder))
