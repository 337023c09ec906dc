"""Bytes that one process of fine-tuning holds, from parameter counts and the launch layout.

Activations are not counted here. GB are 10^9 bytes throughout.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from mer_dist.processes.launch_config import LaunchLayout, reduce_bucket

#: DeepSpeed's default: ZeRO-3 may keep this many parameters gathered.
MAX_LIVE = 1_000_000_000
#: CUDA context, NCCL and library workspaces of one process; a usual figure, not computed.
CONTEXT = 1_000_000_000
#: Host memory of a process that has imported torch, transformers and DeepSpeed; likewise.
PROCESS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is held, whole, before it is split over processes."""

    parameters: int
    trainable: int
    #: of the weights that are not trained, as held: quantised, or in the training precision.
    frozen_bytes: int
    #: of one trained weight.
    element: int
    quantize: str
    full: bool
    #: held directly by one module.
    largest_layer: int
    #: of the largest linear layer once it is dequantised; 0: nothing is quantised.
    dequantized: int
    #: whether ZeRO-3 may split the weights while they are read.
    sharded_as_it_loads: bool = True

    @property
    def whole(self) -> int:
        """Bytes of all weights."""
        return self.frozen_bytes + self.trainable * self.element


def gpu(held: Held, where: LaunchLayout) -> dict[str, int]:
    """Bytes on one GPU by what they are for, activations excepted."""
    if where.zero_stage == 0:
        return _whole(held)
    split = where.processes if where.zero_stage == 3 else 1
    # bitsandbytes' 8-bit weights are no plain parameters; ZeRO-3 leaves them whole.
    frozen_split = 1 if held.quantize == "int8" else split
    weights = held.frozen_bytes // frozen_split + held.trainable * held.element // split
    if held.full:
        states = _deepspeed(held, where)[0] - weights
    else:
        # As DeepSpeed counts them: float32 gradients, masters and two moments of what is trained.
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
    """Bytes that each process sends, and receives as many, in one optimizer step, as rings and their like do it.

    Plain data parallelism sums the gradients once; ZeRO-2 after every pass, to the process that updates them, and
    gathers the new weights; ZeRO-3 gathers all weights for every pass, forward and backward again. 8-bit weights it
    leaves whole.

    Args:
        passes: micro-batches of one process in a step.
    """
    trained = held.trainable * held.element
    if where.zero_stage == 0:
        whole = 2 * trained
    elif where.zero_stage == 2:
        whole = (passes + 1) * trained
    else:
        split = trained if held.quantize == "int8" else held.whole
        whole = passes * (2 * split + trained)
    return whole * (where.processes - 1) // where.processes


def _whole(held: Held) -> dict[str, int]:
    """Without DeepSpeed: gradients and moments in the weights' own type."""
    trained = held.trainable * held.element
    rows = {"weights": held.whole, "gradients": trained, "optimizer": 2 * trained}
    return {**rows, "dequantised layer": held.dequantized, "CUDA and NCCL": CONTEXT}


def _deepspeed(held: Held, where: LaunchLayout) -> tuple[int, int]:
    """DeepSpeed's own estimates for training every weight: bytes of one GPU, and of one host.

    They take weights of 16 bits; those of 32 are added.
    """
    # DeepSpeed's log lines go to standard output, where the plan is written.
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
    """Bytes at the fullest moment: quantised weights are loaded whole before ZeRO-3 splits them."""
    loading = held.whole + CONTEXT if held.quantize != "none" else 0
    return max(sum(rows.values()), loading)


def host(held: Held, where: LaunchLayout) -> int:
    """Bytes of host memory of one process while it loads, without the page cache of the files.

    Under ZeRO-3 rank 0 maps the files and every rank keeps its share; otherwise, and quantised, or where the
    family cannot be split as it is read, each process reads the whole model. What is quantised is read in its
    own type first, a weight at a time.
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
