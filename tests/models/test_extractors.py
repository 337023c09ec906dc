"""The extractors: published preprocessing, the baseline's conventions, batches equal to singles."""

from __future__ import annotations

import shutil
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
import torch
from safetensors.torch import load_file

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models.classifier import load_extractor
from mer_dist.models.extractor import Unusable, fitting_batches, mean_by_clip, packed, packing
from mer_dist.models.family import PASS
from mer_dist.models.pixels import Frame
from mer_dist.shards.encode import flac, jpeg
from mer_dist.shards.reader import Sample

pytestmark = pytest.mark.slow

LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]
#: HuBERT-large, the encoder order of HuBERT-base, and HuBERT-base with its norm over time.
HUBERTS = {
    "large": {},
    "base order": {"do_stable_layer_norm": False},
    "base": {"do_stable_layer_norm": False, "feat_extract_norm": "group", "conv_bias": False},
}


def sample(images: int = 3, seconds: float = 1.0, transcript: str | None = LINES[0], seed: int = 0) -> Sample:
    draw = np.random.default_rng(seed)
    frames = [jpeg(draw.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(images)]
    wave = (draw.normal(0, 3000, int(16_000 * seconds))).astype(np.int16)
    return Sample(
        name=f"clip{seed}",
        label=None,
        split="unlabeled",
        transcript=transcript,
        missing=[],
        duration=seconds,
        jpegs=frames,
        flac=flac(wave),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return small_models.make(tmp_path_factory.mktemp("models"), LINES)


def extractor(folders, family: str, **options):
    return load_extractor(ExtractorConfig(family=family, path=str(folders / family), **options))


def run(loaded, samples):
    clips = [loaded.prepare(item) for item in samples]
    with torch.no_grad():
        embeddings, lengths = loaded.embed(**loaded.collate([segment for clip in clips for segment in clip]))
    ends = np.cumsum([0, *map(len, clips)])
    of_clips = [int(lengths[start:end].sum()) for start, end in pairwise(ends)]
    return torch.split(embeddings, of_clips)


@pytest.fixture(scope="module", params=list(HUBERTS))
def hubert(request, tmp_path_factory):
    torch.manual_seed(0)
    return small_models.make_hubert(tmp_path_factory.mktemp("hubert"), **HUBERTS[request.param])


def batch_equals_singles(loaded, samples) -> list[int]:
    together = run(loaded, samples)
    for item, embeddings in zip(samples, together, strict=True):
        (alone,) = run(loaded, [item])
        assert alone.shape == embeddings.shape and torch.isfinite(alone).all()
        assert (alone - embeddings).abs().max() < 1e-4
    return [len(embeddings) for embeddings in together]


def test_a_batch_of_32_clips_from_0_1_to_12_seconds_equals_single_clips(hubert):
    loaded = load_extractor(ExtractorConfig(family="hubert", path=str(hubert)))
    lengths = [0.1, 12.0, *np.random.default_rng(0).uniform(0.1, 3.0, 30)]
    steps = batch_equals_singles(loaded, [sample(0, value, seed=row) for row, value in enumerate(lengths)])
    assert len(steps) == 32 and min(steps) == 4 and max(steps) == 499 + 99


def test_a_batch_of_32_clips_from_1_to_16_frames_equals_single_clips(folders):
    frames = [1 + row % 16 for row in range(32)]
    samples = [sample(count, 0.1, seed=row) for row, count in enumerate(frames)]
    assert batch_equals_singles(extractor(folders, "clip"), samples) == frames


def test_a_batch_of_32_clips_from_1_to_300_tokens_equals_single_clips(folders):
    loaded = extractor(folders, "baichuan", max_tokens=300)
    draw = np.random.default_rng(0)
    texts = ["好" * 400, *("".join(draw.choice(list(LINES[1]), count)) for count in range(1, 94, 3))]
    samples = [sample(0, 0.1, text, seed=row) for row, text in enumerate(texts)]
    tokens = batch_equals_singles(loaded, samples)
    assert len(tokens) == 32 and min(tokens) <= 2 and max(tokens) == 300
    assert len(loaded.prepare(sample(0, 0.1, "走"))[0]) <= 2


def published_and_own_pixels(loaded, processor, height: int, width: int):
    draw = np.random.default_rng(height * width)
    coarse = draw.integers(0, 255, (height // 5 + 1, width // 4 + 1, 3), np.uint8)
    image = np.repeat(np.repeat(coarse, 5, 0), 4, 1)[:height, :width]
    published = processor([image], return_tensors="pt")["pixel_values"]
    mean = torch.tensor(loaded.mean)[:, None, None]
    std = torch.tensor(loaded.std)[:, None, None]
    side = published.shape[-1]
    own = Frame(size=(side, side), shorter=side).resized(image[None]).float() / 255
    return published, (own - mean) / std, std


@pytest.mark.parametrize(
    "height, width", [(224, 224), (112, 112), (256, 256), (360, 640), (640, 360), (225, 224), (50, 301)]
)
def test_frames_are_preprocessed_as_the_published_processor_does(folders, height, width):
    from transformers import CLIPImageProcessorPil

    loaded = extractor(folders, "clip")
    published, own, std = published_and_own_pixels(loaded, CLIPImageProcessorPil(), height, width)
    assert published.shape == own.shape == (1, 3, 224, 224)
    assert ((own - published) * std * 255).round().abs().max() <= 2


def test_the_embedding_of_a_real_sized_vision_tower_is_the_published_one(folders):
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    tower = CLIPVisionModelWithProjection(config).eval()
    assert sum(weight.numel() for weight in tower.parameters()) > 300e6
    loaded = extractor(folders, "clip")
    published, own, _ = published_and_own_pixels(loaded, CLIPImageProcessorPil(), 360, 500)
    with torch.inference_mode():
        theirs, ours = tower(torch.cat([published, own])).image_embeds
    assert torch.cosine_similarity(theirs, ours, dim=0) >= 0.9999


def test_clip_features_are_the_projected_embedding_of_each_frame_in_order(folders):
    from transformers import CLIPModel

    loaded = extractor(folders, "clip")
    item = sample(images=4)
    (embeddings,) = run(loaded, [item])
    model = CLIPModel.from_pretrained(folders / "clip").eval()
    for frame in range(4):
        seen = Frame(size=(32, 32), shorter=32)
        pixels = seen.resized(item.images()[frame : frame + 1]).float() / 255
        mean, std = torch.tensor(loaded.mean), torch.tensor(loaded.std)
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        with torch.no_grad():
            states = model.vision_model(pixels).pooler_output
            expected = model.visual_projection(states)[0]
        assert (embeddings[frame] - expected).abs().max() < 1e-5


def test_hubert_gives_the_sum_of_the_last_four_states_of_the_published_model(hubert):
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    loaded = load_extractor(ExtractorConfig(family="hubert", path=str(hubert)))
    item = sample(seconds=2.0)
    (embeddings,) = run(loaded, [item])
    processor = Wav2Vec2FeatureExtractor.from_pretrained(hubert)
    values = processor(item.waveform(), sampling_rate=16_000, return_tensors="pt").input_values
    model = HubertModel.from_pretrained(hubert).eval()
    with torch.no_grad():
        out = model(values, output_hidden_states=True)
    # As before transformers 5, the last state is the one after the final norm.
    expected = (sum(out.hidden_states[-4:-1]) + out.last_hidden_state)[0]
    assert (embeddings - expected).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [0, 1, 3000])
@pytest.mark.parametrize("seconds", [0.03, 1.0, 9.7])
def test_audio_is_normalised_bit_for_bit_as_published(folders, scale, seconds):
    from transformers import Wav2Vec2FeatureExtractor

    wave = (np.random.default_rng(0).normal(0.3, 1, int(16_000 * seconds)) * scale).astype(np.int16)
    item = sample()
    item.flac = flac(wave)
    (own,) = extractor(folders, "hubert").prepare(item)
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folders / "hubert")
    values = processor(item.waveform(), sampling_rate=16_000, return_tensors="pt").input_values
    assert torch.equal(own, values[0])


def test_long_audio_is_cut_into_windows_and_a_short_rest_is_left_out(folders):
    loaded = extractor(folders, "hubert", window=1.0)
    rows = loaded.prepare(sample(seconds=2.01))
    assert [len(row) for row in rows] == [16_000, 16_000]
    (embeddings,) = run(loaded, [sample(seconds=2.5)])
    one, _, half = (run(loaded, [sample(seconds=value)])[0] for value in (1.0, 2.0, 0.5))
    assert len(embeddings) == 2 * len(one) + len(half)


def test_too_little_input_is_refused_with_a_reason_not_fed(folders):
    with pytest.raises(Unusable, match="399 audio samples"):
        extractor(folders, "hubert").prepare(sample(seconds=399 / 16_000))
    with pytest.raises(Unusable, match="no token"):
        extractor(folders, "baichuan").prepare(sample(transcript=""))
    with pytest.raises(Unusable, match="no frame"):
        extractor(folders, "clip").prepare(sample(images=0))


def test_long_transcripts_are_cut_and_counted(folders):
    loaded = extractor(folders, "baichuan", max_tokens=5)
    loaded.prepare(sample(transcript="走"))
    assert loaded.note() == ""
    for _ in range(2):  # a clip that is read again is still one clip
        assert [len(ids) for ids in loaded.prepare(sample(transcript=LINES[1]))] == [5]
    count = len(loaded.tokenizer.encode(LINES[1]))
    assert loaded.note() == (
        f"1 transcripts were longer than max_tokens 5 and were cut, the longest had {count}"
    )


def test_utterance_is_the_mean_over_each_clips_own_vectors():
    embeddings = torch.arange(12.0).reshape(6, 2)
    mean = mean_by_clip(embeddings, torch.tensor([1, 3, 2]))
    assert mean.tolist() == [[0, 1], [4, 5], [9, 10]]


def test_sums_by_clip_and_packing_have_the_bits_of_what_a_gpu_would_wait_for():
    """``index_add`` and a mask as index: on a GPU sums in any order, and counts that are read back."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (30,), generator=draw)
    mask = torch.arange(40) < lengths[:, None]
    rows = torch.randn(30, 40, 8, generator=draw, requires_grad=True)
    told = packing(mask)
    assert torch.equal(told["lengths"], lengths)
    embeddings = packed(rows, told["real"])
    assert torch.equal(embeddings, rows[mask])
    segments = torch.tensor([3, 1, 6, 20])
    of_clips = torch.stack([part.sum() for part in lengths.split(segments.tolist())])
    owner = torch.repeat_interleave(torch.arange(4), of_clips)
    wanted = torch.zeros(4, 8).index_add(0, owner, rows[mask]) / of_clips[:, None]
    mean = mean_by_clip(embeddings, of_clips)
    assert torch.equal(mean, wanted)
    weight = torch.randn(4, 8, generator=draw)
    (gradient,), (same,) = (torch.autograd.grad((value * weight).sum(), rows) for value in (mean, wanted))
    assert torch.equal(gradient, same)


def test_what_a_pass_costs_is_known_before_decoding(folders):
    """Frames one by one, sound in windows, and a line as its tokens: what prepare then makes."""
    sound, line = sample(seconds=2.5), sample(transcript=LINES[1])
    row = SimpleNamespace(samples=40_000, frames=5, transcript=LINES[1], missing=())
    for family, settings, clip in (
        ("hubert", {"window": 1.0}, sound),
        ("baichuan", {}, line),
        ("baichuan", {"max_tokens": 3}, line),
        ("clip", {"frames": 4}, sample(images=5)),
    ):
        loaded = extractor(folders, family, **settings)
        lengths = [loaded.length(segment) for segment in loaded.prepare(clip)]
        assert loaded.shape(row) == (len(lengths), max(lengths)), family


def cost_of(batches: list[list[int]], lengths: list[float], budget: float) -> float:
    return sum(len(batch) * max(lengths[place] for place in batch) + PASS * budget for batch in batches)


def test_pieces_are_batched_at_the_least_cost_and_within_the_budget():
    draw = np.random.default_rng(0)
    for _ in range(20):
        lengths = draw.integers(1, 40, 9).tolist()
        batches = fitting_batches(lengths, 64)
        assert sorted(place for batch in batches for place in batch) == list(range(9))
        assert all(len(batch) * max(lengths[place] for place in batch) <= 64 for batch in batches)
        # Every way to cut the sorted pieces, tried out.
        order = sorted(range(9), key=lengths.__getitem__)
        ways = []
        for cuts in product((False, True), repeat=8):
            edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), 9]
            ways.append([order[start:end] for start, end in pairwise(edges)])
        allowed = [way for way in ways if all(len(b) * lengths[b[-1]] <= 64 for b in way)]
        least = min(cost_of(way, lengths, 64) for way in allowed)
        assert cost_of(batches, lengths, 64) == pytest.approx(least)
    assert fitting_batches([5.0, 300.0, 4.0], 100) == [[2, 0], [1]]
    assert fitting_batches([2.0, 1.0], 0) == [[1], [0]] and fitting_batches([], 10) == []


def test_published_hubert_weights_with_the_names_of_older_torch_load_the_same(hubert, tmp_path):
    """The published ``.bin`` spells the weight norm as ``weight_g`` and ``weight_v``."""
    shutil.copytree(hubert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(hubert / "model.safetensors")
    renamed = dict(state)
    for new, old in older.items():
        (name,) = [name for name in renamed if name.endswith(new)]
        renamed[name.replace(new, old)] = renamed.pop(name)
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    own, published = (
        load_extractor(ExtractorConfig(family="hubert", path=str(folder))) for folder in (hubert, tmp_path)
    )
    for (name, one), other in zip(own.named_parameters(), published.parameters(), strict=True):
        assert torch.equal(one, other), name
