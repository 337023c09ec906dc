"""Training and prediction of all members of a fusion model side by side.

Shape suffixes: E members, B clips, C classes, N all clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mer_dist.config.sections import FuseConfig
from mer_dist.core.errors import UserError
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.cuda_graph import CudaGraphStep, capturable
from mer_dist.fusion.layers import RngStreams
from mer_dist.fusion.members import FusionModel, build
from mer_dist.storage.files import fingerprint_of

#: Clips × members in one forward pass of prediction: more leave a CPU's cache.
PREDICT_ROWS = 1024
PREDICT_ROWS_GPU = 65536
#: Size of a training step's largest input or gradient, in numbers, beyond which a CPU trains members in
#: groups: every allocation maps larger temporaries anew, and each page costs a fault.
STEP_NUMBERS = 2**23


@dataclass
class MemberData:
    """Training data of one ensemble member: clips with a target and a weight, and its seed."""

    #: (n,) int64 clip indices.
    rows: Tensor
    #: (n, C), rows sum to 1.
    targets: Tensor
    #: (n,) positive.
    weights: Tensor
    #: Determines all randomness of the member's training.
    seed: int
    #: None: the first of ``fuse.dropout``.
    dropout: float | None = None


def seed_of(*parts: int | str) -> int:
    """A seed almost unique to this combination of parts, equal in every process."""
    return int(fingerprint_of(list(parts)), 16) >> 1


def train(
    inputs: FeatureBatch,
    members: list[MemberData],
    config: FuseConfig,
    steps: int = 0,
    start: dict[str, Tensor] | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[FusionModel, Tensor]:
    """Train these members, as many side by side as suit the device.

    Args:
        inputs: standardised.
        steps: optimizer steps per epoch; 0: enough to show every member its clips once.
        start: the initial state, of a model with the same members; None: random weights.
        between: called before each step; an exception in it ends the training.

    Returns:
        The model, and its mean loss ``(E, epochs)``.
    """
    steps = steps or max(-(-len(member.rows) // config.batch) for member in members)
    size = _side_by_side(inputs, config, len(members))
    states, losses = [], []
    for first in range(0, len(members), size):
        own = slice(first, first + size)
        begin = start and {name: value[own] for name, value in start.items()}
        model, curves = _train(inputs, members[own], config, steps, begin, between)
        states.append(model.state_dict())
        losses.append(curves)
    if len(states) > 1:
        model = _build(inputs, members, config)
        model.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})
    return model.eval(), torch.cat(losses)


def _side_by_side(inputs: FeatureBatch, config: FuseConfig, members: int) -> int:
    """How many members train at once: all of them on a GPU."""
    if inputs.values[0].is_cuda:
        return members
    widest = max(values[0].numel() for values in inputs.values)
    most = max(STEP_NUMBERS // (max(config.batch, config.width) * widest), 1)
    groups = -(-members // most)
    return -(-members // groups)


def _build(inputs: FeatureBatch, members: list[MemberData], config: FuseConfig) -> FusionModel:
    seeds = [member.seed for member in members]
    dropout = [config.dropout[0] if member.dropout is None else member.dropout for member in members]
    return build(inputs, members[0].targets.shape[1], config, seeds, dropout)


def _train(
    inputs: FeatureBatch,
    members: list[MemberData],
    config: FuseConfig,
    steps: int,
    start: dict[str, Tensor] | None,
    between: Callable[[], None],
) -> tuple[FusionModel, Tensor]:
    """One group of members."""
    model = _build(inputs, members, config)
    if start is not None:
        model.load_state_dict(start)
    model.train()
    step = _Step(model, inputs, members, config)
    run = CudaGraphStep(step, step.rows.device, config.epochs * steps if model.capturable else 0)
    curves = []
    with capturable(step.rows.device):
        for epoch in range(config.epochs):
            whole = _epoch(members, model.streams, steps * config.batch)
            batches = zip(*(part.split(config.batch, 1) for part in whole), strict=True)
            losses = []
            for number, (rows, targets, weights) in enumerate(batches):
                between()
                done = (epoch * steps + number) / (config.epochs * steps)
                step.take(rows, targets, weights, config.learning_rate * _warm_cosine(done))
                losses.append(run().clone())
            curves.append(torch.stack(losses).mean(0))
        mean_losses = torch.stack(curves, 1).cpu()
    if not torch.isfinite(mean_losses).all():
        raise UserError(
            "fuse: training diverged, the loss is not finite; lower "
            f"fuse.learning_rate, which is {config.learning_rate:g}"
        )
    return model, mean_losses


class _Step:
    """A training step of all members, with batch and learning rate in fixed tensors.

    So a GPU can replay it: see :class:`mer_dist.fusion.cuda_graph.CudaGraphStep`.
    """

    def __init__(
        self, model: FusionModel, inputs: FeatureBatch, members: list[MemberData], config: FuseConfig
    ):
        self.model, self.inputs, self.config = model, inputs, config
        some, batch = members[0], (len(members), config.batch)
        self.rows = some.rows.new_empty(batch)
        self.targets = some.targets.new_empty(*batch, some.targets.shape[1])
        self.weights = some.weights.new_empty(batch)
        # The CPU optimizer reads a double; the GPU one reads a float in place.
        precise = torch.float32 if self.rows.is_cuda else torch.float64
        self.rate = torch.tensor(config.learning_rate, dtype=precise, device=self.rows.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), self.rate, weight_decay=config.weight_decay, fused=True, capturable=True
        )

    def take(self, rows: Tensor, targets: Tensor, weights: Tensor, rate: float) -> None:
        """Set batch ``(E, B, ...)`` and learning rate of the next call."""
        self.rows.copy_(rows)
        self.targets.copy_(targets)
        self.weights.copy_(weights)
        self.rate.fill_(rate)

    def __call__(self) -> Tensor:
        """Loss (E,) before the step."""
        with self.model.streams.step():
            log_p = F.log_softmax(self.model(self.inputs[self.rows]), -1)
        # A smoothed target spreads a little of its mass evenly over the classes.
        evenly, smooth = log_p.mean(-1), self.config.label_smoothing
        gain = (1 - smooth) * (self.targets * log_p).sum(-1) + smooth * evenly
        loss = -(self.weights * gain).mean(-1)
        try:
            loss.sum().backward()
            self.optimizer.step()
        finally:  # also after a failed recording: the next step computes its own gradients
            self.optimizer.zero_grad()
        return loss.detach()


def _epoch(members: list[MemberData], streams: RngStreams, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows ``(E, length)`` of an epoch in each member's own order, targets and weights."""
    orders = [streams.order(own, len(member.rows), length) for own, member in enumerate(members)]
    pairs = list(zip(members, orders, strict=True))
    return (
        torch.stack([member.rows[order] for member, order in pairs]),
        torch.stack([member.targets[order] for member, order in pairs]),
        torch.stack([(member.weights / member.weights.mean())[order] for member, order in pairs]),
    )


def _warm_cosine(done: float, warm: float = 0.1) -> float:
    """Learning-rate factor at the fraction ``done`` of all steps: linear rise, cosine to 0."""
    return min((done + 1e-3) / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def predict(
    model: FusionModel, inputs: FeatureBatch, rows: Tensor, between: Callable[[], None] = lambda: None
) -> Tensor:
    """Log probabilities ``(E, n, C)`` of the ``(n,)`` rows, on the CPU; ``between`` as in :func:`train`."""
    members = len(model.streams.generators)
    at_once = (PREDICT_ROWS_GPU if rows.is_cuda else PREDICT_ROWS) // members
    parts = []
    for part in rows.split(max(at_once, 1)):
        between()
        parts.append(F.log_softmax(model(inputs[part].shared(members)), -1))
    return torch.cat(parts, 1).cpu()
