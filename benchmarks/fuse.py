"""How fast fusion is on features of the challenge's size, against how its baseline trains.

Everything in one run, the contestants in turns, medians over rounds; fuse_setting.py says what the
clips and the baseline are. Times are CPU seconds of this process and those that it started and has
seen end, wall clock where there is a GPU. ::

    python benchmarks/fuse.py --out runs/fuse
    python benchmarks/fuse.py --out runs/fuse --full                         # the whole job, at the defaults
    python benchmarks/fuse.py --out runs/fuse --full --width 256 --batch 256  # and wide; hours
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import fuse_setting as setting
import torch
from fuse_setting import DEVICE, FOLDS, LABELED

from mer_dist.config.config import Config
from mer_dist.config.sections import FuseConfig
from mer_dist.core.log import setup
from mer_dist.features import join
from mer_dist.fusion import cuda_graph
from mer_dist.fusion.batch import FeatureBatch
from mer_dist.fusion.ensemble import MemberData, predict, train
from mer_dist.stages import fuse as stage
from mer_dist.storage import timings
from mer_dist.storage.run_folder import Run

FEW, MANY = 20_000, 115_595
SEEDS, EPOCHS, ROUNDS, PSEUDO = 3, 20, 3, 60_000
#: Of the batched products against which the stage is measured.
SQUARE = 2048
ATTENTION = FuseConfig(model="attention", width=setting.HIDDEN, batch=setting.BATCH, epochs=1)
LARGER = replace(ATTENTION, batch=128)
AGT = FuseConfig(width=256, batch=256, epochs=1)
#: Steps before those that are timed: where steps are recorded, the recording lies in them.
BEFORE = 1 if DEVICE == "cpu" else cuda_graph.WORTH
#: Beginning of an operator's name -> where its time goes.
GROUPS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::matmul"),
    "random numbers and dropout masks": ("aten::random", "aten::rand", "aten::ge", "aten::bitwise"),
    "gathering clips": ("aten::index",),
    "optimizer": ("aten::_fused_adam",),
}


@dataclass
class Table:
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str, aim: float | None = None, reached: float = 0.0) -> None:
        verdict = "" if aim is None else f"aim {aim:g}: {'met' if reached >= aim else 'missed'}"
        self.rows.append((what, figure, verdict))
        print(f"{what:<80} {figure:>16}  {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/fuse"))
    parser.add_argument("--few", type=int, default=FEW, help="unlabelled clips of the smaller size")
    parser.add_argument("--unlabeled", type=int, default=MANY, help="unlabelled clips of the larger size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="only run the whole job through the stage")
    parser.add_argument("--width", type=int, default=FuseConfig().width, help="of the whole job's AGT")
    parser.add_argument("--batch", type=int, default=FuseConfig().batch, help="of the whole job")
    parsed = parser.parse_args()
    setup("fuse")
    torch.set_num_threads(parsed.threads)
    if parsed.full:
        return full(parsed)
    table = Table()
    loading(table, parsed)
    for unlabeled, aim in ((parsed.few, 4), (parsed.unlabeled, 11)):
        epochs(table, unlabeled, aim, parsed)
    inputs, truth = setting.inputs_of(parsed.few)
    for config in (ATTENTION, FuseConfig(epochs=1), AGT):
        one_by_one(table, inputs, setting.lessons_of(truth, SEEDS), config, parsed.rounds)
        if DEVICE == "cuda":
            replayed(table, inputs, setting.lessons_of(truth, SEEDS), config, parsed.rounds)
        equality(table, config, torch.float)
    equality(table, ATTENTION, torch.double)
    of_peak(table, inputs, setting.lessons_of(truth, SEEDS), parsed.rounds)
    where(table, inputs, setting.lessons_of(truth, SEEDS))
    for config in (AGT, FuseConfig(epochs=1)):
        extrapolate(table, inputs, setting.lessons_of(truth, SEEDS), config, parsed)
    memory(table, parsed)


def seconds(call: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        started = _cpu()
        call()
        return _cpu() - started
    torch.cuda.synchronize()
    return _wall(lambda: (call(), torch.cuda.synchronize()))


def _wall(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turns(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call; every round times all of them."""
    taken = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [median(own) for own in zip(*taken, strict=True)]


def stepping(
    inputs: FeatureBatch, lessons: list[MemberData], config: FuseConfig, steps: int, rounds: int
) -> float:
    """Seconds of one step, without what a training does once."""
    train(inputs, lessons, config, 1)
    once, more = in_turns(
        rounds,
        lambda: train(inputs, lessons, config, BEFORE),
        lambda: train(inputs, lessons, config, BEFORE + steps),
    )
    return max(more - once, 1e-9) / steps


def steps_of(config: FuseConfig) -> int:
    """So many that their time can be told."""
    return max(640 // config.batch, 4) if DEVICE == "cpu" else 200


def loading(table: Table, parsed: argparse.Namespace) -> None:
    """From files to what training takes, the file cache warm for both."""
    config = setting.write_run(parsed.out, parsed.few)
    setting.write_files(parsed.out / "files", parsed.few)
    count = LABELED + parsed.few
    clips, _ = join.read_clips(config, Run(config.run.folder))
    setting.read_files(parsed.out / "files", count)
    ways = (
        lambda: setting.hand_over_files(parsed.out / "files", count),
        lambda: setting.read_files(parsed.out / "files", count),
        lambda: [join.read_set(Run(config.run.folder), name, clips) for name in setting.WIDTHS],
        lambda: load(config, clips),
    )
    in_turns(1, *ways)  # a virtual machine gets its memory when it is first touched
    slow, plain, read, ready = in_turns(parsed.rounds, *ways)
    table.add(f"one file per clip and modality, {count} clips: the baseline's way", f"{slow:.2f} s")
    table.add("  one file after the other in one process", f"{plain:.2f} s")
    for what, own in (
        ("feature sets in the order of the clips, checked for NaN", read),
        ("the same until tensors are ready, standardised", ready),
    ):
        table.add(what, f"{own:.2f} s")
        table.add("  times faster than the baseline's way", f"{slow / own:.1f}", 20, slow / own)
        table.add("  times faster than file after file in one process", f"{plain / own:.1f}")
    walls = ", ".join(f"{_wall(way):.2f}" for way in ways)
    table.add("the four in wall clock, once", f"{walls} s")


def load(config: Config, clips: join.Clips) -> FeatureBatch:
    sets = stage._Sets(config, Run(config.run.folder), clips, [])
    return stage._inputs(config, sets, join.fused_sets(config))


def epochs(table: Table, unlabeled: int, aim: float, parsed: argparse.Namespace) -> None:
    """CPU seconds of a fold's epoch, prediction included."""
    inputs, truth = setting.inputs_of(unlabeled)
    embeddings = {
        modality: [row.copy() for row in values[:, 0].float().cpu().numpy()]
        for modality, values in zip(inputs.modality, inputs.values, strict=True)
    }
    fold, lessons = setting.BaselineFold(embeddings, truth), setting.lessons_of(truth, 1)
    models, _ = train(inputs, lessons, ATTENTION, 1)
    some = torch.arange(min(len(truth), FEW), device=DEVICE)
    slow_train, slow_predict, ours, larger, told = in_turns(
        parsed.rounds,
        fold.train,
        fold.predict,
        lambda: train(inputs, lessons, ATTENTION),
        lambda: train(inputs, lessons, LARGER),
        lambda: predict(models, inputs, some),
    )
    del embeddings, fold
    slow, ours, larger = slow_train + slow_predict, ours / FOLDS, larger / FOLDS
    told *= len(truth) / len(some) / FOLDS
    fast = ours + told / EPOCHS
    table.add(f"attention, {unlabeled} unlabelled: the baseline's way, a fold's epoch", f"{slow:.2f} s")
    table.add("  of which training, prediction", f"{slow_train:.2f}, {slow_predict:.2f} s")
    table.add(f"{FOLDS} folds at once, predicted once in {EPOCHS} epochs, a fold's epoch", f"{fast:.2f} s")
    table.add("  of which training; one prediction of all clips takes", f"{ours:.2f}; {told:.2f} s")
    table.add("  times less", f"{slow / fast:.1f}", aim, slow / fast)
    table.add("  times less if it predicted in every epoch, too", f"{slow / (ours + told):.1f}")
    fast = larger + told / EPOCHS
    table.add(f"  the same with batches of {LARGER.batch}", f"{fast:.2f} s")
    table.add("  times less", f"{slow / fast:.1f}", aim, slow / fast)


def one_by_one(table: Table, inputs: FeatureBatch, lessons: list, config: FuseConfig, rounds: int) -> None:
    """All members at once against one after the other, at the same batch size."""

    def alone(steps: int) -> None:
        for lesson in lessons:
            train(inputs, [lesson], config, steps)

    steps = steps_of(config)
    train(inputs, lessons, config, 1)
    first, whole, own_first, own_whole = in_turns(
        rounds,
        lambda: train(inputs, lessons, config, BEFORE),
        lambda: train(inputs, lessons, config, BEFORE + steps),
        lambda: alone(BEFORE),
        lambda: alone(BEFORE + steps),
    )
    gain = (own_whole - own_first) / (whole - first)
    each = 1000 * (whole - first) / steps / len(lessons)
    size = f"width {config.width}, batch {config.batch}"
    title = f"{config.model} {size}, {len(lessons)} at once: a step of one"
    table.add(title, f"{each:.1f} ms")
    table.add("  times faster than one by one", f"{gain:.2f}", 5 if DEVICE == "cuda" else 1, gain)


def replayed(
    table: Table, inputs: FeatureBatch, lessons: list[MemberData], config: FuseConfig, rounds: int
) -> None:
    """A step whose kernels a GPU starts at once, against one whose kernels are started one by one."""
    recorded = stepping(inputs, lessons, config, steps_of(config), rounds)
    cuda_graph.CudaGraphStep.possible = False
    plain = stepping(inputs, lessons, config, steps_of(config), rounds)
    cuda_graph.CudaGraphStep.possible = True
    size = f"{config.model} width {config.width}, batch {config.batch}, {len(lessons)} at once"
    table.add(f"{size}: a step replayed", f"{1000 * recorded:.2f} ms")
    table.add("  kernel by kernel", f"{1000 * plain:.2f} ms")
    table.add("  times faster", f"{plain / recorded:.2f}")


def equality(table: Table, config: FuseConfig, dtype: torch.dtype) -> None:
    """How far the members' answers to their held-out clips differ by being trained alone."""
    inputs, truth = setting.inputs_of(1)
    inputs.values[:] = [values.to(dtype) for values in inputs.values]
    lessons, config = setting.lessons_of(truth, 1), replace(config, epochs=3)
    rows = torch.arange(LABELED, device=DEVICE)
    lessons = [
        replace(lesson, targets=lesson.targets.to(dtype), weights=lesson.weights.to(dtype))
        for lesson in lessons
    ]
    told = predict(train(inputs, lessons, config)[0], inputs, rows)
    alone = (predict(train(inputs, [lesson], config)[0], inputs, rows)[0] for lesson in lessons)
    apart = max(
        (whole - own)[fold::FOLDS].abs().max().item()
        for fold, (whole, own) in enumerate(zip(told, alone, strict=True))
    )
    name = f"{config.model} width {config.width}, batch {config.batch}, {str(dtype).removeprefix('torch.')}"
    table.add(f"{name}: {FOLDS} at once and one by one, 3 epochs, log probabilities", f"{apart:.1e} apart")


def of_peak(table: Table, inputs: FeatureBatch, lessons: list[MemberData], rounds: int) -> None:
    """What part of the machine's rate for matrix products the AGT stage reaches."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        train(inputs, lessons, AGT, 1)
    square = torch.randn(SQUARE, SQUARE, device=DEVICE)
    (before,) = in_turns(rounds, lambda: torch.mm(square, square))
    step = stepping(inputs, lessons, AGT, steps_of(AGT), rounds)
    (after,) = in_turns(rounds, lambda: torch.mm(square, square))
    rate, peak = counter.get_total_flops() / step, 2 * SQUARE**3 / median((before, after))
    table.add(f"torch.mm of {SQUARE} x {SQUARE}, per CPU second", f"{peak / 1e9:.0f} GFLOP/s")
    table.add(
        f"AGT width {AGT.width}, batch {AGT.batch}: products of a step, forward and back",
        f"{counter.get_total_flops() / 1e9:.1f} GFLOP",
    )
    table.add("  reached", f"{rate / 1e9:.0f} GFLOP/s")
    table.add("  of the rate of torch.mm", f"{rate / peak:.2f}", 0.5, rate / peak)


def where(table: Table, inputs: FeatureBatch, lessons: list[MemberData], steps: int = 3) -> None:
    """Where the time of AGT steps goes, by operator."""
    from torch.autograd import DeviceType
    from torch.profiler import profile

    found = []
    own_time = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    for count in (1, 1 + steps):
        with profile() as profiler:  # of every kind of device there is
            train(inputs, lessons, AGT, count)
        # A GPU's kernels stand there beside the operators that launched them.
        found.append(
            {
                event.key: getattr(event, own_time)
                for event in profiler.key_averages()
                if event.device_type == DeviceType.CPU
            }
        )
    took = {key: time - found[0].get(key, 0) for key, time in found[1].items()}
    whole, left = sum(took.values()), dict(took)
    for group, starts in GROUPS.items():
        own = sum(left.pop(key) for key in took if key.startswith(starts) and key in left)
        table.add(f"AGT step: {group}", f"{own / whole:.1%}")
    table.add("AGT step: the rest", f"{sum(left.values()) / whole:.1%}")
    for key in sorted(left, key=left.get, reverse=True)[:6]:
        table.add(f"    {key.removeprefix('aten::')}", f"{left[key] / whole:.1%}")


def extrapolate(
    table: Table,
    inputs: FeatureBatch,
    lessons: list[MemberData],
    config: FuseConfig,
    parsed: argparse.Namespace,
) -> None:
    """Minutes of the whole job, from a measured step and prediction."""
    step = stepping(inputs, lessons, config, steps_of(config), parsed.rounds) / len(lessons)
    model, _ = train(inputs, lessons, config, 1)
    some = torch.arange(min(LABELED + parsed.few, 2048), device=DEVICE)
    told = in_turns(parsed.rounds, lambda: predict(model, inputs, some))[0] / len(some) / len(lessons)
    taught = LABELED * (FOLDS - 1) // FOLDS + PSEUDO
    steps = ROUNDS * FOLDS * EPOCHS * -(-taught // config.batch)
    clips = ROUNDS * FOLDS * (LABELED + parsed.unlabeled)
    table.add(
        f"extrapolated, width {config.width}, batch {config.batch}: {FOLDS} folds x {ROUNDS} rounds x "
        f"{EPOCHS} epochs, {PSEUDO} pseudo",
        f"{(steps * step + clips * told) / 60:.0f} min a seed",
    )


def memory(table: Table, parsed: argparse.Namespace) -> None:
    """Peaks of processes of their own."""
    jobs = ("loading", _load_alone, parsed.few), ("training AGT", _train_alone, parsed.unlabeled)
    for what, call, count in jobs:
        size, peak = _alone(call, parsed.out, count)
        table.add(
            f"peak memory of {what}, {count} unlabelled; the tensors alone",
            f"{peak / 2**30:.1f}; {size / 2**30:.1f} GiB",
        )


def _alone(call: Callable, *arguments):
    """The call's result, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _load_alone(folder: Path, unlabeled: int) -> tuple[int, int]:
    from mer_dist.config import config as configuration

    config = configuration.load(folder / "job.yaml")
    clips, _ = join.read_clips(config, Run(config.run.folder))
    return _bytes(load(config, clips)), _peak()


def _train_alone(folder: Path, unlabeled: int) -> tuple[int, int]:
    inputs, truth = setting.inputs_of(unlabeled)
    model, _ = train(inputs, setting.lessons_of(truth, SEEDS), AGT, 3)
    predict(model, inputs, torch.arange(4 * AGT.batch, device=DEVICE))
    return _bytes(inputs), _peak()


def _bytes(inputs: FeatureBatch) -> int:
    return sum(values.nbytes for values in inputs.values)


def _peak() -> int:
    """Bytes: the most that the process ever held.

    Not from ``getrusage``, which also counts the process that this one was forked from.
    """
    told = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(told.partition("VmHWM:")[2].split()[0])


def full(parsed: argparse.Namespace) -> None:
    """The whole job through the stage, from features to the answer file."""
    shutil.rmtree(parsed.out / "full", ignore_errors=True)  # a run that is there would only be resumed
    quota = min(PSEUDO / max(parsed.unlabeled, 1), 1)
    config = setting.write_run(
        parsed.out / "full",
        parsed.unlabeled,
        (
            f"run.threads={parsed.threads}",
            f"fuse.width={parsed.width}",
            f"fuse.batch={parsed.batch}",
            f"fuse.epochs={EPOCHS}",
            "fuse.seeds=1",
            f"self_train.rounds={ROUNDS}",
            "self_train.rule=quota",
            f"self_train.quota={quota}",
        ),
    )
    took, peak = _alone(_fuse_alone, config)
    table = Table()
    table.add(
        f"{FOLDS} folds, 1 seed, {ROUNDS} rounds of {EPOCHS} epochs, width {parsed.width}, batches of "
        f"{parsed.batch}",
        f"{took / 60:.1f} min",
    )
    for part, spent in timings.by_part(Run(config.run.folder)).items():
        table.add(f"  of which {part}", f"{spent.seconds / 60:.1f} min")
    table.add("peak memory", f"{peak / 2**30:.1f} GiB")


def _fuse_alone(config: Config) -> tuple[float, int]:
    setup("fuse")
    started = time.monotonic()
    stage.fuse(config)
    return time.monotonic() - started, _peak()


if __name__ == "__main__":
    main()
