"""What would keep a GPU waiting or copying in a forward pass, found without one."""

from __future__ import annotations

from collections import Counter

import pytest
import small_models
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mer_dist.config.sections import ExtractorConfig
from mer_dist.models import baichuan
from mer_dist.models.baichuan import BaichuanConfig, BaichuanModel, BaichuanRMSNorm, alibi_columns
from mer_dist.models.classifier import load_extractor

LINES = ["今天真好", "你说什么，我没有听见，你再说一次好不好", "走"]


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for its GPU: numbers read back, masks whose size must be known, and
    lists of Python sent as tensors."""

    def __init__(self):
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        places = args[1] if name == "index.Tensor" else ()
        if (
            name
            in (
                "_local_scalar_dense.default",
                "nonzero.default",
                "masked_select.default",
                "lift_fresh.default",
            )
            or any(place is not None and place.dtype == torch.bool for place in places)
            or (name == "repeat_interleave.Tensor" and not (kwargs or {}).get("output_size"))
        ):
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return small_models.make(tmp_path_factory.mktemp("models"), LINES)


def segments(extractor, lengths: list[int]) -> list:
    if extractor.unit == "frames":
        return [torch.zeros(3, extractor.side, extractor.side, dtype=torch.uint8) for _ in lengths]
    if extractor.unit == "seconds":
        return [torch.randn(1000 * length) for length in lengths]
    return [[5] * length for length in lengths]


@pytest.mark.parametrize(
    ("family", "lengths", "seen"),
    [
        ("clip", [1, 1], {}),
        ("hubert", [9, 9], {}),
        ("baichuan", [9, 4], {"lift_fresh.default": 1}),  # the slopes, which are sent without waiting
    ],
)
def test_a_forward_pass_never_asks_the_device_how_much_there_is(folders, family, lengths, seen):
    extractor = load_extractor(ExtractorConfig(family=family, path=str(folders / family)))
    batch = extractor.collate(segments(extractor, lengths))
    with torch.no_grad():  # in inference mode the counter misses some
        extractor.embed(**batch)
        with Waits() as waits:
            embeddings, counts = extractor.embed(**batch)
    assert waits.seen == seen
    assert len(embeddings) == counts.sum()


def test_hubert_is_given_a_mask_only_where_something_is_padded(folders):
    extractor = load_extractor(ExtractorConfig(family="hubert", path=str(folders / "hubert")))
    equal, padded = (extractor.collate(segments(extractor, lengths)) for lengths in ([9, 9], [9, 4]))
    assert "mask" not in equal and padded["mask"].sum(1).tolist() == [9000, 4000]
    with torch.inference_mode():
        without, _ = extractor.embed(**equal)
        given, _ = extractor.embed(**equal, mask=torch.ones(2, 9000, dtype=torch.bool))
    assert torch.equal(without, given)


def small(layers: int = 3, heads: int = 4, width: int = 32) -> BaichuanModel:
    torch.manual_seed(0)
    return BaichuanModel(
        BaichuanConfig(
            vocab_size=60,
            hidden_size=width,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            initializer_range=0.3,
        )
    ).eval()


def test_the_bias_is_made_once_for_all_layers(monkeypatch):
    made = []

    def counted(*told):
        made.append(told)
        return alibi_columns(*told)

    monkeypatch.setattr(baichuan, "alibi_columns", counted)
    small()(torch.randint(3, 60, (2, 9)))
    assert len(made) == 1


@pytest.mark.parametrize(("head_width", "columns"), [(128, 8), (16, 8), (6, 2), (7, 9)])
def test_on_a_gpu_heads_have_a_width_that_its_kernels_take_as_it_is(head_width, columns):
    found = alibi_columns([0.5, 0.25], head_width, 0, 5, torch.bfloat16, torch.device("meta"))
    assert found.shape == (3, 2, 5, columns) and (head_width + columns) % 8 == 0
    here = alibi_columns([0.5, 0.25], head_width, 0, 5, torch.bfloat16, torch.device("cpu"))
    assert here.shape == (3, 2, 5, 2), "on a CPU nothing is filled up"


def test_zeros_beside_the_bias_change_nothing(monkeypatch):
    model, ids = small(), torch.randint(3, 60, (2, 40))

    def wide(*told):
        return F.pad(alibi_columns(*told), (0, 6))

    with torch.no_grad():
        plain = model(ids).last_hidden_state
        monkeypatch.setattr(baichuan, "alibi_columns", wide)
        assert (model(ids).last_hidden_state - plain).abs().max() < 1e-5
        assert plain.abs().max() > 1


def test_under_autocast_the_bias_has_the_type_of_the_keys(monkeypatch):
    """One that is made for another would be rounded once more."""
    told = []
    monkeypatch.setattr(
        baichuan, "alibi_columns", lambda *facts: told.append(facts[4]) or alibi_columns(*facts)
    )
    model, ids = small(), torch.randint(3, 60, (1, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(ids)
    model(ids)
    model.to(torch.float16)(ids)
    assert told == [torch.bfloat16, torch.float32, torch.float16]


def published_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As in the published modelling code."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + eps)).to(weight.dtype)


def test_the_norm_is_the_published_one_and_rounds_half_precision_once_less():
    norm, x = BaichuanRMSNorm(160, 1e-6), torch.randn(4, 7, 160)
    with torch.no_grad():
        norm.weight.normal_(1, 0.1)
        exact = published_norm(x, norm.weight, 1e-6)
        assert torch.equal(norm(x), exact)
        for dtype, widest in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
            half, weight = x.to(dtype), norm.weight.to(dtype)
            exact = published_norm(half.float(), weight.float(), 1e-6)
            own = BaichuanRMSNorm(160, 1e-6).to(dtype)
            own.weight.copy_(weight)
            assert own(half).dtype == dtype
            off = [(found.float() - exact).abs() for found in (own(half), published_norm(half, weight, 1e-6))]
            assert off[0].mean() < off[1].mean() and (off[0] <= widest * exact.abs()).all()


def test_the_norm_keeps_half_precision_under_autocast():
    norm = BaichuanRMSNorm(32, 1e-6).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 32).bfloat16()).dtype == torch.bfloat16
