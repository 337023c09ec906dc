"""The extractors: published preprocessing, the baseline's conventions, batches equal to singles."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
import torch

from mer_dist.config import ExtractorConfig
from mer_dist.errors import UserError
from mer_dist.models.classifier import load_extractor
from mer_dist.models.clip import resize
from mer_dist.models.extractor import Unusable, mean_by_clip
from mer_dist.shards.encode import flac, jpeg
from mer_dist.shards.reader import Sample

LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]


def sample(images: int = 3, seconds: float = 1.0, transcript: str | None = LINES[0], seed: int = 0) -> Sample:
    draw = np.random.default_rng(seed)
    frames = [jpeg(draw.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(images)]
    wave = (draw.normal(0, 3000, int(16_000 * seconds))).astype(np.int16)
    return Sample(
        name=f"clip{seed}", label=None, split="unlabeled", transcript=transcript, missing=[],
        duration=seconds, jpegs=frames, flac=flac(wave),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return small_models.make(tmp_path_factory.mktemp("models"), LINES)


def extractor(folders, family: str, **options):
    return load_extractor(ExtractorConfig(family=family, path=str(folders / family), **options))


def run(loaded, samples):
    batch = loaded.collate([loaded.prepare(item) for item in samples])
    with torch.no_grad():
        vectors, lengths = loaded.vectors(**batch)
    return torch.split(vectors, lengths.tolist())


@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_a_batch_of_very_different_lengths_equals_single_clips(folders, family):
    loaded = extractor(folders, family)
    samples = [
        sample(images=1 + 4 * row, seconds=0.1 + 1.3 * row, transcript=line, seed=row)
        for row, line in enumerate(LINES)
    ]
    together = run(loaded, samples)
    for item, vectors in zip(samples, together, strict=True):
        (alone,) = run(loaded, [item])
        assert alone.shape == vectors.shape
        assert (alone - vectors).abs().max() < 1e-4
    lengths = {len(vectors) for vectors in together}
    assert len(lengths) == 3


def test_frames_are_preprocessed_as_the_published_processor_does(folders):
    from transformers import CLIPImageProcessorPil

    loaded = extractor(folders, "clip")
    images = np.random.default_rng(0).integers(0, 255, (2, 50, 64, 3), np.uint8)
    images = np.repeat(np.repeat(images[:, ::5, ::4], 5, 1), 4, 2)  # not pure noise
    ours = resize(images, 32).float() / 255
    theirs = CLIPImageProcessorPil.from_pretrained(folders / "clip")(list(images), return_tensors="pt")
    mean = torch.tensor(loaded.mean)[:, None, None]
    deviation = torch.tensor(loaded.deviation)[:, None, None]
    back = theirs["pixel_values"] * deviation + mean
    assert (ours - back).abs().max() <= 2 / 255


def test_clip_features_are_the_projected_embedding_of_each_frame_in_order(folders):
    from transformers import CLIPModel

    loaded = extractor(folders, "clip")
    item = sample(images=4)
    (vectors,) = run(loaded, [item])
    model = CLIPModel.from_pretrained(folders / "clip").eval()
    for frame in range(4):
        pixels = resize(item.images()[frame : frame + 1], 32).float() / 255
        mean, deviation = torch.tensor(loaded.mean), torch.tensor(loaded.deviation)
        pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
        with torch.no_grad():
            states = model.vision_model(pixels).pooler_output
            expected = model.visual_projection(states)[0]
        assert (vectors[frame] - expected).abs().max() < 1e-5


def test_audio_is_normalised_over_the_whole_clip_and_the_last_four_states_are_summed(folders):
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    loaded = extractor(folders, "hubert")
    item = sample(seconds=2.0)
    (vectors,) = run(loaded, [item])
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folders / "hubert")
    values = processor(item.waveform(), sampling_rate=16_000, return_tensors="pt").input_values
    model = HubertModel.from_pretrained(folders / "hubert").eval()
    with torch.no_grad():
        states = model(values, output_hidden_states=True).hidden_states
    expected = sum(states[-4:])[0]
    assert (vectors - expected).abs().max() < 1e-4


def test_long_audio_is_cut_into_windows_and_a_short_rest_is_left_out(folders):
    loaded = extractor(folders, "hubert", window=1.0)
    rows = loaded.prepare(sample(seconds=2.01))
    assert [len(row) for row in rows] == [16_000, 16_000]
    (vectors,) = run(loaded, [sample(seconds=2.5)])
    one, _, half = (run(loaded, [sample(seconds=value)])[0] for value in (1.0, 2.0, 0.5))
    assert len(vectors) == 2 * len(one) + len(half)


def test_too_little_input_is_refused_with_a_reason_not_fed(folders):
    with pytest.raises(Unusable, match="399 audio samples"):
        extractor(folders, "hubert").prepare(sample(seconds=399 / 16_000))
    with pytest.raises(Unusable, match="no token"):
        extractor(folders, "baichuan").prepare(sample(transcript=""))
    with pytest.raises(Unusable, match="no frame"):
        extractor(folders, "clip").prepare(sample(images=0))


def test_long_transcripts_are_cut(folders):
    loaded = extractor(folders, "baichuan", max_tokens=5)
    assert len(loaded.prepare(sample(transcript=LINES[1]))) == 5


def test_utterance_is_the_mean_over_each_clips_own_vectors():
    vectors = torch.arange(12.0).reshape(6, 2)
    mean = mean_by_clip(vectors, torch.tensor([1, 3, 2]))
    assert mean.tolist() == [[0, 1], [4, 5], [9, 10]]


@pytest.mark.parametrize("family", ["clip", "hubert", "baichuan"])
def test_a_broken_model_folder_is_one_clear_line(folders, tmp_path, family):
    with pytest.raises(UserError, match="missing"):
        load_extractor(ExtractorConfig(family=family, path=str(tmp_path / "nowhere")))
    for source in (folders / family).iterdir():
        content = source.read_bytes()
        cut = content[: len(content) // 2] if source.suffix == ".safetensors" else content
        (tmp_path / source.name).write_bytes(cut)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_extractor(ExtractorConfig(family=family, path=str(tmp_path)))
