"""What comparisons of fusions share: variants of one run side by side, and differences with intervals."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np

from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.storage import files

#: Each fusion model as changes of the defaults. All choose their dropout by the other folds.
MODELS = {
    "AGT": (),
    "attention": ("fuse.model=attention",),
    "mlp": ("fuse.model=mlp",),
    "linear": ("fuse.model=linear",),
}


#: Inverse ridge strengths and class weights that the search of :func:`logistic` chooses from.
SEARCHED = {"C": tuple(np.logspace(-5, 1, 13)), "class_weight": (None, "balanced")}


def logistic(x: np.ndarray, truth: np.ndarray, seed: int = 0):
    """scikit-learn's logistic regression, with what its own search over five folds finds best for WAF.

    Args:
        x: (N, D), standardised, of the labelled clips.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegression(max_iter=1000)
    return GridSearchCV(model, SEARCHED, scoring="f1_weighted", cv=folds).fit(x, truth)


def command() -> str:
    """The command line of this process, for the output."""
    return "python " + shlex.join(sys.argv)


def link(folder: Path, *targets: Path) -> None:
    """Make each target that exists appear in ``folder`` under its own name.

    Raises:
        UserError: something else has that name there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        own = folder / target.name
        if not own.exists():
            if target.exists():
                own.symlink_to(target.resolve())
        elif own.resolve() != target.resolve():
            raise UserError(f"{own} is not a link to {target}, so it is of another run: give another --out")


def reuse(source: Path, folder: Path, *parts: str) -> None:
    """Copy parts of a fused run; fuse keeps of them what fits the settings of ``folder``."""
    for part in parts:
        if not (folder / part).exists():
            with files.atomic_folder(folder / part) as temporary:
                shutil.copytree(source / part, temporary, dirs_exist_ok=True)


def difference(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """WAF of the answers ``first`` minus that of ``second``, with a 95 % paired bootstrap interval.

    Args:
        truth: (N,) int, as are the answers.
        groups: (N,), clips of one group are drawn together; None: every clip by itself.

    Returns:
        ``difference``, ``low`` and ``high``, in [-1, 1].
    """
    code = np.arange(len(truth)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = code.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)[:, code]
    gain = metrics.weighted_waf(truth, first, drawn) - metrics.weighted_waf(truth, second, drawn)
    once = np.ones((1, len(truth)))
    found = metrics.weighted_waf(truth, first, once) - metrics.weighted_waf(truth, second, once)
    low, high = np.quantile(gain, [0.025, 0.975])
    return {"difference": float(found[0]), "low": float(low), "high": float(high)}


def spread(values: list[float]) -> dict:
    """Mean, deviation and standard error of the mean; the latter two are 0 for a single value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": float(np.mean(values)),
        "deviation": std,
        "error": std / len(values) ** 0.5,
        "values": [float(value) for value in values],
    }
