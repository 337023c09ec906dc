"""Checkpoints for another number of processes or another ZeRO stage.

DeepSpeed's universal checkpoints hold complete tensors: for every trained weight a folder with its
fp32 master and both moments. DeepSpeed converts its own partitions; this module writes and reads the
same layout for training without DeepSpeed. It also works around two faults of DeepSpeed's loading.
DeepSpeed gives every parameter group the settings of the first one in the checkpoint: here it has
none, because they come from the configuration. And all tensors that are updated one after the other
share one step counter, which each of them advances: here each gets its own.
"""

from __future__ import annotations

from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

MASTER, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
#: Below the folder of a universal checkpoint, in DeepSpeed's layout.
TENSORS, COMMON = "zero", "optimizer_state.pt"


def convert(checkpoint: Path, target: Path, step: int) -> None:
    """Write DeepSpeed's partitions in ``checkpoint`` as a universal checkpoint. Needs no process group,
    memory for about one rank's part, and as much disk as the checkpoint, twice that while it works."""
    from deepspeed.checkpoint import ds_to_universal

    # One worker each: further processes would read pickles without :func:`tensors_only`.
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        ds_to_universal.main(arguments)
    # The model states of the ranks are not needed, and DeepSpeed's pointer would mislead.
    for path in (*target.glob("*model_states.pt"), target.with_name("latest_universal")):
        path.unlink()
    common = torch.load(target / TENSORS / COMMON, map_location="cpu", weights_only=True)
    _write_common(target, step, len(common["param_groups"]))
    for path in (target / TENSORS).rglob(f"{MOMENTS[0]}.pt"):
        _complete(path.parent, step)


def _complete(folder: Path, step: int) -> None:
    """From ZeRO-3, DeepSpeed writes bare tensors without a step, which only ZeRO-3 can read."""
    for key in (MASTER, *MOMENTS):
        value = torch.load(folder / f"{key}.pt", map_location="cpu", weights_only=True)
        if isinstance(value, Tensor):
            _write_tensor(folder, key, value)
    torch.save(_counter(step), folder / "step.pt")


def write(
    weights: dict[str, Tensor], moments: dict[str, dict[str, Tensor]], groups: int, step: int, target: Path
) -> None:
    """The same for training without DeepSpeed.

    Args:
        weights: trained weights by name, the masters.
        moments: name -> ``exp_avg`` and ``exp_avg_sq``.
        groups: of parameters in the optimizer.
    """
    for name, weight in weights.items():
        folder = target / TENSORS / name
        folder.mkdir(parents=True)
        for key, value in {MASTER: weight, **{key: moments[name][key] for key in MOMENTS}}.items():
            _write_tensor(folder, key, value)
        torch.save(_counter(step), folder / "step.pt")
    _write_common(target, step, groups)


def _write_tensor(folder: Path, key: str, value: Tensor) -> None:
    torch.save({"param": value.detach().float().cpu().flatten(), "cat_dim": 0}, folder / f"{key}.pt")


def _write_common(target: Path, step: int, groups: int) -> None:
    """The state besides tensors, without settings. DeepSpeed writes rank 0's whole partition here."""
    from deepspeed import __version__

    param_groups = [{"params": [number]} for number in range(groups)]
    common = {
        "optimizer_state_dict": {"state": {0: {"step": _counter(step)}}, "param_groups": param_groups},
        "param_groups": param_groups,
        "ds_version": __version__,
    }
    torch.save(common, target / TENSORS / COMMON)


def load(folder: Path, model: Any, optimizer: Optimizer, step: int, zero_stage: int) -> None:
    """Fill the trained weights and the optimizer's state; called by all ranks.

    Args:
        model: as prepared by Accelerate: DeepSpeed's engine, or the module itself without DeepSpeed.
        step: optimizer steps before the checkpoint.
        zero_stage: 0 without DeepSpeed.
    """
    if zero_stage == 0:
        _load_alone(folder, model, optimizer, step)
        return
    zero = model.optimizer
    if zero_stage == 3:
        zero.checkpoint_event_prologue()
    zero.load_state_dict([], checkpoint_folder=str(folder))
    if zero_stage == 3:
        zero.checkpoint_event_epilogue()
    else:
        zero.update_lp_params()
    _own_counters(zero.optimizer, step)


def _own_counters(optimizer: Optimizer, step: int) -> None:
    for state in optimizer.state.values():
        state["step"] = _counter(step)


def _load_alone(folder: Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    state = {}
    for number, (name, weight) in enumerate(trained):
        weight.data.copy_(_tensor(folder, name, MASTER).view(weight.shape))
        moments = {key: _tensor(folder, name, key).view(weight.shape) for key in MOMENTS}
        state[number] = {"step": _counter(step), **moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _tensor(folder: Path, name: str, key: str) -> Tensor:
    return torch.load(folder / TENSORS / name / f"{key}.pt", map_location="cpu", weights_only=True)["param"]


def _counter(step: int) -> Tensor:
    return torch.tensor(float(step))
