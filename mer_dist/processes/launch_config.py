"""How fine-tuning is launched: the number of processes and machines and DeepSpeed's stage, by configuration or by an
Accelerate launch file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mer_dist.config import yaml_reader
from mer_dist.config.sections import RunConfig
from mer_dist.core.errors import UserError
from mer_dist.storage import files

#: DeepSpeed's default, in parameters: gradients are collected in a buffer of this size, allocated whole.
REDUCE_BUCKET = 500_000_000
#: Accelerate's default.
PORT = 29500
#: Of ``run.layout`` -> ZeRO stage of several processes; ``auto``: where nothing is known of the GPUs.
STAGES = {"auto": 3, "ddp": 0, "zero2": 2, "zero3": 3}
#: What Accelerate calls the ways of joining processes that are supported.
JOINED = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED")


@dataclass(frozen=True, kw_only=True)
class LaunchLayout:
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
    def description(self) -> str:
        if self.zero_stage:
            return f"ZeRO-{self.zero_stage}"
        return "plain data parallelism" if self.processes > 1 else "no DeepSpeed"


def reduce_bucket(trainable: int) -> int:
    """Elements of the buffer in which DeepSpeed collects gradients: all of them, if its default would
    hold them. The default would be a billion bytes for the few millions of an adapter."""
    return min(REDUCE_BUCKET, trainable)


def layout(run: RunConfig) -> LaunchLayout:
    """The layout of ``finetune`` as ``mer-dist run`` launches it: alone, by ``run.layout``, or by the file.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    if not run.accelerate:
        return LaunchLayout(
            processes=run.processes, zero_stage=STAGES[run.layout] if run.processes > 1 else 0
        )
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
    return LaunchLayout(processes=processes, machines=machines, zero_stage=stage, reduce_bucket=bucket)


def alone_by_file(run: RunConfig) -> LaunchLayout | None:
    """The layout if ``accelerate launch`` starts the launch file with one process, which ``mer-dist run`` would
    train without it; None where that makes no difference.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    if not run.accelerate or layout(run).processes > 1:
        return None
    stage, bucket = _zero(_mapping(run.accelerate, "run.accelerate"), run.accelerate)
    return LaunchLayout(processes=1, zero_stage=stage, reduce_bucket=bucket) if stage else None


def launch_port(run: RunConfig) -> int:
    """Where the ranks meet if ``accelerate launch`` is not told otherwise.

    Raises:
        UserError: ``run.accelerate`` cannot be read.
    """
    settings = _mapping(run.accelerate, "run.accelerate") if run.accelerate else {}
    return _number(settings, "main_process_port", PORT, run)


def _mapping(path: str, key: str) -> dict:
    try:
        values = yaml_reader.parse(Path(path).read_text(encoding="utf-8"), path)
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
