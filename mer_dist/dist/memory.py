"""Bytes that one process of fine-tuning holds, from parameter counts and the launch layout.

Activations are not counted here. GB are 10^9 bytes throughout.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from mer_dist import files, strict
from mer_dist.errors import UserError
from mer_dist.settings import RunConfig

#: DeepSpeed's defaults, in parameters: ZeRO-3 may keep this many gathered ...
MAX_LIVE = 1_000_000_000
#: ... and both stages collect gradients in a buffer of this size, allocated whole.
REDUCE_BUCKET = 500_000_000
#: Accelerate's default.
PORT = 29500
#: Of ``run.layout`` -> ZeRO stage of several processes; ``auto``: where nothing is known of the GPUs.
STAGES = {"auto": 3, "ddp": 0, "zero2": 2, "zero3": 3}
#: What Accelerate calls the ways of joining processes that are supported.
JOINED = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED")
#: CUDA context, NCCL and library workspaces of one process; a usual figure, not computed.
CONTEXT = 1_000_000_000
#: Host memory of a process that has imported torch, transformers and DeepSpeed; likewise.
PROCESS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How fine-tuning is launched."""

    processes: int
    machines: int = 1
    #: 0: no DeepSpeed; every process holds everything, and several are plainly data parallel.
    zero_stage: int = 0
    #: elements, if the user's own DeepSpeed file says so.
    reduce_bucket: int | None = None

    @property
    def per_machine(self) -> int:
        return -(-self.processes // self.machines)

    @property
    def told(self) -> str:
        if self.zero_stage:
            return f"ZeRO-{self.zero_stage}"
        return "plain data parallelism" if self.processes > 1 else "no DeepSpeed"


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


def reduce_bucket(trainable: int) -> int:
    """Elements of the buffer in which DeepSpeed collects gradients: all of them, if its default would
    hold them. The default would be a billion bytes for the few millions of an adapter."""
    return min(REDUCE_BUCKET, trainable)


def layout(run: RunConfig) -> Layout:
    """The layout of ``finetune`` as ``mer-dist run`` launches it: alone, by ``run.layout``, or by the file.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    if not run.accelerate:
        return Layout(processes=run.processes, zero_stage=STAGES[run.layout] if run.processes > 1 else 0)
    settings = _mapping(run.accelerate, "run.accelerate")
    machines = _number(settings, "num_machines", 1, run)
    # mer-dist run gives its own number; on several machines every launcher takes it from the file.
    processes = run.processes
    if machines > 1:
        processes = _number(settings, "num_processes", run.processes, run)
    stage, bucket = _zero(settings, run.accelerate)
    if processes == 1:
        # It trains here, without a launcher.
        stage, bucket = 0, None
    return Layout(processes=processes, machines=machines, zero_stage=stage, reduce_bucket=bucket)


def alone_by_file(run: RunConfig) -> Layout | None:
    """The layout if ``accelerate launch`` starts the launch file with one process, which ``mer-dist run`` would
    train without it; None where that makes no difference.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    if not run.accelerate or layout(run).processes > 1:
        return None
    stage, bucket = _zero(_mapping(run.accelerate, "run.accelerate"), run.accelerate)
    return Layout(processes=1, zero_stage=stage, reduce_bucket=bucket) if stage else None


def launch_port(run: RunConfig) -> int:
    """Where the ranks meet if ``accelerate launch`` is not told otherwise.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    settings = _mapping(run.accelerate, "run.accelerate") if run.accelerate else {}
    return _number(settings, "main_process_port", PORT, run)


def _mapping(path: str, key: str) -> dict:
    try:
        values = strict.parse(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}{files.offered(path)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{key}: {path} is no Accelerate launch file")
    return values


def _number(settings: dict, key: str, default: int, run: RunConfig) -> int:
    value = settings.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise UserError(f"run.accelerate: {key} in {run.accelerate} is {value!r}; it must be a number")
    return value


def _zero(settings: dict, path: str) -> tuple[int, int | None]:
    """The ZeRO stage, and the gradient buffer if a DeepSpeed file of the user's sets it."""
    kind = settings.get("distributed_type", "NO")
    if kind not in JOINED:
        raise UserError(
            f"run.accelerate: distributed_type {kind} of {path} is not supported; set it to MULTI_GPU (plain data "
            "parallelism) or DEEPSPEED"
        )
    if kind != "DEEPSPEED":
        return 0, None
    own = settings.get("deepspeed_config") or {}
    if "deepspeed_config_file" in own:
        try:
            own = files.read_json(own["deepspeed_config_file"])["zero_optimization"]
            stage, bucket = int(own["stage"]), own.get("reduce_bucket_size", "auto")
            return stage, None if bucket == "auto" else int(bucket)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: its deepspeed_config_file has no ZeRO stage: {error!r}") from None
    # Accelerate's own default.
    return int(own.get("zero_stage", 2)), None


def gpu(held: Held, where: Layout) -> dict[str, int]:
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


def travels(held: Held, where: Layout, passes: int) -> int:
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


def _deepspeed(held: Held, where: Layout) -> tuple[int, int]:
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


def host(held: Held, where: Layout) -> int:
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
