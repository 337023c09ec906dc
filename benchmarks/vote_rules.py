"""When to correct for label shares, and how to answer: rules compared where the truth is known.

Generated clips (two to six labels, 150 to 1,500 of them labelled, in groups or not, with heavy tails or not) and
CREMA-D's actors of even numbers, on which the constants of the vote are chosen; parts on which results are
reported have no say here. Logistic regression gives the probabilities, the rest is the vote's own. ::

    python benchmarks/vote_rules.py --crema data/crema-d/crema-d.npz --seeds 40
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import prior_shift
from label_shift import crema_parts
from prior_shift import Part, Trial

from mer_dist.core import metrics
from mer_dist.fusion import correction, decisions, label_shift

WIDTH, DRAWS = 10, 200
#: Seeds of CREMA-D; those below are the ones of benchmarks/label_shift.py.
CREMA_SEEDS = range(100, 120)
#: A change below this is counted as a loss, in points.
LOSS = -0.3


@dataclass(kw_only=True)
class Case:
    """One part under one seed: WAF of each way to answer, and what the judges know."""

    argmax: float
    decided: float
    corrected: float
    corrected_decided: float
    #: Of the distance between estimated and labelled shares, what is told from noise.
    trust: float
    #: Whether floor and two-sample test leave it to the gate, and the gain that it expects in its deviations: with half
    #: of a label as observed, and by labels alone.
    asked: bool
    gain: float
    by_labels: float
    #: Gain of answers for expected WAF on labelled clips, out of fold, in deviations.
    out_of_fold: float

    def opens(self, doubt: float = decisions.DOUBT, trusted: float = 0.0) -> bool:
        return self.asked and self.gain > doubt and self.trust >= trusted

    def opens_by_labels(self, doubt: float) -> bool:
        return self.asked and self.by_labels > doubt and self.trust >= correction.TRUSTED


#: rule -> the WAF that it gets.
RULES: dict[str, Callable[[Case], float]] = {
    "expected WAF wherever the gate is asked": lambda case: (
        case.corrected_decided if case.opens() else case.decided if case.asked else case.argmax
    ),
    "also where it pays out of fold": lambda case: (
        case.corrected_decided
        if case.opens()
        else case.decided
        if case.asked and case.out_of_fold > 1
        else case.argmax
    ),
    "expected WAF where corrected": lambda case: case.corrected_decided if case.opens() else case.argmax,
    "argmax of the corrected": lambda case: case.corrected if case.opens() else case.argmax,
    **{
        f"expected WAF where corrected, trust {least}": (
            lambda case, least=least: case.corrected_decided if case.opens(trusted=least) else case.argmax
        )
        for least in (0.3, 0.5, 0.7)
    },
    **{
        f"as it is, DOUBT {doubt}": (
            lambda case, doubt=doubt: (
                case.corrected_decided if case.opens(doubt, trusted=correction.TRUSTED) else case.argmax
            )
        )
        for doubt in (0.25, 0.5, 1.0, 2.0)
    },
    **{
        f"gate by labels alone, DOUBT {doubt}": (
            lambda case, doubt=doubt: case.corrected_decided if case.opens_by_labels(doubt) else case.argmax
        )
        for doubt in (0.25, 0.5, 1.0, 2.0)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crema", type=Path, help="crema-d.npz")
    parser.add_argument("--seeds", type=int, default=40, help="of generated clips")
    parsed = parser.parse_args()
    parts: dict[str, list[Case]] = defaultdict(list)
    for title, trial, others in generated(range(parsed.seeds)):
        parts[title].append(judged(trial, others))
    if parsed.crema:
        for title, trial, others, _ in crema_parts(parsed.crema, CREMA_SEEDS):
            parts[title].append(judged(trial, others))
    print("\n".join(table(parts)))


def generated(seeds: range) -> Iterator[tuple[str, Trial, Part]]:
    """Parts of which nothing differs from the labelled clips, other shares alone, or more; seeds that leave a
    label with fewer than twelve clips are passed over."""
    prior_shift.RIDGES = (0.01,)
    for seed in seeds:
        random = np.random.default_rng([7, seed])
        classes, apart = int(random.choice([2, 3, 6, 6])), float(random.choice([0.25, 0.4, 0.7]))
        labeled, count = int(random.choice([150, 400, 1500])), int(random.choice([400, 1500]))
        centers = apart * random.normal(size=(classes, WIDTH))
        together = int(random.choice([1, 1, 8]))
        old, new = random.dirichlet(np.full(classes, 4.0)), random.dirichlet(np.full(classes, 2.0))

        def draw(
            number, shares, centers=centers, noise=1.0, shift=0.0, flips=0.0, base=10**6,
            random=random, classes=classes, together=together, heavy=seed % 2 == 1,
        ):  # fmt: skip
            truth, group = random.choice(classes, number, p=shares), np.arange(number) // together
            values = centers[truth] + noise * random.normal(size=(number, WIDTH)) + shift
            values += 0.5 * (together > 1) * random.normal(size=(group[-1] + 1, WIDTH))[group]
            if heavy:
                values *= np.exp(0.4 * random.normal(size=(number, 1)))
            flipped = random.random(number) < flips
            truth = np.where(flipped, random.choice(classes, number), truth)
            return Part(values=values, truth=truth, group=group + base)

        known = draw(labeled, old, base=0)
        if np.bincount(known.truth, minlength=classes).min() < 12:
            continue
        trial = Trial(known, classes, seed)
        yield "nothing differs", trial, draw(count, old)
        yield "other shares", trial, draw(count, new)
        yield "a quarter of that", trial, draw(count, 0.75 * old + 0.25 * new)
        moved = centers + 0.4 * apart * random.normal(size=centers.shape)
        yield "more differs", trial, draw(count, old if seed % 3 else new, centers=moved)
        yield "more differs", trial, draw(count, old, noise=1.5)
        yield "more differs", trial, draw(count, old, shift=0.5 * apart * random.normal(size=WIDTH))
        yield "more differs", trial, draw(count, old, flips=0.2)


def judged(trial: Trial, others: Part) -> Case:
    own, told, evidence = trial.pooled(others)
    # So that the gate is asked however much of the estimate is noise.
    with patch.object(correction, "TRUSTED", 0):
        verdict = trial.verdict(own, evidence)
        with patch.object(decisions, "OBSERVED", 1.0):
            by_labels = trial.verdict(own, evidence).gate
    corrected = label_shift.adapt(told, evidence.found.labeled, evidence.found.used)
    ways = {
        "argmax": told.argmax(1),
        "decided": decisions.decide(told),
        "corrected": corrected.argmax(1),
        "corrected_decided": decisions.decide(corrected),
    }
    gain, noise = out_of_fold(own, trial.labeled)
    return Case(
        **{way: 100 * metrics.waf(others.truth, answer) for way, answer in ways.items()},
        trust=evidence.found.shrinkage,
        asked=verdict.by == correction.BY_GATE,
        gain=verdict.gate.gain / max(verdict.gate.noise, 1e-7),
        by_labels=by_labels.gain / max(by_labels.noise, 1e-7),
        out_of_fold=gain / max(noise, 1e-7),
    )


def out_of_fold(held_out: np.ndarray, labeled: Part) -> tuple[float, float]:
    """What answers for expected WAF gain over argmax on the labelled clips, mean and deviation over draws."""
    random, rows = np.random.default_rng(1), label_shift.resampler(labeled.group)
    weight = np.stack([np.bincount(rows(random), minlength=len(labeled.truth)) for _ in range(DRAWS)])
    gain = metrics.weighted_waf(labeled.truth, decisions.decide(held_out), weight)
    gain = gain - metrics.weighted_waf(labeled.truth, held_out.argmax(1), weight)
    return float(gain.mean()), float(gain.std())


def table(parts: dict[str, list[Case]]) -> Iterator[str]:
    """A row a rule: mean change against argmax in points, of each kind of parts and of all; the worst one, and
    how many lose."""
    every = {"all": [case for cases in parts.values() for case in cases], **parts}
    yield f"{'':44}" + "".join(f"{f'{title} ({len(cases)})':>32}" for title, cases in every.items())
    for rule, waf in RULES.items():
        row = f"{rule:44}"
        for cases in every.values():
            changes = np.array([waf(case) - case.argmax for case in cases])
            told = f"{changes.mean():+.2f} (worst {changes.min():+.2f}, {(changes < LOSS).sum()} lose)"
            row += f"{told:>32}"
        yield row


if __name__ == "__main__":
    main()
