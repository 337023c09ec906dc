"""Find the cheapest layout of fine-tuning that fits: plain data parallelism, ZeRO-2 or ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from mer_dist.config.sections import RunConfig
from mer_dist.planning import memory
from mer_dist.planning.memory import Held
from mer_dist.processes import launch_config
from mer_dist.processes.launch_config import LaunchLayout

#: Usable fraction of a GPU's memory; the rest, like that beyond its nominal GB, is for fragmentation.
USABLE = 0.93
#: As ``run.layout`` names them.
NAMES = {"ddp": 0, "zero2": 2, "zero3": 3}
#: Overhead of DeepSpeed in a step (hooks, copies), 10 ms, as the bytes that a link of 25 GB/s then sends: a
#: typical figure, not measured. For a few million gradients it exceeds the savings.
OWN_WORK = 250_000_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """Memory of one GPU in an optimizer step, in bytes."""

    rows: dict[str, int]
    #: largest sum over time.
    peak: int
    held: Held
    #: number of longest clips in the costliest pass, and number of such passes of a process.
    clips: int
    passes: int


#: The step of an extractor by the layout and the bytes of a GPU, which limit the size of a pass.
Training = Callable[[LaunchLayout, float], Step]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layout for all extractors of a run, which are trained one after the other."""

    name: str
    zero_stage: int
    #: peak bytes of a GPU.
    peak: int
    #: bytes that each process sends in an optimizer step; of the extractor that sends most.
    travels: int


def compare(where: LaunchLayout, tuned: Mapping[str, Training], capacity: float) -> list[Choice]:
    """The costs of each layout for the processes of ``where``, on GPUs of ``capacity`` bytes, cheapest first;
    empty for one process."""
    if where.processes == 1 or not tuned:
        return []
    found = []
    for name, stage in NAMES.items():
        there, peaks, sent = replace(where, zero_stage=stage), [], []
        for training in tuned.values():
            step = training(there, capacity)
            peaks.append(step.peak)
            sent.append(memory.travels(step.held, there, step.passes))
        found.append(Choice(name=name, zero_stage=stage, peak=max(peaks), travels=max(sent)))
    return sorted(found, key=lambda choice: choice.travels + OWN_WORK * bool(choice.zero_stage))


def cheapest(choices: list[Choice], capacity: float) -> Choice | None:
    """The first that fits ``capacity`` bytes of a GPU."""
    return next((choice for choice in choices if choice.peak <= capacity), None)


def capacity_here() -> float | None:
    """Usable bytes of the smallest GPU of this machine; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    cards = range(torch.cuda.device_count())
    return USABLE * min(torch.cuda.get_device_properties(card).total_memory for card in cards)


def is_open(run: RunConfig, layout: LaunchLayout, capacity: float | None) -> bool:
    """Whether ``mer-dist run`` chooses the layout, which it does only for GPUs."""
    return not run.accelerate and run.layout == "auto" and layout.processes > 1 and capacity is not None


def settled(
    run: RunConfig, layout: LaunchLayout, choices: list[Choice], capacity: float | None
) -> LaunchLayout:
    """The layout; if it is open, the cheapest that fits ``capacity``; if none fits, ZeRO-3, which needs least."""
    if not is_open(run, layout, capacity) or not choices:
        return layout
    best = cheapest(choices, capacity or 0)
    return replace(layout, zero_stage=best.zero_stage if best else 3)


def capacities(sizes: Iterable[int], here: float | None) -> dict[str, float]:
    """Titles of common GPUs of these GB ``sizes``, and of the one ``here`` -> usable bytes."""
    common = {f"{size} GB": size * 1e9 for size in sizes}
    return common if here is None else {**common, f"this machine ({here / USABLE / 1e9:.0f} GB)": here}


def reasons(choices: Mapping[str, list[Choice]], capacities: Mapping[str, float]) -> list[str]:
    """One line per proposed layout, with its GPUs and the reason; both arguments by a GPU's title."""
    lines: dict[str, list[str]] = {}
    for title, capacity in capacities.items():
        if best := cheapest(choices[title], capacity):
            cheaper = choices[title][: choices[title].index(best)]
            too_large = [f"{other.name} needs {gb(other.peak)} GB" for other in cheaper]
            why = "; ".join([f"{gb(best.travels)} GB travel a step", *too_large])
            lines.setdefault(f"{best.name} ({why})", []).append(title)
    return [f"cheapest layout that fits GPUs of {', '.join(of)}: {text}" for text, of in lines.items()]


def alone_by_file(run: RunConfig, tuned: Mapping[str, Training], capacity: float) -> list[str]:
    """A warning if ``accelerate launch`` with one process differs from ``mer-dist run``."""
    where = launch_config.alone_by_file(run)
    if where is None:
        return []
    needs = ", ".join(f"{name} {gb(training(where, capacity).peak)} GB" for name, training in tuned.items())
    text = (
        f"accelerate launch with {run.accelerate} and one process runs {where.description} ({needs} a GPU); "
        "mer-dist run trains one process without DeepSpeed, as counted here"
    )
    return [text]


def gb(count: float) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.3f}"


def table(choices: Mapping[str, list[Mapping]]) -> list[list[str]]:
    """Rows with a header, from the plan's values: peak bytes on every GPU, whose passes grow with its memory,
    and the traffic on the last of them."""
    last = [*choices.values()][-1]
    rows = [["layout", *(f"peak on {title}, GB" for title in choices), "travels a step, GB"]]
    for one in last:
        peaks = [next(own["peak"] for own in of if own["name"] == one["name"]) for of in choices.values()]
        rows.append([one["name"], *map(gb, peaks), gb(one["travels"])])
    return rows
