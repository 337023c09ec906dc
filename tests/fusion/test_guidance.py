"""What the Audio-Guided Transformer is made of: who asks, who answers, and what the gates do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mer_dist.config.sections import FuseConfig
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.ensemble import MemberData, predict, train
from mer_dist.fusion.layers import Attention, FeedForward, Linear, RngStreams, norm
from mer_dist.fusion.members import build
from mer_dist.fusion.models import ContextBasedTransformer, Fusion

MEMBERS, CLIPS, GUIDES, GUIDED, WIDTH, HEADS = 2, 5, 4, 3, 16, 2
SMALL = {"width": WIDTH, "heads": HEADS}

pytestmark = pytest.mark.usefixtures("one_thread")


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """The same module without dropout, its biases and stand-ins no longer 0."""
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=random)
    return module.eval()


def tokens_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (E, B, T, W), and which are there (E, B, T): of each clip one at least."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(MEMBERS, CLIPS, count, generator=random) > 0.4
    mask[..., 0] = True
    assert count == 1 or not mask.all()
    return torch.randn(MEMBERS, CLIPS, count, WIDTH, generator=random), mask


def context_of() -> ContextBasedTransformer:
    return randomized(
        ContextBasedTransformer(RngStreams([0, 1], torch.device("cpu")), WIDTH, HEADS, [0.5] * 2)
    )


def linear(layer: Linear, member: int, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight[member].T, layer.bias[member, 0])


def expected_attention(layer: Attention, x: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
    """The same projections around torch's own attention, member by member."""
    told = []
    for member in range(MEMBERS):
        asked, keys, values = (
            linear(part, member, of).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part, of in ((layer.query, x[member]), (layer.key, y[member]), (layer.value, y[member]))
        )
        mixed = F.scaled_dot_product_attention(asked, keys, values, attn_mask=y_mask[member, :, None, None])
        told.append(linear(layer.out, member, mixed.transpose(1, 2).flatten(2)))
    return torch.stack(told)


def expected_feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    first, _, _, second, _ = layer
    return torch.stack(
        [linear(second, member, F.gelu(linear(first, member, x[member]))) for member in range(MEMBERS)]
    )


@pytest.mark.parametrize("keys", [1, GUIDED])
def test_attention_is_that_of_torch_with_the_same_projections_and_mask(keys):
    layer = randomized(Attention(RngStreams([0, 1], torch.device("cpu")), WIDTH, HEADS, [0.5] * 2))
    (x, _), (y, y_mask) = tokens_of(GUIDES, 1), tokens_of(keys, 2)
    told, expected = layer(x, y, y_mask), expected_attention(layer, x, y, y_mask)
    assert told.shape == x.shape and expected.std() > 0.1
    torch.testing.assert_close(told, expected, atol=1e-5, rtol=1e-5)


def test_the_context_is_cross_attention_then_self_attention_then_feed_forward_each_pre_norm_and_residual():
    context = context_of()
    (x, x_mask), (y, y_mask) = tokens_of(GUIDES, 1), tokens_of(GUIDED, 2)
    between = x + expected_attention(context.cross, norm(x), norm(y), y_mask)
    within = between + expected_attention(context.within, norm(between), norm(between), x_mask)
    expected = within + expected_feed_forward(context.feed_forward, norm(within))
    torch.testing.assert_close(context(x, x_mask, y, y_mask), expected, atol=1e-4, rtol=1e-4)


def test_a_token_of_the_guide_reaches_the_others_by_self_attention_and_only_if_it_is_there():
    context = context_of()
    (x, x_mask), (y, y_mask) = tokens_of(GUIDES, 1), tokens_of(GUIDED, 2)
    before, changed = context(x, x_mask, y, y_mask), x.clone()
    changed[:, :, -1] += torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    moved = (context(changed, x_mask, y, y_mask) - before)[:, :, :-1].abs().amax((-2, -1))
    there = x_mask[..., -1]
    assert there.any() and not there.all()
    assert (moved[there] > 1e-2).all() and (moved[~there] == 0).all()


@pytest.mark.parametrize("guide", ["audio", "text"])
def test_the_tokens_of_the_guide_ask_and_those_of_each_guided_modality_answer(guide):
    random, sizes = torch.Generator().manual_seed(0), {"audio": 4, "video": 3, "text": 2}
    values = [torch.randn(CLIPS, tokens, 6, generator=random) for tokens in sizes.values()]
    masks = [torch.rand(CLIPS, tokens, generator=random) > 0.3 for tokens in sizes.values()]
    for mask in masks:
        mask[:, 0] = True
    inputs = FeatureBatch(list(sizes), values, masks)[torch.arange(CLIPS).expand(MEMBERS, -1)]
    model = build(
        FeatureBatch(list(sizes), values, masks), 3, FuseConfig(**SMALL, query_modality=guide), [0, 1]
    ).eval()
    seen = {}
    for name, context in model.cross_attention.items():
        context.cross.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args}))
    model(inputs)
    tokens, there = model._tokens(inputs.modality, inputs.values, inputs.mask)
    assert seen.keys() == sizes.keys() - {guide}
    for name, (asking, answering, mask) in seen.items():
        assert asking.shape[2] == sizes[guide] and answering.shape[2] == sizes[name]
        own = there[guide]
        assert torch.equal(asking[own], norm(tokens[guide])[own])
        assert torch.equal(answering, norm(tokens[name])) and torch.equal(mask, there[name])


def test_gates_of_valid_channels_sum_to_1_a_missing_one_has_none_and_each_depends_on_all():
    channels, clips = 3, 40
    streams = RngStreams([0, 1], torch.device("cpu"))
    fusion = randomized(Fusion(streams, channels, WIDTH, "gating", [0.5] * 2))
    random = torch.Generator().manual_seed(1)
    x, valid = (
        torch.randn(MEMBERS, clips, channels, WIDTH, generator=random),
        torch.rand(MEMBERS, clips, channels, generator=random) > 0.4,
    )
    valid[..., 0] |= ~valid.any(-1)
    # Channel m shows its gate in place m of the sum, the stand-in of a missing one too.
    x[..., :channels] = fusion.absent.data[..., :channels] = torch.eye(channels)
    gates = fusion(x, valid)[..., :channels]
    assert not valid.all() and (gates[~valid] == 0).all() and (gates[valid] > 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(MEMBERS, clips))
    assert gates[valid.all(-1)].std(0).min() > 0.05, "the same gates for all clips"
    other = x.clone()
    other[:, :, 2, channels:] *= -1
    ratio = [told[..., 0] / told[..., 1] for told in (gates, fusion(other, valid)[..., :channels])]
    whole = valid.all(-1)
    assert ((ratio[0] / ratio[1]).log().abs()[whole] > 1e-3).all()


def one_token_tells() -> tuple[FeatureBatch, Tensor, Tensor]:
    """Video tokens of a key and a label each; the audio has the key of the only one that is right.

    Returns:
        The clips, their labels, and the chance of the best guess from the mean of the tokens: keys
        are drawn afresh for every clip, so it is the most frequent label.
    """
    random, clips, tokens, classes = torch.Generator().manual_seed(0), 1300, 4, 3
    labels = torch.randint(classes, (clips, tokens), generator=random)
    key = F.normalize(torch.randn(clips, tokens, 3, generator=random), dim=-1)
    rows, right = torch.arange(clips), torch.randint(tokens, (clips,), generator=random)
    video = torch.cat([3**0.5 * key, 2 * torch.eye(classes)[labels]], -1)
    inputs = FeatureBatch(
        ["audio", "video"],
        [video[rows, right, None, :3], video],
        [torch.ones(clips, count).bool() for count in (1, tokens)],
    )
    guess = torch.eye(classes)[labels].mean(1).amax(1)
    return inputs, labels[rows, right], guess


@pytest.mark.slow
def test_where_one_token_tells_the_label_the_guide_finds_it_and_a_mean_of_tokens_cannot():
    inputs, truth, guess = one_token_tells()
    taught, asked = torch.arange(1000), torch.arange(1000, 1300)
    calm = {
        "dropout": [0.0],
        "feature_dropout": 0.0,
        "modality_dropout": 0.0,
        "learning_rate": 1e-2,
        "epochs": 25,
        "batch": 50,
        "width": 32,
        "heads": 2,
    }
    right = {}
    for title, option in {
        "agt": {},
        "no context": {"cross_attention": False},
        "mean": {"model": "mlp"},
    }.items():
        lesson = MemberData(taught, torch.eye(3)[truth[taught]], torch.ones(len(taught)), 0)
        model, _ = train(inputs, [lesson], FuseConfig(**calm | option))
        right[title] = (predict(model, inputs, asked)[0].argmax(1) == truth[asked]).float().mean()
    assert guess[asked].mean() < 0.62 and right["mean"] < 0.7
    assert right["agt"] > 0.93 and right["agt"] > right["no context"] + 0.05
