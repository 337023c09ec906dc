"""The small models load as the published ones do, and are fast enough for a demo on a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mer_dist import cli
from mer_dist.demo import corpus, models
from mer_dist.storage import files

pytestmark = pytest.mark.slow

LINES = [f"今天是{number}号，我们去公园，天气很好。" for number in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    models.make(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_clip_loads_with_its_own_classes(folder):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder / "clip", local_files_only=True).eval()
    settings = json.loads((folder / "clip" / "preprocessor_config.json").read_text())
    side = settings["crop_size"]["height"]
    assert side == settings["size"]["shortest_edge"] == model.config.vision_config.image_size
    with torch.inference_mode():
        pixels = torch.randn(2, 3, side, side)
        embedding = model.visual_projection(model.vision_model(pixels).pooler_output)
    assert embedding.shape == (2, model.config.projection_dim)
    assert embedding.std(0).mean() > 0.05


def test_hubert_loads_and_sees_400_samples_every_320(folder):
    from transformers import AutoFeatureExtractor, HubertModel

    model = HubertModel.from_pretrained(folder / "hubert", local_files_only=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder / "hubert", local_files_only=True)
    assert extractor.do_normalize and extractor.sampling_rate == 16_000
    assert model.config.feat_extract_norm == "layer" and model.config.do_stable_layer_norm
    with torch.inference_mode():
        for samples, steps in ((400, 1), (719, 1), (720, 2), (16_000, 49)):
            states = model(torch.randn(1, samples), output_hidden_states=True).hidden_states
            assert states[-1].shape[1] == steps
    assert len(states) >= 5


def test_baichuan_loads_with_its_tokenizer_in_the_published_layout(folder):
    from mer_dist.models.baichuan import BaichuanForCausalLM
    from mer_dist.models.tokenizer import BaichuanTokenizer

    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ):
        assert (folder / "baichuan" / name).exists(), name
    tokenizer = BaichuanTokenizer.from_pretrained(folder / "baichuan")
    model = BaichuanForCausalLM.from_pretrained(folder / "baichuan", local_files_only=True).eval()
    ids = tokenizer.encode("我好开心啊，🙂")
    assert tokenizer.decode(ids) == "我好开心啊,🙂"
    assert max(ids) < model.config.vocab_size == len(tokenizer)
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert len(states) >= 5 and bool(torch.isfinite(states[-1]).all())


def test_a_second_call_keeps_the_files_and_another_seed_gives_other_weights(folder, tmp_path):
    before = {path: files.size_and_mtime(path) for path in folder.rglob("*") if path.is_file()}
    models.make(folder)
    assert {path: files.size_and_mtime(path) for path in folder.rglob("*") if path.is_file()} == before
    models.make(tmp_path, LINES, seed=1)
    for name in ("clip", "hubert", "baichuan"):
        weights = f"{name}/model.safetensors"
        assert files.digest(folder / weights) != files.digest(tmp_path / weights)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_seed_gives_the_same_weights_with_any_threads_and_random_state(folder, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.rand(7)
    state = torch.get_rng_state()
    models.make(tmp_path)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for name in ("clip", "hubert", "baichuan"):
        weights = f"{name}/model.safetensors"
        assert files.digest(folder / weights) == files.digest(tmp_path / weights)


def test_hubert_tells_angry_from_sad_voices_it_never_heard(folder):
    """What makes the frozen audio features worth something: chance is 0.5."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import HubertModel

    model = HubertModel.from_pretrained(folder / "hubert", local_files_only=True).eval()
    sketches = [
        corpus.Sketch(name=f"{emotion}{number}", split="labeled", emotion=emotion, seed=0)
        for number in range(30)
        for emotion in ("angry", "sad")
    ]

    def vector(wave: np.ndarray) -> np.ndarray:
        wave = torch.from_numpy((wave - wave.mean()) / wave.std())[None]
        with torch.inference_mode():
            states = model(wave, output_hidden_states=True).hidden_states
        return torch.stack(states[-4:]).sum(0)[0].mean(0).numpy()

    embeddings = np.stack([vector(corpus.voice(sketch)) for sketch in sketches])
    labels = [sketch.emotion for sketch in sketches]
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    assert cross_val_score(linear, embeddings, labels, cv=3).mean() > 0.7


def test_the_command_writes_the_models_without_the_corpus(folder, tmp_path):
    assert cli.main(["demo", str(tmp_path), "--models-only"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    for name in ("clip", "hubert", "baichuan"):
        weights = f"{name}/model.safetensors"
        assert files.digest(tmp_path / "models" / weights) == files.digest(folder / weights)
