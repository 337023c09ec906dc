"""What the vote makes of a shift of the label prior: estimates, intervals, WAF, and the gate.

Two sets of clips, labels known everywhere, so that an unlabelled part can be drawn to a known
prior: CMU-MOSI's 752 test rows (see ``mosi.py`` for why only these), labelled and unlabelled part
of different videos, and generated clips of six labels. Logistic regression gives the out-of-fold
and the unlabelled probabilities; from there on every step is the vote's own. ::

    python benchmarks/prior_shift.py ../shared/data/cmu-mosi
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mer_dist.config.sections import FoldConfig
from mer_dist.core import metrics
from mer_dist.crossfit import folds
from mer_dist.features.join import Clips
from mer_dist.fusion import correction, decisions, label_shift
from mer_dist.fusion.vote import pool

FOLDS = 5
#: Inverse ridge strengths that the inner cross-validation chooses from.
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
POSITIVE = {f"{percent} %": percent / 100 for percent in (10, 30, 50, 62, 70, 90)}
SIX = {
    "no shift": (0.25, 0.20, 0.20, 0.15, 0.12, 0.08),
    "mild": (0.32, 0.14, 0.24, 0.10, 0.14, 0.06),
    "extreme": (0.60, 0.05, 0.05, 0.20, 0.05, 0.05),
    "reversed": (0.08, 0.12, 0.15, 0.20, 0.20, 0.25),
}
LABELED, UNLABELED, WIDTH, APART = 1000, 2000, 10, 0.6


@dataclass(kw_only=True)
class Part:
    """Clips with features, labels and the group (video) they are drawn with."""

    values: np.ndarray
    truth: np.ndarray
    group: np.ndarray

    def rows(self, rows: np.ndarray) -> Part:
        return Part(values=self.values[rows], truth=self.truth[rows], group=self.group[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--labeled", type=int, nargs="+", default=[150, 300])
    parser.add_argument("--seeds", type=int, default=10, help="for MOSI; twice as many generated")
    parser.add_argument("--first-seed", type=int, default=0)
    parsed = parser.parse_args()
    started, first = time.monotonic(), parsed.first_seed
    data = read_mosi(parsed.data)
    for size in parsed.labeled:
        seeds = range(first, first + parsed.seeds)
        print(
            f"\nCMU-MOSI test rows, at least {size} labelled, seeds {seeds.start} to {seeds.stop - 1}; "
            "prior: share of positive"
        )
        table(of_mosi(data, size, seeds))
    seeds = range(first, first + 2 * parsed.seeds)
    print(
        f"\nGenerated, six labels, {LABELED} labelled, {UNLABELED} unlabelled, seeds {seeds.start} to "
        f"{seeds.stop - 1}; prior: share of the label that changes most"
    )
    table(of_six(seeds))
    print(f"\n{time.monotonic() - started:.0f} s")


def read_mosi(folder: Path) -> Part:
    """The test rows, all three modalities side by side, grouped by video."""
    values = []
    for modality in ("audio", "video", "text"):
        with open(folder / f"{modality}_test.csv", encoding="utf-8", newline="") as file:
            values.append(np.array([line[:-1] for line in csv.reader(file)], float))
    with open(folder / "names_test.csv", encoding="utf-8", newline="") as file:
        rows = [(row["name"].rpartition("_")[0], int(row["label"])) for row in csv.DictReader(file)]
    group, truth = map(np.array, zip(*rows, strict=True))
    return Part(values=np.concatenate(values, 1), truth=truth, group=group)


def of_mosi(data: Part, size: int, seeds: range) -> Iterator[tuple[str, dict]]:
    """Videos are labelled until there are ``size`` clips and one video a fold; the rest is thinned
    to each prior."""
    for seed in seeds:
        random = np.random.default_rng(seed)
        videos = random.permutation(np.unique(data.group))
        counts = np.cumsum([(data.group == video).sum() for video in videos])
        taken = max(int(np.searchsorted(counts, size)) + 1, FOLDS)
        chosen = np.isin(data.group, videos[:taken])
        labeled, rest = data.rows(np.flatnonzero(chosen)), data.rows(np.flatnonzero(~chosen))
        trial = Trial(labeled, 2, seed)
        for title, share in {"as labelled": labeled.truth.mean(), **POSITIVE}.items():
            rows = thinned(rest.truth, share, np.random.default_rng([seed, round(1000 * share)]))
            yield title, trial.judge(rest.rows(rows))


def thinned(truth: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """As many rows as there can be, each once, if ``share`` of them are to be of label 1."""
    positive, negative = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    size = int(min(len(positive) / share, len(negative) / (1 - share)))
    many = round(size * share)
    rows = [random.choice(positive, many, False), random.choice(negative, size - many, False)]
    return random.permutation(np.concatenate(rows))


def of_six(seeds: range) -> Iterator[tuple[str, dict]]:
    """Normal distributions of unit variance around random centres."""
    for seed in seeds:
        random = np.random.default_rng(seed)
        centers = APART * random.normal(size=(6, WIDTH))

        def draw(count, shares, random=random, centers=centers):
            truth = random.choice(6, count, p=shares)
            values = centers[truth] + random.normal(size=(count, WIDTH))
            return Part(values=values, truth=truth, group=np.arange(count))

        trial = Trial(draw(LABELED, SIX["no shift"]), 6, seed)
        for title, shares in SIX.items():
            yield title, trial.judge(draw(UNLABELED, shares))


class Trial:
    """Models of every fold trained on one labelled part, to be judged on unlabelled ones."""

    def __init__(self, labeled: Part, classes: int, seed: int):
        self.labeled, self.classes, self.seed = labeled, classes, seed
        names = [f"{group}_{row:04d}" for row, group in enumerate(labeled.group)]
        of_name = dict(zip(names, map(str, labeled.truth), strict=True))
        made = folds.make(of_name, FoldConfig(count=FOLDS, seed=seed, group="^(.*)_"))
        self.fold = np.array([made[name] for name in names])
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
            {"logisticregression__C": RIDGES},
            cv=3,
            scoring="neg_log_loss",
        )
        self.models = []
        #: (K, L, C), what models without fold k and their own say of the labelled clips.
        self.without_pairs = np.full((FOLDS, len(labeled.truth), classes), np.nan)
        for fold in range(FOLDS):
            rows = self.fold != fold
            model = search.fit(labeled.values[rows], labeled.truth[rows]).best_estimator_
            self.models.append(model)
            for other in set(range(FOLDS)) - {fold}:
                without, own = rows & (self.fold != other), self.fold == other
                pair = clone(model).fit(labeled.values[without], labeled.truth[without])
                self.without_pairs[fold, own] = pair.predict_proba(labeled.values[own])

    def pooled(self, others: Part) -> tuple[np.ndarray, np.ndarray, correction.Evidence]:
        """Calibrated probabilities (L, C) and (U, C), and what is known of the unlabelled clips."""
        truth, groups = self.labeled.truth, (self.labeled.group, others.group)
        own = np.stack([model.predict_proba(self.labeled.values) for model in self.models])
        by_fold = np.stack([model.predict_proba(others.values) for model in self.models])
        held_out = own[self.fold, np.arange(len(truth))]
        count, nobody = len(truth) + len(others.truth), np.full(len(others.truth), -1)
        clips = Clips(
            labels=[str(label) for label in range(self.classes)],
            names=[str(row) for row in range(count)],
            folds=FOLDS,
            truth=np.append(truth, nobody),
            fold=np.append(self.fold, nobody),
        )
        members = np.concatenate([held_out, by_fold.mean(0)])[None]
        told = pool(members, self.without_pairs[None], clips, present=np.ones(count, bool)).probability
        return (
            told[: len(truth)],
            told[len(truth) :],
            correction.gather(held_out, truth, by_fold, self.seed, groups),
        )

    def verdict(self, held_out, evidence, given=None) -> correction.Verdict:
        return correction.assess(evidence, given, held_out, self.labeled.truth, self.seed, self.labeled.group)

    def judge(self, others: Part) -> dict:
        """Every figure of one unlabelled part, by the vote's own functions."""
        held_out, told, evidence = self.pooled(others)
        found, verdict = evidence.found, self.verdict(held_out, evidence)
        now = label_shift.shares(others.truth, self.classes)
        return (
            self._figures(found, now, verdict.applied)
            | self._waf(told, others.truth, found, now, verdict)
            | self._given(told, others.truth, evidence, now, held_out)
        )

    def _figures(self, found: label_shift.Estimate, now: np.ndarray, opens: bool) -> dict:
        shown = int(np.abs(now - found.labeled).argmax()) if self.classes > 2 else 1
        row = {"truth": now[shown], "opens": opens}
        for name in ("em", "bbse", "used"):
            row[name] = getattr(found, name)[shown]
            row[f"error_{name}"] = np.abs(getattr(found, name) - now).mean()
        for name, (low, high) in found.intervals.items():
            row[f"cover_{name}"] = ((low <= now) & (now <= high)).mean()
        return row

    def _waf(self, told, truth, found, now, verdict) -> dict:
        """WAF of each way to answer."""
        ways = {"argmax": told.argmax(1), "decided": decisions.decide(told)}
        for name, new in (("always", found.used), ("oracle", now)):
            ways[name] = decisions.decide(label_shift.adapt(told, found.labeled, new))
        scored = {name: metrics.waf(truth, answer) for name, answer in ways.items()}
        scored["gate"] = scored["always" if verdict.applied else "argmax"]
        scored["right"] = scored["gate"] >= max(scored["always"], scored["argmax"])
        return scored

    def _given(self, told, truth, evidence, now, held_out) -> dict:
        """The shares told by hand: as they are, and with the labels' places changed."""
        plain = metrics.waf(truth, told.argmax(1))
        row = {}
        for name, new in (("right", now), ("wrong", np.roll(now, 1))):
            verdict = self.verdict(held_out, evidence, new)
            corrected = label_shift.adapt(told, evidence.found.labeled, new)
            applied = metrics.waf(truth, decisions.decide(corrected)) - plain
            row |= {
                f"told_{name}": verdict.applied,
                f"told_{name}_change": applied * verdict.applied,
                f"trusted_{name}_change": applied * verdict.gate.opens,
            }
        return row


HEAD = (
    f"{'':14}{'estimated prior, in %':>24}  {'mean error':>18}  {'covered':>12}{'WAF':>7}"
    f"{'change with':>15}{'applied, prior':>20}{'gate':>12}\n"
    f"{'prior':14} truth    EM  BBSE  used      EM  BBSE  used      EM  BBSE argmax  decide"
    "   gate        always   true open right"
)


HEAD_TOLD = (
    f"{'':14}{'shares told rightly':>31}{'told with the places of the labels changed':>45}\n"
    f"{'prior':14}" + 2 * f"{'applied':>14}{'change':>8}{'if trusted':>12}"
)


def table(judged: Iterator[tuple[str, dict]]) -> None:
    """Means over the seeds; changes in points of WAF, with their standard error for the gate.

    *decide*: by expected WAF, without a correction; *gate*: what the vote does; *always* and *true*:
    corrected without asking the gate, to the used and to the true shares. The gate is right where
    neither of what it chooses between would have scored higher. Below, shares that were told: how
    often they pass, their change against *argmax*, and what it would be without asking the
    unlabelled clips.
    """
    rows: dict[str, list[dict]] = {}
    for title, figures in judged:
        rows.setdefault(title, []).append(figures)
    print(HEAD)
    for title, figures in rows.items():
        column = {key: np.array([row[key] for row in figures], float) for key in figures[0]}
        mean = {key: 100 * values.mean() for key, values in column.items()}
        change = {key: mean[key] - mean["argmax"] for key in ("decided", "gate", "always", "oracle")}
        error = 100 * (column["gate"] - column["argmax"]).std(ddof=1) / np.sqrt(len(figures))
        print(
            f"{title:14}"
            + "".join(f"{mean[key]:6.1f}" for key in ("truth", "em", "bbse", "used"))
            + "  "
            + "".join(f"{mean['error_' + key]:6.1f}" for key in ("em", "bbse", "used"))
            + "  "
            + "".join(f"{mean['cover_' + key]:6.0f}" for key in ("em", "bbse"))
            + f"{mean['argmax']:7.2f}{change['decided']:+8.2f}{change['gate']:+7.2f} ±{error:4.2f}"
            + f"{change['always']:+7.2f}{change['oracle']:+7.2f}"
            + f"{mean['opens']:5.0f}{mean['right']:6.0f}"
        )
    print("\n" + HEAD_TOLD)
    for title, figures in rows.items():
        mean = {key: 100 * np.mean([row[key] for row in figures]) for key in figures[0]}
        print(
            f"{title:14}"
            + "".join(
                f"{mean['told_' + name]:12.0f} %{mean[f'told_{name}_change']:+8.2f}"
                f"{mean[f'trusted_{name}_change']:+12.2f}"
                for name in ("right", "wrong")
            )
        )


if __name__ == "__main__":
    main()
