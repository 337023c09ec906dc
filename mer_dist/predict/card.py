"""The model card of a bundle."""

from __future__ import annotations

from pathlib import Path

from mer_dist import __version__
from mer_dist.config import config as configuration
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.features import join
from mer_dist.inspect.score import scored
from mer_dist.predict.model import TrainedModel
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


def text(run_folder: Path, model: TrainedModel, bases: list[str]) -> str:
    """The card in Markdown: what it is, what it learned from, how good it is, and what it is not for.

    Args:
        bases: the extractors whose base model the bundle does not hold.
    """
    run = Run(run_folder)
    config, fusion = configuration.of_run(run), model.fusion
    labels = [label for label in join.labels_of(config, run)[0].values()]
    counts = {label: labels.count(label) for label in fusion.labels}
    prior = files.read_json(run.vote.prior)
    lines = [
        "# Emotion labels for short video clips",
        "",
        f"Made with mer_dist {__version__}. It predicts one of: {', '.join(fusion.labels)}.",
        "",
        "```bash",
        "mer-dist predict THIS-FOLDER CLIPS --out predictions" + _models(bases),
        "```",
        "",
        "## What it learned from",
        f"{len(labels) - labels.count(None):,} labelled clips ("
        + ", ".join(f"{label} {count:,}" for label, count in counts.items())
        + f") and {labels.count(None):,} unlabelled ones.",
        "",
        "| feature set | modality | from |",
        "|---|---|---|",
        *(f"| {one.name} | {one.modality} | {_origin(model, one.name)} |" for one in fusion.sets),
        "",
        "## How good it is",
        *_scores(run, fusion.answered_by),
        "",
        "## Its limits",
        (
            "- A clip is cut, and each of its modalities is used, as in training; a missing modality is masked. A clip of "
            "which nothing can be used gets the label shares of training."
        ),
        "- Nothing of new clips is estimated, but with `--prior estimate`: their label shares are taken to be those of the "
        "labelled clips."
        + (
            " The run found other shares among its own unlabelled clips and corrected for them, which predictions for "
            "new clips do not."
            if prior.get("applied")
            else ""
        ),
        *_without_teachers(model),
        (
            "- It holds predictions and labels of the labelled clips, in random order and without names, for `--prior "
            "estimate`."
        ),
        "- Scores are of clips like those of training. Other speakers, languages, cameras or recorders were not tried.",
        "- Labels are what annotators saw and heard, not what a person felt. It is not made for decisions about people.",
        "",
    ]
    return "\n".join(lines)


def _without_teachers(model: TrainedModel) -> list[str]:
    if not model.teachers:
        return []
    names = ", ".join(model.teachers)
    text = "joined the vote of the run, and its scores; new clips are answered without them, and less well"
    return [f"- Outside labellers ({names}) {text}."]


def _models(bases: list[str]) -> str:
    return " --models " + " ".join(f"{name}=FOLDER" for name in bases) if bases else ""


def _origin(model: TrainedModel, set_name: str) -> str:
    for one in model.extractors:
        if one.set_name == set_name:
            tuned = ", fine-tuned" if one.adapter else ""
            return f"{Path(one.config.path).name} ({one.config.family}{tuned})"
    return f"imported as {FeatureSetId.parse(set_name).name}"


def _scores(run: Run, answered_by: str) -> list[str]:
    rows = scored(run.folder)
    lines = [
        "Weighted average F1 in %, out of fold on the labelled clips (95 % bootstrap interval):",
        "",
        "| row | out of fold |",
        "|---|---|",
    ]
    for row in rows:
        low, high = row["oof_interval"]
        shown = f"{100 * row['oof_waf']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        part = row["file"].removesuffix(".parquet").removesuffix("/predictions")
        own = part == answered_by
        lines.append(f"| {row['title']}{' (**this one answers**)' if own else ''} | {shown} |")
    return lines
