"""The ablation table: what each part of the fusion is worth, on demo runs and on CMU-MOSI.

Every variant is the whole fuse stage at its defaults but for one change, on the same features and
folds. A demo run is only read: each variant gets a run folder of its own below ``--out``, with
links to the features and shards. Steps that are done are not computed again. ::

    python benchmarks/ablation.py --out runs/ablation --seeds 3 \\
        --demo runs/demo:demo-data/truth.csv --mosi ../shared/data/cmu-mosi
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import mosi
from comparison import MODELS, command, link, reuse, spread

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.section import with_values
from mer_dist.config.sections import FuseConfig, SelfTrainConfig, VoteConfig
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.log import logger, setup
from mer_dist.features import join, store
from mer_dist.inspect.score import score
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import ALL_SETS, FeatureFolder, Run

FULL = "AGT, all defaults"
#: What is fused. The first of all is what the others are compared with.
MODEL_VARIANTS = {
    FULL: (),
    "guide: video": ("fuse.query_modality=video",),
    "guide: text": ("fuse.query_modality=text",),
    "no context transformers": ("fuse.cross_attention=false",),
    "fusion: concatenate": ("fuse.fusion=concatenate",),
    "fusion: mean": ("fuse.fusion=mean",),
    "no shortcut": ("fuse.linear_skip=false",),
    "no modality dropout": ("fuse.modality_dropout=0",),
    "frame level": ("fuse.level=frame",),
    **{f"batch: {size}": (f"fuse.batch={size}",) for size in (16, 128)},
    **{f"model: {name}": changes for name, changes in MODELS.items() if changes},
}
#: What is learned from unlabelled clips.
SELF_TRAINING_VARIANTS = {
    "no self-training": ("self_train.rounds=0",),
    "rule: quota": ("self_train.rule=quota",),
    "rule: threshold": ("self_train.rule=threshold",),
    "rule: precision": ("self_train.rule=precision",),
    "start: warm": ("self_train.start=warm",),
}
VOTE_VARIANTS = {"vote: hard": ("vote.kind=hard",), "vote: no prior": ("vote.prior=none",)}
#: Rows of the scores, and columns of the table: before and after self-training, and the vote.
STEPS = ("round 0", "last round", "vote")
SCORES = {"oof_waf": "out of fold", "waf": "unlabelled"}
#: The same in every variant, and so a row of its own.
LOGISTIC = "logistic regression"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One demo run or one seed of MOSI: the same clips and folds for every variant."""

    folder: Path
    #: Makes a run folder of its own with these changes of the defaults.
    configure: Callable[[Path, tuple[str, ...]], Config]
    #: Truth of the unlabelled clips.
    truth: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--demo",
        nargs="*",
        default=[],
        metavar="RUN:TRUTH",
        help="a run folder with features, and the truth of its unlabelled clips",
    )
    parser.add_argument("--mosi", type=Path, help="folder with {text,audio,video,names}_test.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3, help="of CMU-MOSI, each of folds and models")
    parser.add_argument("--overrides", nargs="*", default=[], help="key=value of every variant")
    parsed = parser.parse_args()
    setup("ablation")
    tables = {}
    if parsed.demo:
        cases = [demo_case(given, parsed.out) for given in parsed.demo]
        variants = MODEL_VARIANTS | SELF_TRAINING_VARIANTS | VOTE_VARIANTS
        tables[f"{len(cases)} demo runs"] = run_all(cases, variants, parsed.overrides)
    if parsed.mosi:
        # All clips are labelled, so there is nothing to self-train on.
        cases = list(mosi_cases(parsed.mosi, parsed.out / "mosi", parsed.seeds))
        title = f"CMU-MOSI test rows, 5 folds by video, seeds 0 to {parsed.seeds - 1}"
        tables[title] = run_all(cases, MODEL_VARIANTS | VOTE_VARIANTS, parsed.overrides)
    facts = {"command": command(), "overrides": parsed.overrides, "tables": tables}
    files.write_json(parsed.out / "ablation.json", facts)
    print(facts["command"])
    for title, rows in tables.items():
        print(f"\n{title}: WAF in %, mean (difference from the first row in points ± standard error)")
        print(table(rows))


def demo_case(given: str, out: Path) -> Case:
    folder, _, truth = given.rpartition(":")
    if not folder:
        raise UserError(f"--demo {given}: write it as RUN:TRUTH, a run folder and a truth file")
    source = Path(folder)

    def configure(target: Path, overrides: tuple[str, ...]) -> Config:
        return of_run(source, target, overrides)

    return Case(folder=out / "demo" / source.name, configure=configure, truth=Path(truth))


def of_run(source: Path, target: Path, overrides: tuple[str, ...]) -> Config:
    """The run in ``source`` again in ``target``, its features as they are, fused at the defaults."""
    given, made = Run(source), Run(target)
    link(target, given.features_folder, given.shards)
    for own, copied in ((given.folds, made.folds), (given.quarantine, made.quarantine)):
        if own.exists() and not copied.exists():
            shutil.copyfile(own, copied)
    config = configuration.of_run(given)
    config = with_values(config, **{"run.folder": str(target), "run.threads": 1})
    config = with_values(config, fuse=FuseConfig(labels=config.fuse.labels, sets=config.fuse.sets))
    config = with_values(config, self_train=SelfTrainConfig(), vote=VoteConfig())
    configuration.save(config, made.config)
    config = configuration.load(made.config, overrides)
    configuration.save(config, made.config)
    return config


def mosi_cases(data: Path, out: Path, seeds: int) -> Iterable[Case]:
    base = mosi.import_once(data, out)
    for seed in range(seeds):

        def configure(target: Path, overrides: tuple[str, ...], seed: int = seed) -> Config:
            return mosi.configure(base, target, seed, overrides)

        yield Case(folder=out / f"seed-{seed}", configure=configure)


def run_all(cases: list[Case], variants: dict[str, tuple[str, ...]], overrides: list[str]) -> list[dict]:
    """One row per variant that every case can run, over the cases."""
    rows = []
    for title, changes in variants.items():
        found = [run_one(case, title, (*overrides, *changes)) for case in cases]
        if None in found:
            logger.warning("%s: left out, some features have no frame level", title)
            continue
        full = rows[0]["by_case"] if rows else found
        row = {"title": title, "by_case": found}
        for key in found[0]:
            row[key] = spread([one[key] for one in found]) | {
                "change": spread([one[key] - other[key] for one, other in zip(found, full, strict=True)])
            }
        rows.append(row)
    return rows


def run_one(case: Case, title: str, overrides: tuple[str, ...]) -> dict[str, float] | None:
    """``<step>, <score>`` -> WAF in [0, 1]; None if the variant needs frames that are not there."""
    folder = case.folder / slug(title)
    config = case.configure(folder, overrides)
    if config.fuse.level == "frame" and not has_frames(config):
        return None
    if title != FULL:
        reuse(case.folder / slug(FULL), folder, "linear_probes", "rounds")
    fuse(config)
    run, rows = Run(folder), score(folder, case.truth)
    by_file = {run.folder / row["file"]: row for row in rows}
    rounds, vote = [by_file[one.predictions] for one in run.rounds()], by_file[run.vote.predictions]
    logistic = [row for path, row in by_file.items() if path == run.linear_probes.predictions(ALL_SETS)]
    # Of a single feature set there is none, and the shorter of the two ends the pairs.
    of_step = dict(zip((*STEPS, LOGISTIC), (rounds[0], rounds[-1], vote, *logistic), strict=False))
    return {
        f"{step}, {name}": row[key]
        for key, name in SCORES.items()
        for step, row in of_step.items()
        if key in row
    }


def has_frames(config: Config) -> bool:
    run = Run(config.run.folder)
    return all(
        store.StoredShard.open(path).has_frames
        for name in join.fused_sets(config)
        for copy in FeatureSetId.parse(name).stored(config.folds.count)
        for path in FeatureFolder(run.features(copy)).shards()
    )


def slug(title: str) -> str:
    """The title as the name of a folder."""
    return "-".join(re.findall("[a-z0-9]+", title.lower()))


def table(rows: list[dict]) -> str:
    """A block per score, its steps side by side; a step that changes nothing anywhere is left out."""
    lines, wide = [], max(len(row["title"]) for row in rows) + 2
    for name in SCORES.values():
        steps = [step for step in STEPS if f"{step}, {name}" in rows[0]]
        if all(row.get(f"{STEPS[0]}, {name}") == row.get(f"{STEPS[1]}, {name}") for row in rows):
            steps = [step for step in steps if step != STEPS[1]]
        if not steps:
            continue
        several = len(rows[0]["by_case"]) > 1
        heads = "".join(f"{step:>10}{'':{17 if several else 9}}" for step in steps)
        lines += ["", f"{name:{wide}}{heads}".rstrip()]
        for row in rows:
            cells = [row[f"{step}, {name}"] for step in steps]
            lines.append(f"{row['title']:{wide}}" + "".join(_cell(one, several) for one in cells))
        lines += [f"{LOGISTIC:{wide}}{_cell(one, several)}" for one in _logistic(rows[0], name)]
    return "\n".join(lines[1:])


def _logistic(full: dict, score_name: str) -> list[dict]:
    """Its figure and difference from the first round of all; none where one set is fused."""
    key, other = f"{LOGISTIC}, {score_name}", f"{STEPS[0]}, {score_name}"
    if key not in full:
        return []
    return [full[key] | {"change": spread([case[key] - case[other] for case in full["by_case"]])}]


def _cell(figure: dict, several: bool) -> str:
    change = figure["change"]
    error = f" ± {100 * change['error']:4.2f}" if several else ""
    return f"{100 * figure['mean']:10.2f} ({100 * change['mean']:+6.2f}{error})"


if __name__ == "__main__":
    main()
