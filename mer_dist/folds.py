"""The fold file: which labelled clip belongs to which fold, for finetune and fuse alike."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mer_dist.config import Config
from mer_dist.errors import UserError, reading
from mer_dist.files import fingerprint, read_json, write_json
from mer_dist.layout import Run
from mer_dist.settings import FoldConfig


def make(labels: dict[str, str], config: FoldConfig) -> dict[str, int]:
    """Stratified, seeded folds; clips of one group stay together.

    Args:
        labels: clip name -> label. The result does not depend on its order.

    Raises:
        UserError: a class has fewer clips, or there are fewer groups, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = sorted(labels)
    counts = Counter(labels.values())
    few = {label: count for label, count in counts.items() if count < config.count}
    if few or not counts:
        raise UserError(
            f"folds.count is {config.count}, but these labels have fewer clips: {few or 'all'}; "
            "lower folds.count or leave those labels out of corpus.labels"
        )
    targets = [labels[name] for name in names]
    if config.group:
        groups = [_group(name, config.group) for name in names]
        if len(set(groups)) < config.count:
            found = len(set(groups))
            raise UserError(f"folds.group makes {found} groups, fewer than folds.count {config.count}")
        splitter = StratifiedGroupKFold(config.count, shuffle=True, random_state=config.seed)
        splits = splitter.split(names, targets, groups)
    else:
        splitter = StratifiedKFold(config.count, shuffle=True, random_state=config.seed)
        splits = splitter.split(names, targets)
    return {names[row]: fold for fold, (_, rows) in enumerate(splits) for row in rows}


def _group(name: str, pattern: str) -> str:
    match = re.search(pattern, name)
    if match is None:
        raise UserError(f"folds.group {pattern!r} does not match the clip name {name!r}")
    return match.group(1)


def load_or_make(path: Path, labels: dict[str, str], config: FoldConfig) -> dict[str, int]:
    """The saved folds if they were made from these labels and settings, otherwise new ones."""
    made_from = fingerprint([sorted(labels.items()), config.count, config.seed, config.group])
    try:
        saved = read_json(path)
        if saved["made_from"] == made_from:
            folds = _checked(saved["folds"])
            if folds.keys() == labels.keys():
                return folds
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    folds = make(labels, config)
    write_json(path, {"made_from": made_from, "folds": folds})
    return folds


def check_labels(config: Config, labels: dict[str, str]) -> None:
    """Refuse labels of a run's clips, clip name -> label, that the configuration does not name."""
    unknown = sorted(set(labels.values()) - set(config.corpus.labels))
    if unknown:
        raise UserError(
            f"clips are labelled {', '.join(unknown)}, which corpus.labels does not name; if "
            "corpus.labels has changed, run shard again"
        )


def of_run(config: Config, labels: dict[str, str]) -> dict[str, int]:
    """The folds of a run whose labelled clips have these labels.

    Raises:
        UserError: a label is not in the configuration, or has too few clips.
    """
    check_labels(config, labels)
    return load_or_make(Run(config.run.folder).folds, labels, config.folds)


def read(path: Path) -> dict[str, int]:
    """The saved folds, clip name -> fold.

    Raises:
        UserError: there are none, or the file is not whole.
    """
    with reading(path, "delete it and run finetune or fuse"):
        return _checked(read_json(path)["folds"])


def _checked(folds: dict[str, int]) -> dict[str, int]:
    if not all(type(fold) is int and fold >= 0 for fold in folds.values()):
        raise ValueError("a fold is no whole number")
    return folds
