"""Which layout of fine-tuning is the cheapest that fits: plain data parallelism, ZeRO-2 or ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from mer_dist.config.sections import RunConfig
from mer_dist.planning import memory
from mer_dist.planning.memory import Held
from mer_dist.processes import launch_config
from mer_dist.processes.launch_config import LaunchLayout

#: Of what a GPU has, for the plan; the rest is left for fragmentation, as between nominal GB and real ones.
USABLE = 0.93
#: As ``run.layout`` names them.
NAMES = {"ddp": 0, "zero2": 2, "zero3": 3}
#: DeepSpeed's own work on a step, its hooks and copies, in bytes that a link of 25 GB/s sends in 10 ms: a usual
#: figure, not measured. For a few millions of gradients it is more than what it saves.
OWN_WORK = 250_000_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an optimizer step needs of one GPU, in bytes."""

    rows: dict[str, int]
    #: at the fullest moment.
    peak: int
    held: Held
    #: of the longest clips, how many the costliest pass is worth, and how many such passes a process makes.
    clips: int
    passes: int


#: How an extractor is fine-tuned, by the layout and the bytes of a GPU, which say how much a pass may hold.
Training = Callable[[LaunchLayout, float], Step]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layout for all extractors of a run, which are trained one after the other."""

    name: str
    zero_stage: int
    #: bytes at the fullest moment of a GPU.
    peak: int
    #: bytes that each process sends in an optimizer step; of the extractor by which most travel.
    travels: int


def compare(where: LaunchLayout, tuned: Mapping[str, Training], capacity: float) -> list[Choice]:
    """What each layout needs of the processes of ``where``, on GPUs of ``capacity`` bytes, the cheapest first; none
    for one process."""
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
    """Bytes of the smallest GPU of this machine that can be planned with; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    cards = range(torch.cuda.device_count())
    return USABLE * min(torch.cuda.get_device_properties(card).total_memory for card in cards)


def is_open(run: RunConfig, layout: LaunchLayout, capacity: float | None) -> bool:
    """Whether the layout is for ``mer-dist run`` to choose, which needs GPUs to choose for."""
    return not run.accelerate and run.layout == "auto" and layout.processes > 1 and capacity is not None


def settled(
    run: RunConfig, layout: LaunchLayout, choices: list[Choice], capacity: float | None
) -> LaunchLayout:
    """The layout, where it is open the cheapest that fits ``capacity``; if none fits, what holds the least, ZeRO-3."""
    if not is_open(run, layout, capacity) or not choices:
        return layout
    best = cheapest(choices, capacity or 0)
    return replace(layout, zero_stage=best.zero_stage if best else 3)


def capacities(sizes: Iterable[int], here: float | None) -> dict[str, float]:
    """Titles of common GPUs, of as many GB, and of those at hand -> bytes that can be planned with."""
    common = {f"{size} GB": size * 1e9 for size in sizes}
    return common if here is None else {**common, f"this machine ({here / USABLE / 1e9:.0f} GB)": here}


def reasons(choices: Mapping[str, list[Choice]], capacities: Mapping[str, float]) -> list[str]:
    """One line for all GPUs that one layout is proposed for, and why; both by the GPU's title."""
    lines: dict[str, list[str]] = {}
    for title, capacity in capacities.items():
        if best := cheapest(choices[title], capacity):
            cheaper = choices[title][: choices[title].index(best)]
            too_large = [f"{other.name} needs {gb(other.peak)} GB" for other in cheaper]
            why = "; ".join([f"{gb(best.travels)} GB travel a step", *too_large])
            lines.setdefault(f"{best.name} ({why})", []).append(title)
    return [f"cheapest layout that fits GPUs of {', '.join(of)}: {text}" for text, of in lines.items()]


def alone_by_file(run: RunConfig, tuned: Mapping[str, Training], capacity: float) -> list[str]:
    """That ``accelerate launch`` with one process does something else than ``mer-dist run``, if it does."""
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
    """Rows with a head, of the plan's values: bytes of every GPU's fullest moment, which takes more at a time
    where there is more, and what travels on the last of them."""
    last = [*choices.values()][-1]
    rows = [["layout", *(f"peak on {title}, GB" for title in choices), "travels a step, GB"]]
    for one in last:
        peaks = [next(own["peak"] for own in of if own["name"] == one["name"]) for of in choices.values()]
        rows.append([one["name"], *map(gb, peaks), gb(one["travels"])])
    return rows
