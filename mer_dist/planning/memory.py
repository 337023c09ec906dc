"""Memory of one process of fine-tuning, from parameter counts and the launch layout.

Activations are not counted here. GB are 10^9 bytes throughout.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from mer_dist.processes.launch_config import LaunchLayout, reduce_bucket

#: DeepSpeed's default: ZeRO-3 may keep this many parameters gathered.
MAX_LIVE = 1_000_000_000
#: CUDA context, NCCL and library workspaces of one process; a typical figure, not computed.
CONTEXT = 1_000_000_000
#: Host memory of a process that has imported torch, transformers and DeepSpeed; likewise.
PROCESS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Held:
    """Parameters and bytes of a model before it is split over processes."""

    parameters: int
    trainable: int
    #: of the frozen weights, as stored: quantised, or in the training precision.
    frozen_bytes: int
    #: of one trained weight.
    element: int
    quantize: str
    full: bool
    #: parameters directly in one module.
    largest_layer: int
    #: of the largest linear layer, dequantised; 0: nothing is quantised.
    dequantized: int
    #: whether ZeRO-3 may split the weights while they are loaded.
    sharded_as_it_loads: bool = True

    @property
    def whole(self) -> int:
        """Bytes of all weights."""
        return self.frozen_bytes + self.trainable * self.element


def gpu(held: Held, where: LaunchLayout) -> dict[str, int]:
    """Bytes on one GPU by purpose, without activations."""
    if where.zero_stage == 0:
        return _whole(held)
    split = where.processes if where.zero_stage == 3 else 1
    # bitsandbytes' 8-bit weights are not plain parameters; ZeRO-3 does not split them.
    frozen_split = 1 if held.quantize == "int8" else split
    weights = held.frozen_bytes // frozen_split + held.trainable * held.element // split
    if held.full:
        states = _deepspeed(held, where)[0] - weights
    else:
        # As in DeepSpeed: float32 gradients, masters and two moments of the trained weights.
        states = 16 * held.trainable // where.processes
    optimizer = 12 * held.trainable // where.processes
    rows = {"weights": weights, "gradients": states - optimizer, "optimizer": optimizer}
    if where.zero_stage == 3:
        live = min(held.parameters, max(MAX_LIVE, held.largest_layer))
        rows["gathered layers"] = held.whole * live // held.parameters
    rows["reduce bucket"] = (where.reduce_bucket or reduce_bucket(held.trainable)) * held.element
    rows["dequantised layer"] = held.dequantized
    rows["CUDA and NCCL"] = CONTEXT
    return rows


def travels(held: Held, where: LaunchLayout, passes: int) -> int:
    """Bytes that each process sends, and also receives, in one optimizer step, with ring-like collectives.

    Plain data parallelism reduces the gradients once. ZeRO-2 reduces them after every pass, to the process
    that updates them, and gathers the new weights. ZeRO-3 gathers all weights for every pass, forward and
    again backward, except 8-bit weights, which it does not split.

    Args:
        passes: micro-batches of one process in a step.
    """
    trained = held.trainable * held.element
    if where.zero_stage == 0:
        total = 2 * trained
    elif where.zero_stage == 2:
        total = (passes + 1) * trained
    else:
        split = trained if held.quantize == "int8" else held.whole
        total = passes * (2 * split + trained)
    return total * (where.processes - 1) // where.processes


def _whole(held: Held) -> dict[str, int]:
    """Without DeepSpeed: gradients and moments in the weights' own dtype."""
    trained = held.trainable * held.element
    rows = {"weights": held.whole, "gradients": trained, "optimizer": 2 * trained}
    return {**rows, "dequantised layer": held.dequantized, "CUDA and NCCL": CONTEXT}


def _deepspeed(held: Held, where: LaunchLayout) -> tuple[int, int]:
    """DeepSpeed's own estimates for training every weight: bytes of one GPU, and of one host.

    They assume 16-bit weights; the rest of 32-bit ones is added.
    """
    # DeepSpeed logs to standard output, where the plan is written.
    with contextlib.redirect_stdout(sys.stderr):
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2
    group = {"num_gpus_per_node": where.per_machine, "num_nodes": where.machines, "cpu_offload": False}
    total = held.parameters
    if where.zero_stage == 3:
        host, device, largest = zero3(total, held.largest_layer, cpu_offload_params=False, **group)
        device -= largest  # counted among the gathered layers
        split = where.processes
    else:
        host, device = zero2(total, **group)
        split = 1
    return device + (held.element - 2) * total // split, host


def peak(held: Held, rows: dict[str, int]) -> int:
    """Peak bytes: quantised weights are loaded completely before ZeRO-3 splits them."""
    loading = held.whole + CONTEXT if held.quantize != "none" else 0
    return max(sum(rows.values()), loading)


def host(held: Held, where: LaunchLayout) -> int:
    """Bytes of host memory of one process while it loads, without the page cache of the files.

    Under ZeRO-3 rank 0 maps the files and every rank keeps its part. Without ZeRO-3, quantised, or if the
    family cannot be split while it is loaded, each process reads the whole model. Weights to quantise are
    first read in their own dtype, one at a time.
    """
    if where.zero_stage == 3 and held.quantize == "none" and held.sharded_as_it_loads:
        loading = held.whole // where.processes
    else:
        loading = held.whole
    if held.quantize != "none":
        loading += 2 * held.largest_layer
    if held.full and where.zero_stage:
        loading = max(loading, _deepspeed(held, where)[1] // where.per_machine)
    return PROCESS + loading
