"""The training loop on a model of a few weights: how a step is cut changes no loss, and what it waits for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mer_dist.config.sections import FinetuneConfig
from mer_dist.core.errors import Stopped, UserError
from mer_dist.models.extractor import mean_by_clip, packed, packing
from mer_dist.storage import files
from mer_dist.training import trainer as training
from mer_dist.training.accelerator import make_accelerator
from mer_dist.training.checkpoint import Checkpoints
from mer_dist.training.partition import PAD_INDEX, Passes
from mer_dist.training.trainer import Task, Trainer

WIDTH, CLASSES, CLIPS, TRAINED = 6, 3, 45, 38


class Lines(nn.Module):
    """Embedding, dropout and the mean of each padded row."""

    def __init__(self, dropout: float):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids, lengths, real):
        embeddings = packed(self.dropout(self.words(ids)), real)
        return self.head(mean_by_clip(embeddings, lengths))


def task(config: FinetuneConfig, seen: list) -> Task:
    draw = np.random.default_rng(0)
    lines = [draw.integers(1, 50, draw.integers(1, 30)) for _ in range(CLIPS)]

    def load(positions: np.ndarray) -> dict[str, torch.Tensor]:
        seen.append(positions.tolist())
        rows = [torch.from_numpy(lines[max(place, 0)]) for place in positions]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"ids": ids, **packing(ids > 0)}

    longest = np.array([len(line) for line in lines])
    return Task(
        load=load,
        targets=np.array([line[0] % CLASSES for line in lines]),
        train=np.arange(TRAINED),
        held_out=np.arange(TRAINED, CLIPS),
        class_weights=np.array([0.5, 1.0, 1.5]),
        passes=Passes.of(config, np.ones(CLIPS, int), longest, budget=100),
        name="lines/all",
    )


@pytest.fixture(scope="module")
def accelerator(tmp_path_factory):
    return make_accelerator("fp32", [], tmp_path_factory.mktemp("tracking"), threads=1)


def trainer(accelerator, dropout=0.0, checkpoints=None, seen=None, **told) -> Trainer:
    config = FinetuneConfig(**{"epochs": 3, "batch": 16, "learning_rate": 0.05, "precision": "fp32", **told})
    work = task(config, [] if seen is None else seen)
    return Trainer(accelerator, Lines(dropout), work, config, seed=0, checkpoints=checkpoints)


def curves(history: dict) -> list[list[float]]:
    return [list(row.values()) for row in history["epochs"]]


@pytest.mark.slow
def test_passes_by_length_learn_what_passes_by_number_learn(accelerator):
    """Whatever the budget: gradients are those of the whole step."""
    wanted = curves(trainer(accelerator, micro_batch=16).run(lambda *_: None))
    assert wanted[-1][1] < 0.9 * wanted[0][1]
    for told in ({"micro_batch": 3}, {}, {"batch_budget": 60, "micro_batch": 5}, {"batch_budget": 1e6}):
        found = curves(trainer(accelerator, **told).run(lambda *_: None))
        assert np.allclose(found, wanted, rtol=0, atol=1e-5), told


def test_passes_by_length_train_on_every_clip_once_an_epoch(accelerator):
    seen: list = []
    trainer(accelerator, seen=seen, epochs=2).run(lambda *_: None)
    clips = [position for part in seen for position in part]
    assert PAD_INDEX not in clips
    # Two epochs, each with an evaluation.
    assert sorted(clips) == sorted([*range(CLIPS)] * 2)
    assert len({len(part) for part in seen}) > 1


@pytest.mark.slow
def test_a_training_by_length_goes_on_to_the_same_bits(accelerator, tmp_path):
    """With dropout, whose numbers follow from the place in the run."""

    def keep(checkpoints: Checkpoints):
        def mark(model, epoch: int) -> None:
            checkpoints.best(epoch).mkdir(parents=True, exist_ok=True)
            files.write_marker(checkpoints.best(epoch), "test", content={})

        return mark

    whole = trainer(accelerator, dropout=0.4)
    wanted = curves(whole.run(lambda *_: None))
    made = [Checkpoints(accelerator, tmp_path, "test", keep=2, minutes=0) for _ in range(2)]
    first = trainer(accelerator, dropout=0.4, checkpoints=made[0])
    step = first._optimizer_step

    def asked(*batch):
        if first.progress.step == 4:
            first.should_stop = lambda: True
        return step(*batch)

    first._optimizer_step = asked
    with pytest.raises(Stopped, match="at step 5 of lines/all"):
        first.run(keep(made[0]))
    second = trainer(accelerator, dropout=0.4, checkpoints=made[1])
    assert second.progress.step == 5
    assert curves(second.run(keep(made[1]))) == wanted
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    other = trainer(accelerator, dropout=0.4, batch_budget=50).run(lambda *_: None)
    assert curves(other) != wanted, "without dropout this would show nothing"


def test_a_step_waits_for_the_device_once_and_ranks_agree_by_one_reduction(accelerator, monkeypatch):
    """Loss, wishes and soundness travel together, and logits once an evaluation."""
    reduced: list[int] = []
    reduce = accelerator.reduce
    monkeypatch.setattr(
        accelerator, "reduce", lambda value, how: reduced.append(value.numel()) or reduce(value, how)
    )
    monkeypatch.setattr(accelerator, "gather", None)
    one = trainer(accelerator, epochs=1, batch_budget=30)
    one.train_epoch()
    assert reduced == [4] * (1 + 3)
    monkeypatch.undo()
    monkeypatch.setattr(
        accelerator, "reduce", lambda value, how: reduced.append(value.numel()) or reduce(value, how)
    )
    assert set(one.evaluate()) == {"validation_loss", "validation_waf"}
    assert reduced[4:] == [(CLIPS + 1) * CLASSES]


@pytest.mark.parametrize("norm", [float("nan"), -1.0, torch.tensor(torch.inf), torch.tensor(torch.nan)])
def test_gradients_that_are_no_numbers_end_it_on_all_ranks_before_a_checkpoint(
    accelerator, norm, monkeypatch
):
    one = trainer(accelerator)
    monkeypatch.setattr(accelerator, "clip_grad_norm_", lambda *_: norm)
    with pytest.raises(UserError, match="lines/all: the loss is not finite any more at step 1"):
        one.run(lambda *_: None)
    sound = one._agreed(torch.tensor(3.5), torch.tensor(2.0))
    assert sound == (3.5, False, False, True)
    assert not one._agreed(torch.tensor(torch.nan), None).finite


def test_deterministic_holds_while_it_trains_and_no_longer(accelerator):
    modes = []
    for asked in (False, True):
        one = trainer(accelerator, epochs=1, deterministic=asked)
        one.run(lambda *_: modes.append(torch.are_deterministic_algorithms_enabled()))
    assert modes == [False, True] and not torch.are_deterministic_algorithms_enabled()


def test_on_a_gpu_inputs_lie_in_pinned_memory_and_several_threads_read_them(accelerator, monkeypatch):
    pinned, asked = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(training, "ranks_here", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))

    def prefetched(load, batches, ahead, threads):
        asked.append((ahead, threads))
        return map(load, batches)

    monkeypatch.setattr(training, "prefetched", prefetched)
    one = trainer(accelerator)
    one.accelerator = SimpleNamespace(device=torch.device("cuda"), process_index=0, num_processes=1)
    ((_, mine),) = one._loaded([np.arange(10)])
    # Ids, lengths, real places and owners of each pass.
    assert len(pinned) == 4 * len(mine) and asked == [(5, 4)]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    one._loaded([np.arange(10)])
    assert asked[-1] == (2, 1)
    one.accelerator.device = torch.device("cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    one._loaded([np.arange(10)])
    assert asked[-1] == (2, 1), "on a CPU, decoding takes the time of computing"
