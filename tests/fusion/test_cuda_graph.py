"""What a GPU does in another way, as far as a CPU can follow: counting, and replays of a recording."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from test_ensemble import EVERY, SMALL, inputs_of, lessons_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mer_dist.config.sections import FuseConfig
from mer_dist.core.log import logger
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.fusion import cuda_graph, ensemble, layers
from mer_dist.fusion.counter_rng import GAMMA, CounterRng, mix
from mer_dist.fusion.ensemble import predict, train
from mer_dist.fusion.layers import RngStreams

CPU = torch.device("cpu")
#: What makes a processor wait for a GPU: a number read from it, a list of Python copied to it.
WAITS = {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique_dim"}

pytestmark = pytest.mark.usefixtures("one_thread")


class Recording(TorchDispatchMode):
    """The operators of a call, which :meth:`replay` runs again on the same tensors, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        told = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, told))
        return told

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:  # recording on a CPU has run the call, too
            return
        for operator, args, kwargs, told in self.calls:
            anew = operator(*args, **kwargs)
            for place, value in zip(tree_leaves(told), tree_leaves(anew), strict=True):
                if isinstance(value, torch.Tensor) and value.data_ptr() != place.data_ptr():
                    place.copy_(value)


@pytest.fixture
def counting(monkeypatch) -> None:
    """What is dropped is drawn as on a GPU."""
    monkeypatch.setattr(layers, "counts", lambda device: True)


@pytest.fixture
def recordings(monkeypatch, counting) -> list[Recording]:
    """Steps are recorded as on a GPU, too."""
    made = []

    def record(call):
        made.append(Recording())
        with made[-1]:
            result = call()
        return made[-1], result

    monkeypatch.setattr(cuda_graph, "can_capture", lambda device: True)
    monkeypatch.setattr(cuda_graph, "capture", record)
    monkeypatch.setattr(cuda_graph, "WORTH", 6)
    return made


def outputs(seed: int, count: int) -> list[int]:
    """SplitMix64 as published, one number after the other."""
    state, told = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        told.append(z ^ (z >> 31))
    return told


def test_words_are_those_of_splitmix64_found_by_step_and_place():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert outputs(1234567, 4) == published
    words = mix(1234567 + torch.arange(1, 5) * GAMMA)
    assert [word % 2**64 for word in words.tolist()] == published
    counted = CounterRng([7, 2**62 + 5], CPU)
    for step in (1, 2):
        with counted.step():
            told = counted.take(3).tolist()
        for seed, row in zip((7, 2**62 + 5), told, strict=True):
            start = outputs(seed, 1)[0] + ((step << 32) - 1) * 0x9E3779B97F4A7C15
            assert [word % 2**64 for word in row] == outputs(start % 2**64, 3)


def test_a_step_gives_the_same_words_at_once_or_one_by_one_and_beside_whom_it_will():
    """The first step knows no number of words, the second has them from one draw."""
    pair, alone = CounterRng([3, 4], CPU), CounterRng([4], CPU)
    told = []
    for counted, sizes in ((pair, (5, 1, 7)), (alone, (13,))):
        rows = []
        for _ in range(3):
            with counted.step():
                rows.append(torch.cat([counted.take(size) for size in sizes], 1))
        told.append(torch.stack(rows))
    assert torch.equal(told[0][:, 1:], told[1])
    assert len(told[0].unique()) == told[0].numel()
    with pair.step():  # more than the step before
        more = pair.take(20), pair.take(2)
    again = CounterRng([3, 4], CPU)
    again.steps.fill_(4)
    assert torch.equal(torch.cat(more, 1), again.take(22))


def test_counted_chances_are_kept_and_differ_by_member_step_and_place(counting):
    streams = RngStreams([0, 1, 2], CPU)
    rate = streams.rate([0.0, 0.25, 0.7])
    kept = []
    for _ in range(2):
        with streams.step():
            kept += [streams.kept(rate, 40, 50), streams.kept(rate, 40, 50)]
    for one in kept:
        assert one.shape == (3, 40, 50) and one[0].all()
        assert (1 - one[1:].float().mean((1, 2)) - torch.tensor([0.25, 0.7])).abs().max() < 0.04
        # Neither the rows nor the columns of it go together.
        assert one[1].float().mean(0).std() < 0.12 and one[1].float().mean(1).std() < 0.12
    apart = [(one[1] ^ other[1]).float().mean() for one in kept for other in kept if one is not other]
    assert min(apart) > 0.3
    both = RngStreams([0, 1, 2], CPU), RngStreams([2], CPU)
    assert torch.equal(both[0].kept(rate, 9)[2:], both[1].kept(both[1].rate(0.7), 9))


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_a_recorded_step_replayed_gives_the_bits_of_steps_that_run(model, counting, request):
    """So everything that differs between two steps stands where a replay finds it."""
    inputs, lessons = inputs_of(), lessons_of()
    config = FuseConfig(**SMALL, model=model, epochs=2)
    ran, losses = train(inputs, lessons, config)
    made = request.getfixturevalue("recordings")
    replayed, own = train(inputs, lessons, config)
    assert [recording.replays for recording in made] == [2 * 3 - cuda_graph.WARM]
    assert torch.equal(losses, own)
    for one, other in zip(ran.parameters(), replayed.parameters(), strict=True):
        assert torch.equal(one, other)
    for operator, *_ in made[0].calls:
        assert torch.Tag.nondeterministic_seeded not in operator.tags
        assert operator.overloadpacket.__name__ not in WAITS


@pytest.mark.slow
@pytest.mark.parametrize("model", FUSION_MODELS.built_in)
def test_members_that_count_are_as_trained_alone(model, recordings):
    inputs, lessons, config = inputs_of(), lessons_of(), FuseConfig(**SMALL, model=model, epochs=2)
    together = predict(train(inputs, lessons, config, 3)[0], inputs, EVERY)
    for member in (0, 5):
        alone = predict(train(inputs, [lessons[member]], config, 3)[0], inputs, EVERY)[0]
        assert (alone - together[member]).abs().max() < 1e-4
    assert len(recordings) == 3 and torch.pdist(together.flatten(1)).min() > 1e-2


def test_a_recording_that_fails_is_told_once_and_training_goes_on(monkeypatch, counting):
    inputs, lessons = inputs_of(), lessons_of()[:2]
    config, told, tries = FuseConfig(**SMALL, model="mlp", epochs=2), [], []
    expected = train(inputs, lessons, config)[1]

    class Kept(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    def refuse(call):
        """Halfway, the gradients made: they are no part of the next step's."""
        tries.append(call)
        with monkeypatch.context() as broken:
            broken.setattr(call.optimizer, "step", fail)
            try:
                call()
            finally:
                call.model.streams.counted.steps.sub_(1)  # a GPU would only have recorded the count

    def fail():
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "can_capture", lambda device: True)
    monkeypatch.setattr(cuda_graph, "capture", refuse)
    monkeypatch.setattr(cuda_graph, "WORTH", 6)
    monkeypatch.setattr(cuda_graph.CudaGraphStep, "possible", True)
    handler = Kept(logging.WARNING)
    logger.addHandler(handler)
    try:
        losses = [train(inputs, lessons, config)[1] for _ in range(2)]
    finally:
        logger.removeHandler(handler)
    assert torch.equal(losses[0], expected) and torch.equal(losses[1], expected)
    assert len(tries) == 1 and len(told) == 1 and "not permitted when stream is capturing" in told[0]


def test_a_short_training_is_not_recorded(recordings):
    train(inputs_of(), lessons_of()[:1], FuseConfig(**SMALL, epochs=1))
    assert not recordings


@pytest.mark.slow
def test_a_step_in_fixed_places_gives_the_bits_of_one_written_out():
    """The batch copied, the rate a tensor: on a CPU not a bit of what the formulas give."""
    inputs, lessons, config = inputs_of(), lessons_of(), FuseConfig(**SMALL, epochs=2, label_smoothing=0.1)
    trained, losses = train(inputs, lessons, config, 3)
    model = ensemble._build(inputs, lessons, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1.0, weight_decay=config.weight_decay, fused=True)
    for epoch in range(2):
        rows, targets, weights = ensemble._epoch(lessons, model.streams, 48)
        own = []
        for step in range(3):
            part = slice(16 * step, 16 * step + 16)
            log_p = torch.log_softmax(model(inputs[rows[:, part]]), -1)
            gain = 0.9 * (targets[:, part] * log_p).sum(-1) + 0.1 * log_p.mean(-1)
            own.append(-(weights[:, part] * gain).mean(-1))
            optimizer.zero_grad()
            own[-1].sum().backward()
            done = (3 * epoch + step) / 6
            rise, fall = min((done + 1e-3) / 0.1, 1.0), 0.5 * (1 + math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = config.learning_rate * rise * fall
            optimizer.step()
        assert torch.equal(torch.stack(own).mean(0), losses[:, epoch])
    for one, other in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_prediction_reads_a_clip_once_for_all_members_and_gives_each_its_own_bits():
    inputs, lessons = inputs_of(), lessons_of()
    for kind in FUSION_MODELS.built_in:
        model, _ = train(inputs, lessons, FuseConfig(**SMALL, model=kind, epochs=1))
        with torch.no_grad():
            copied = torch.log_softmax(model(inputs[EVERY.expand(len(lessons), -1)]), -1)
        assert torch.equal(predict(model, inputs, EVERY), copied)
