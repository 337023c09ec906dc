"""``extractors.*.precision``: what ``auto`` stands for, what a GPU may round, and how far features go."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
import torch

from mer_dist.config.config import Config, load
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip
from mer_dist.models import precision
from mer_dist.models.classifier import load_extractor
from mer_dist.models.family import FAMILIES
from mer_dist.shards import shard_index, writer
from mer_dist.shards.encode import encode
from mer_dist.storage.run_folder import ShardFolder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return small_models.make(tmp_path_factory.mktemp("models"), LINES)


def flags() -> tuple:
    backends = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cuda.matmul.fp32_precision == "tf32",
        backends.cudnn.conv.fp32_precision == "tf32",
        backends.cudnn.rnn.fp32_precision == "tf32",
    )


def test_only_tf32_lets_a_gpu_round_float32_and_only_while_it_computes():
    before = flags()
    seen = {}
    for told in ("fp32", "tf32", "bf16"):
        with precision.products(told, GPU):
            seen[told] = flags()
        assert flags() == before
    assert seen["fp32"] == seen["bf16"] == ("highest", *[False] * 5), "cuDNN's convolutions, too"
    assert seen["tf32"] == ("high", *[True] * 5)
    with precision.products("tf32", CPU):
        assert flags() == before, "on a CPU nothing changes"


def test_a_gpu_that_fails_leaves_the_flags_as_they_were():
    before = flags()
    with pytest.raises(ZeroDivisionError), precision.products("tf32", GPU):
        raise ZeroDivisionError
    assert flags() == before


@pytest.mark.parametrize(
    ("gpu", "bf16", "expected"), [(False, False, "fp32"), (True, False, "fp32"), (True, True, "bf16")]
)
def test_auto_is_bf16_where_a_gpu_computes_in_it(monkeypatch, gpu, bf16, expected):
    def supported(including_emulation: bool = True) -> bool:
        return bf16 or including_emulation

    fake = SimpleNamespace(is_available=lambda: gpu, is_bf16_supported=supported)
    monkeypatch.setattr(torch, "cuda", fake)
    assert precision.of_this_machine() == expected


def test_auto_is_the_default_and_stands_for_float32_here(folders):
    config = ExtractorConfig(family="clip", path=str(folders / "clip"))
    assert config.precision == "auto"
    loaded = load_extractor(config)
    assert loaded.config.precision == "fp32" and loaded.backbone.dtype == torch.float32
    assert load_extractor(replace(config, precision="tf32")).backbone.dtype == torch.float32
    with pytest.raises(UserError, match="auto, fp32, tf32, bf16, fp16"):
        replace(config, precision="fp64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantize"), [("clip", "none"), ("hubert", "none"), ("baichuan", "none"), ("clip", "nf4")]
)
def test_weights_read_straight_to_a_device_are_the_same(folders, monkeypatch, family, quantize):
    model_class, places = FAMILIES[family].extractor_class().backbone_class(folders / family), []
    whole = model_class.from_pretrained

    def spied(*told, **options):
        places.append(options["device_map"])
        return whole(*told, **options)

    monkeypatch.setattr(model_class, "from_pretrained", spied)
    config = ExtractorConfig(family=family, path=str(folders / family), quantize=quantize)
    plain, placed = load_extractor(config), load_extractor(config, device=CPU)
    assert places == [None, {"": CPU}]
    own = placed.backbone.state_dict()
    assert own.keys() == plain.backbone.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in plain.backbone.state_dict().items())
    assert not any(hasattr(module, "_hf_hook") for module in placed.modules()), "it is called as it is"


def test_reading_weights_is_told(folders, caplog, monkeypatch):
    monkeypatch.setattr("mer_dist.core.log.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("mer_dist.core.log.logger.propagate", True)
    with caplog.at_level("INFO", "mer_dist"):
        load_extractor(ExtractorConfig(family="clip", path=str(folders / "clip")))
    lines = [record.getMessage() for record in caplog.records]
    assert "weights/s" in lines[0] and lines[0].startswith("reading clip: 1/")
    assert lines[-1].startswith("reading clip: ") and " weights in " in lines[-1]


@pytest.fixture(scope="module")
def shards(folders, tmp_path_factory) -> Config:
    """A run with shards, and the three extractors."""
    folder = tmp_path_factory.mktemp("run")
    draw = np.random.default_rng(0)
    clips = [
        encode(
            Clip(
                name=f"c{number}",
                video=None,
                audio=None,
                transcript=LINES[number % 3] * 4,
                label=None,
                split="unlabeled",
            ),
            frames=[draw.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(3)],
            samples=draw.normal(0, 3000, 8000 + 900 * number).astype(np.int16),
            seconds=0.5,
            face=False,
            missing=[],
            problems=[],
        )
        for number in range(6)
    ]
    sources = {clip.clip.name: "generated" for clip in clips}
    rows = writer.write(folder / "shards", 0, clips, fingerprint="generated", sources=sources)
    shard_index.write_rows(ShardFolder(folder / "shards").index, rows)
    path = folder / "job.yaml"
    extractors = "".join(
        f"  {name}: {{family: {name}, path: {folders}/{name}}}\n" for name in small_models.FAMILIES
    )
    path.write_text(f"run: {{folder: {folder}}}\ncorpus: {{path: none}}\nextractors:\n{extractors}")
    return load(path)


@pytest.mark.slow
def test_features_in_half_precision_lie_close_to_those_in_float32(shards, benchmarks):
    """The benchmark prints these figures for a run's own models and clips."""
    from precision import compared

    found = {(off.extractor, off.precision): off for off in compared(shards)}
    assert len(found) == 9 and all(off.clips == 6 for off in found.values())
    for family in small_models.FAMILIES:
        exact, bf16, fp16 = (found[family, name] for name in ("tf32", "bf16", "fp16"))
        assert exact.difference == 0, "a CPU has no TF32"
        assert 0.999 < bf16.least_cosine <= bf16.cosine < 1
        assert 0 < fp16.difference < bf16.difference < 0.05
