"""The fold file: the fold of each labelled clip, for finetune and fuse alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mer_dist.config.config import Config
from mer_dist.config.sections import FoldConfig
from mer_dist.core.errors import UserError, reading
from mer_dist.shards import shard_index
from mer_dist.storage.files import fingerprint_of, read_json, write_json
from mer_dist.storage.run_folder import Run

SHOWN = 3


#: Names of clips that are one recording, group by group; see mer_dist/corpus/twins.py.
Twins = Sequence[Sequence[str]]


def make(labels: dict[str, str], config: FoldConfig, twins: Twins = ()) -> dict[str, int]:
    """Stratified, seeded folds; clips of one group or of one recording stay together.

    Args:
        labels: clip name -> label. The result does not depend on the order.

    Raises:
        UserError: a class has fewer clips, or there are fewer groups, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = sorted(labels)
    counts = Counter(labels.values())
    few = {label: count for label, count in counts.items() if count < config.count}
    if few or not counts:
        least = min(few.values(), default=0)
        lower = f"lower folds.count to {least}, " if least > 1 else ""
        raise UserError(
            f"folds.count is {config.count}, but these labels have fewer clips: {few or 'all'}; {lower}"
            "add clips of them, or leave them out of corpus.labels"
        )
    targets = [labels[name] for name in names]
    group_of = groups(names, config.group, twins)
    if not group_of:
        splitter = StratifiedKFold(config.count, shuffle=True, random_state=config.seed)
        return _numbered(names, splitter.split(names, targets))
    of_clips = [group_of[name] for name in names]
    if len(set(of_clips)) < config.count:
        found = len(set(of_clips))
        why = f"the labelled clips are of {found} recording{'s' * (found > 1)}, each in one fold alone"
        why = f"folds.group makes {found} groups" if config.group else why
        raise UserError(f"{why}, fewer than folds.count {config.count}")
    splitter = StratifiedGroupKFold(config.count, shuffle=True, random_state=config.seed)
    made = _numbered(names, splitter.split(names, targets, of_clips))
    home = _spread(
        {group: made[name] for name, group in zip(names, of_clips, strict=True)},
        Counter(zip(of_clips, targets, strict=True)),
        config.count,
    )
    return {name: home[group] for name, group in zip(names, of_clips, strict=True)}


def _numbered(names: list[str], splits: Iterable) -> dict[str, int]:
    return {names[row]: fold for fold, (_, rows) in enumerate(splits) for row in rows}


def _spread(home: dict[str, int], clips: Counter[tuple[str, str]], count: int) -> dict[str, int]:
    """Folds of the groups, such that a label with several groups is in more than one fold.

    scikit-learn assigns one group after the other and balances the folds, which now and then puts all
    groups of a rare label into one fold; the models without that fold would never see the label. While
    there is such a label, move the group that fixes most and keeps label proportions most even.

    Args:
        home: group -> fold.
        clips: (group, label) -> clips.
    """
    groups, labels = sorted(home), sorted({label for _, label in clips})
    have = np.array([[clips[group, label] for label in labels] for group in groups])
    whole, several = have.sum(0), (have > 0).sum(0) > 1
    fold = np.array([home[group] for group in groups])
    held = np.stack([have[fold == number].sum(0) for number in range(count)])

    def together(held: np.ndarray) -> np.ndarray:
        return several & ((held > 0).sum(0) == 1)

    def cost(held: np.ndarray) -> tuple[int, float]:
        return int(together(held).sum() + (held.sum(1) == 0).sum()), float((held / whole).std(0).sum())

    def moved(row: int, number: int) -> np.ndarray:
        after = held.copy()
        after[fold[row]] -= have[row]
        after[number] += have[row]
        return after

    while cost(held)[0]:
        # Only groups of such a label fix it, and any group fills an empty fold; there may be many groups.
        able = (have[:, together(held)] > 0).any(1) | (held.sum(1) == 0).any()
        moves = ((row, number) for row in np.flatnonzero(able).tolist() for number in range(count))
        row, number = min(moves, key=lambda move: cost(moved(*move)))
        after = moved(row, number)
        if cost(after)[0] >= cost(held)[0]:
            break
        held, fold[row] = after, number
    return dict(zip(groups, fold.tolist(), strict=True))


def unseen(labels: dict[str, str], fold_of: dict[str, int], pattern: str, twins: Twins = ()) -> list[str]:
    """One line for each label that models without one fold, or two, have never seen.

    Args:
        labels: labelled clip -> label.
        pattern: ``folds.group``; without it and without twins there is no such label.
    """
    count, lines = len({*fold_of.values()}), []
    group_of = groups(sorted(labels), pattern, twins)
    for label in sorted({*labels.values()}):
        names = [name for name, own in labels.items() if own == label]
        within = sorted({fold_of[name] for name in names})
        own = sorted({group_of[name] for name in names}) if group_of else []
        of = f"group{'s' * (len(own) > 1)} {', '.join(own[:SHOWN])}{', …' * (len(own) > SHOWN)}"
        if len(within) == 1:
            lines.append(
                f"all {len(names)} clips labelled {label} are in fold {within[0]} ({of}): the models that "
                "predict them have never seen this label and will get every one wrong, which also biases "
                "the out-of-fold WAF, the weights and the calibration; add clips of it from other groups, or "
                "leave it out of corpus.labels"
            )
        elif len(within) == 2 < count:
            lines.append(
                f"clips labelled {label} are in the folds {within[0]} and {within[1]} alone ({of}): models "
                "without both, which weights and calibration are fitted on, have never seen this label"
            )
    return lines


def groups(names: list[str], pattern: str, twins: Twins) -> dict[str, str]:
    """name -> the group whose clips stay together, named by ``folds.group`` or its first clip; empty where
    every clip is its own group."""
    twins = _present(twins, names)
    if not (pattern or twins):
        return {}
    own = {name: _group(name, pattern) if pattern else name for name in names}
    joined = {group: group for group in own.values()}

    def first(group: str) -> str:
        while joined[group] != group:
            group = joined[group]
        return group

    for together in twins:
        head, *others = sorted({first(own[name]) for name in together})
        joined |= dict.fromkeys(others, head)
    return {name: first(group) for name, group in own.items()}


def _present(twins: Twins, names: Iterable[str]) -> list[list[str]]:
    """Those of these clips that share a recording with another of them."""
    known = set(names)
    parts = ([name for name in names if name in known] for names in twins)
    return sorted(sorted(part) for part in parts if len(part) > 1)


def _group(name: str, pattern: str) -> str:
    found = group_of(name, pattern)
    if found is None:
        raise UserError(f"folds.group {pattern!r} does not match the clip name {name!r}")
    return found


def group_of(name: str, pattern: str) -> str | None:
    """The group in a clip's name: the first capture group of ``folds.group`` that takes part in the match,
    such as either in ``(spk\\d+)_|(film\\d+)-``. None where there is none."""
    match = re.search(pattern, name)
    return next(filter(None, match.groups()), None) if match else None


def load_or_make(path: Path, labels: dict[str, str], config: FoldConfig, twins: Twins = ()) -> dict[str, int]:
    """The saved folds if they match these labels and settings, otherwise new ones."""
    found = saved(path, labels, config, twins)
    if found is None:
        found = make(labels, config, twins)
        write_json(path, {"fingerprint": _fingerprint(labels, config, twins), "folds": found})
    return found


def saved(path: Path, labels: dict[str, str], config: FoldConfig, twins: Twins = ()) -> dict[str, int] | None:
    """The saved folds if they match these labels and settings, otherwise None."""
    try:
        stored = read_json(path)
        if stored["fingerprint"] == _fingerprint(labels, config, twins):
            folds = _checked(stored["folds"])
            if folds.keys() == labels.keys():
                return folds
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _fingerprint(labels: dict[str, str], config: FoldConfig, twins: Twins) -> str:
    facts = [sorted(labels.items()), config.count, config.seed, config.group]
    return fingerprint_of([*facts, *filter(None, [_present(twins, labels)])])


def check_labels(config: Config, labels: dict[str, str]) -> None:
    """Refuse labels of a run's clips, clip name -> label, that are not in the configuration."""
    unknown = sorted(set(labels.values()) - set(config.corpus.labels))
    if unknown:
        raise UserError(
            f"clips are labelled {', '.join(unknown)}, which corpus.labels does not name; if "
            "corpus.labels has changed, run shard again"
        )


def twins_of(run: Run) -> list[list[str]]:
    """Names, group by group, of the clips of a run that are one recording, by their media or imported features.

    Raises:
        UserError: a file of them is not readable.
    """
    found = shard_index.twins(run.shards)
    if run.twins.exists():
        with reading(run.twins, "delete it and import the features again"):
            found = [*found, *([str(name) for name in names] for names in read_json(run.twins))]
    return found


def of_run(config: Config, labels: dict[str, str]) -> dict[str, int]:
    """The folds of a run whose labelled clips have these labels.

    Raises:
        UserError: a label is not in the configuration, or has too few clips.
    """
    check_labels(config, labels)
    run = Run(config.run.folder)
    return load_or_make(run.folds, labels, config.folds, twins_of(run))


def saved_of_run(config: Config, run: Run, labels: dict[str, str]) -> dict[str, int] | None:
    """The same where they exist; None where they do not."""
    return saved(run.folds, labels, config.folds, twins_of(run))


def read(path: Path) -> dict[str, int]:
    """The saved folds, clip name -> fold.

    Raises:
        UserError: there are none, or the file is incomplete.
    """
    with reading(path, "delete it and run finetune or fuse"):
        return _checked(read_json(path)["folds"])


def _checked(folds: dict[str, int]) -> dict[str, int]:
    if not all(type(fold) is int and fold >= 0 for fold in folds.values()):
        raise ValueError("a fold is not an integer")
    return folds
