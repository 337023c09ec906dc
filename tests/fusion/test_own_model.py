"""Fusion models that a user brings: how they are registered, and any module as the members of an ensemble."""

from __future__ import annotations

from pathlib import Path

import fusion_run
import plugin_files
import pytest
import torch
from safetensors import safe_open
from test_ensemble import CLASSES, EVERY, SMALL, inputs_of, lessons_of
from torch import nn

from mer_dist.config import config as configuration
from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.fusion import ensemble, predictions, recipes, register, self_training
from mer_dist.fusion.ensemble import predict, train
from mer_dist.fusion.layers import masked_mean
from mer_dist.fusion.members import build
from mer_dist.stages.fuse import fuse
from mer_dist.storage.run_folder import Run

#: A fuse of seconds; the vote draws nothing.
QUICK = ["fuse.dropout=[0.2]", "fuse.sets=[voice,line]", "vote.prior=none"]

pytestmark = [pytest.mark.usefixtures("one_thread", "registry"), pytest.mark.slow]


@pytest.fixture
def registry(monkeypatch) -> None:
    """What a test registers is gone after it."""
    plugin_files.begin(monkeypatch)


class Mixed(nn.Module):
    """Of all that a module may have: recurrence, tied weights, batch statistics, buffers that are changed in
    place, set anew and not saved, a frozen and an unused parameter, a layer that learns its size, own draws."""

    def __init__(self, sets, classes, *, width, dropout, feature_dropout=0.0):
        super().__init__()
        self.encode = nn.ModuleList(nn.GRU(one.dims, width, batch_first=True) for one in sets)
        self.first, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.first.weight
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(dropout)
        self.classify = nn.LazyLinear(classes)
        self.frozen = nn.Parameter(torch.rand(width), requires_grad=False)
        self.unused = nn.Parameter(torch.rand(3))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, values, masks):
        pairs = zip(self.encode, values, masks, strict=True)
        x = sum(masked_mean(encode(value)[0], mask) for encode, value, mask in pairs)
        x = self.norm(self.again(torch.relu(self.first(x)))) * self.scale + self.frozen
        if self.training:
            self.calls = self.calls + 1
            x = x + 0.05 * torch.randn(x.shape, dtype=x.dtype)
        return self.classify(self.dropout(x))


def mixed(**changes) -> FuseConfig:
    register("mixed")(Mixed)
    return FuseConfig(**SMALL | {"epochs": 3} | changes, model="mixed")


def together_and_apart(dtype, neighbours):
    """Log probabilities of the first member's clips, trained beside others and alone; and the models."""
    config, inputs, lessons = mixed(), inputs_of(dtype), lessons_of(dtype)
    some = [lessons[0], *neighbours(lessons)]
    beside, losses = train(inputs, some, config, steps=3)
    alone, curve = train(inputs, lessons[:1], config, steps=3)
    torch.testing.assert_close(curve[0], losses[0], atol=1e-5, rtol=1e-5)
    return predict(beside, inputs, EVERY), predict(alone, inputs, EVERY), beside, alone


@pytest.mark.parametrize("neighbours", [lambda all_: all_[1:4], lambda all_: all_[4:]])
def test_a_member_is_trained_as_if_it_were_alone(neighbours):
    beside, alone, model, own = together_and_apart(torch.float64, neighbours)
    assert beside.dtype == torch.float64 and (beside[0] - alone[0]).abs().max() < 1e-9
    assert torch.pdist(beside.flatten(1)).min() > 1e-2, "two members are the same model"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value[:1], own.state_dict()[name], atol=1e-9, rtol=1e-9)
    # Each member's own count, which its module sets anew, and its own statistics of batches.
    assert model.state_dict()["module.calls"].tolist() == [9.0] * len(beside)
    assert model.state_dict()["module.norm.running_mean"].std(0).min() > 0


def test_it_is_the_module_trained_by_hand():
    """With one member: the weights, orders and draws of torch's generator under its seed, and AdamW."""
    config, inputs, lessons = (
        mixed(label_smoothing=0.0),
        inputs_of(torch.float64),
        lessons_of(torch.float64)[:1],
    )
    trained, _ = train(inputs, lessons, config, steps=3)
    own = lessons[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own.seed)
        module = Mixed(inputs.shapes, CLASSES, width=16, dropout=own.dropout, feature_dropout=0.3).eval()
        with torch.no_grad():
            module([value[:1].float() for value in inputs.values], [mask[:1] for mask in inputs.mask])
        module.double()
        optimizer = torch.optim.AdamW(module.parameters(), 1.0, weight_decay=config.weight_decay)
        module.train()
        for epoch in range(3):
            draws = [torch.randperm(40), torch.randperm(40)]
            order = torch.cat(draws)[:48]
            for step in range(3):
                rows = order[16 * step : 16 * step + 16]
                batch = inputs[own.rows[rows]]
                log_p = module(batch.values, batch.mask).log_softmax(-1)
                weights = (own.weights / own.weights.mean())[rows]
                optimizer.zero_grad()
                (-(weights * (own.targets[rows] * log_p).sum(-1)).mean()).backward()
                done = (3 * epoch + step) / 9
                optimizer.param_groups[0]["lr"] = config.learning_rate * ensemble._warm_cosine(done)
                optimizer.step()
    with torch.no_grad():
        expected = module.eval()(inputs.values, inputs.mask).log_softmax(-1)
    torch.testing.assert_close(predict(trained, inputs, EVERY)[0], expected, atol=1e-8, rtol=1e-8)


def test_groups_seeds_and_what_is_drawn_elsewhere_change_nothing(monkeypatch):
    config, inputs, lessons = mixed(), inputs_of(torch.float64), lessons_of(torch.float64)[:3]
    torch.manual_seed(1)
    before = torch.default_generator.get_state()
    model, losses = train(inputs, lessons, config)
    assert torch.equal(torch.default_generator.get_state(), before), "torch's own generator was moved"
    torch.manual_seed(2)
    with monkeypatch.context() as groups:
        groups.setattr(ensemble, "_side_by_side", lambda *_: 2)
        grouped, own = train(inputs, lessons, config)
        # A warm start goes on from the members' own weights, whatever their group.
        warm = [train(inputs, lessons, config, start=model.state_dict())]
    torch.testing.assert_close(own, losses, atol=1e-5, rtol=1e-5)
    told = predict(model, inputs, EVERY)
    torch.testing.assert_close(predict(grouped, inputs, EVERY), told, atol=1e-4, rtol=1e-4)
    warm.append(train(inputs, lessons, config, start=model.state_dict()))
    assert (warm[1][1][:, 0] < losses[:, 0]).all()
    torch.testing.assert_close(warm[0][1], warm[1][1], atol=1e-5, rtol=1e-5)
    again, _ = train(inputs, lessons, config)
    assert torch.equal(predict(again, inputs, EVERY), told)
    lessons[0].seed += 1
    other = predict(train(inputs, lessons, config)[0], inputs, EVERY)
    assert (other[0] - told[0]).abs().max() > 1e-2
    torch.testing.assert_close(other[1:], told[1:], atol=1e-4, rtol=1e-4)


def test_each_member_has_its_own_dropout():
    config, inputs = mixed(), inputs_of()
    model = build(inputs, CLASSES, config, [1, 2], [0.0, 0.75])
    assert [one.dropout.p for one in (model.module, *model._others)] == [0.0, 0.75]
    model.train()
    assert all(one.training for one in model._others)
    assert not any(one.training for one in model.eval()._others)


def refused(name: str, make, words: str) -> None:
    register(name)(make)
    with pytest.raises(UserError, match=words):
        build(inputs_of(), CLASSES, FuseConfig(**SMALL, model=name), [0])


def test_a_module_that_cannot_be_trained_is_refused_before_it_is():
    class Wrong(nn.Module):
        def __init__(self, sets, classes):
            super().__init__()
            self.weight = nn.Linear(sets[0].dims, classes)

        def forward(self, values, masks):
            x, mask = values[0], masks[0][..., None]
            return self.answer(self.weight((x * mask).sum(1) / mask.sum(1)))

    empty = type("Empty", (Wrong,), {"answer": lambda _, x: x})
    refused("empty", empty, "lacks set 1, audio, are not finite; the masks")
    shape = type("Shape", (Wrong,), {"answer": lambda _, x: x[:, :2]})
    refused("shape", shape, r"must return logits \(B, C\), here \(4, 3\), and returned shape \(4, 2\)")
    refused("three", lambda sets, classes: 3, "returns a int, no nn.Module")


def test_what_is_registered_is_checked_and_a_wrong_name_is_told_those_there_are():
    with pytest.raises(
        UserError, match="fuse.model is 'mixed'; it must be one of: agt, attention, mlp, linear, or one that"
    ):
        FuseConfig(model="mixed")
    register("mixed")(Mixed)
    assert FuseConfig(model="mixed").model == "mixed"
    with pytest.raises(UserError, match="one of: agt, attention, mlp, linear, mixed, or one that"):
        FuseConfig(model="agd")
    assert set(FUSION_MODELS["mixed"].options) == {"width", "dropout", "feature_dropout"}
    for name in ("mixed", "agt"):
        with pytest.raises(UserError, match=f"the fusion model '{name}' is registered twice"):
            register(name)(type("Other", (Mixed,), {}))
    with pytest.raises(UserError, match="requires the unknown option 'depth': use one of width, heads"):
        register("deep")(lambda sets, classes, *, depth: None)
    with pytest.raises(UserError, match="must take the shapes of the feature sets"):
        register("none")(lambda sets: None)
    assert [*FUSION_MODELS] == ["agt", "attention", "mlp", "linear", "mixed"]


@pytest.fixture
def mine(tmp_path) -> Path:
    """The module of the document."""
    plugin_files.write(tmp_path)
    yield tmp_path / "mine.py"
    plugin_files.forget()


def outputs(run: Run) -> dict[str, bytes]:
    wanted = [run.answer, *run.vote.folder.rglob("*"), *run.rounds_folder.rglob("*")]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in wanted if path.is_file()}


def test_the_example_of_the_document_is_fused_stopped_and_goes_on_in_the_same_bytes(
    tmp_path, mine, monkeypatch
):
    assert len(mine.read_text("utf-8").splitlines()) < 40
    fusion_run.make(tmp_path, labeled=45, unlabeled=20)
    options = ["plugins=[mine]", "fuse.model=mine", "self_train.start=warm", *QUICK]
    config = configuration.load(tmp_path / "job.yaml", options)
    run = Run(config.run.folder)
    fuse(config)
    whole, made = outputs(run), predictions.read(run.round(1).predictions)
    assert made.title == "mine fusion + self-training round 1"
    assert (made.answer[made.labeled] == [row % 3 for row in range(45)]).mean() > 0.45
    with safe_open(run.round(1).models, "pt") as file:
        assert {file.get_slice(name).get_shape()[0] for name in file.keys()} == {6}
    for part in (run.vote, run.round(0), run.round(1)):
        (part.folder / "complete.json").unlink()
    steps, stop = [], self_training.boundary

    def asked(should_stop, where: str) -> None:
        steps.append(where)
        if steps.count("in mine fusion + self-training round 1") == 5:
            raise Stopped(where)
        stop(should_stop, where)

    monkeypatch.setattr(self_training, "boundary", asked)
    with pytest.raises(Stopped):
        fuse(config)
    monkeypatch.setattr(self_training, "boundary", stop)
    fuse(config)
    assert outputs(run) == whole
    assert recipes.stale(config, run) == []
    # Another version of the module: its rounds are made from other code.
    mine.write_text(mine.read_text("utf-8").replace("nn.GRU", "nn.RNN"), encoding="utf-8")
    plugin_files.begin(monkeypatch)
    config = configuration.load(tmp_path / "job.yaml", options)
    assert [(one.part, one.changed) for one in recipes.stale(config, run)][:1] == [
        ("rounds/00", ("code of fuse.model",))
    ]


def test_tied_weights_are_saved(tmp_path):
    register("mixed")(Mixed)
    fusion_run.make(tmp_path, labeled=30, unlabeled=20, epochs=1, rounds=0)
    config = configuration.load(tmp_path / "job.yaml", ["fuse.model=mixed", *QUICK])
    fuse(config)
    with safe_open(Run(config.run.folder).round(0).models, "pt") as file:
        tied = [file.get_tensor(f"module.{name}.weight") for name in ("first", "again")]
        assert torch.equal(*tied) and "module.scale" not in file.keys()
