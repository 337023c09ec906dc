"""The sections of the page; each has a note where its part of the run is absent."""

from __future__ import annotations

import json
from collections import Counter
from importlib import metadata
from typing import Any

import mer_dist
from mer_dist.core.records import LABELED, UNLABELED, Problem
from mer_dist.report import figures
from mer_dist.report.blocks import (
    absent,
    cell,
    duration,
    explained,
    interval,
    key,
    percent,
    plural,
    section,
    table,
)
from mer_dist.report.markup import Html, join, tag
from mer_dist.report.plot import COLOURS
from mer_dist.report.run_data import Confusion, Corpus, Interval, RunData, Score
from mer_dist.report.terms import CONFUSION_TERMS, PRIOR_TERMS, RESULT_TERMS

#: Rows of quarantine.parquet that the page lists; all of them are counted.
LISTED_PROBLEMS = 200
#: Clips that are named for each remark on the corpus.
NAMED_CLIPS = 3
_SPLITS = {LABELED: "labelled", UNLABELED: "unlabelled"}
PACKAGES = (
    "torch",
    "deepspeed",
    "accelerate",
    "transformers",
    "peft",
    "bitsandbytes",
    "webdataset",
    "omegaconf",
    "av",
    "opencv-python-headless",
    "soundfile",
    "sentencepiece",
    "safetensors",
    "pyarrow",
    "numpy",
    "scikit-learn",
)


def gains(rows: list[Score]) -> list[Html | None]:
    """The gain of each step of the recipe: fusion over the best linear probe, then row by row."""
    singles = [row.headline for row in rows if row.kind == "probe" and row.headline is not None]
    before, over = max(singles, default=None), "the best above"
    found: list[Html | None] = []
    for row in rows:
        if row.kind not in ("round", "vote") or row.headline is None:
            found.append(None)
            continue
        if before is None:
            found.append(None)
        else:
            gain = 100 * (row.headline - before)
            look = "up" if gain > 0 else "down"
            parts = [f" over {over}"] if over else []
            if gain <= 0:
                parts.append(" does not help")
            comment = ",".join(parts)
            shown = f"{gain:+.2f}".replace("-", "−")
            found.append(join(tag("b", shown, class_=look), tag("span", comment, class_="quiet")))
        before, over = row.headline, ""
    return found


def results(run_data: RunData) -> Html:
    caption = (
        "WAF: F1 of each class weighted by its share of the truth, in percent; n: the clips that it is of. "
        "Bars and ranges are 95 % bootstrap intervals over clips, or over the groups of folds.group where it "
        "is set. Out of fold: every labelled clip is predicted by models that never trained on it."
    )
    rows = run_data.scores
    if not rows:
        reason = "There are no scores yet: no predictions with a known truth were found."
        return section("results", "Results", "", absent(reason))
    last = rows[-1]
    if last.unanswered:
        names = ", ".join(last.unanswered_names)
        caption += (
            f" {plural(last.unanswered, 'unlabelled clip')} without an answer count as wrong in the last row"
            f"{f': {names}' if names else ''}{', …' if len(last.unanswered_names) < last.unanswered else ''}."
        )
    tested = any(row.test is not None for row in rows)
    legend = key(
        [("c0", "out of fold, labelled clips")]
        + ([("c1", "unlabelled clips, against their truth")] if tested else [])
    )
    head = ["WAF", "out of fold", "95 %", "n"] + (["unlabelled", "95 %", "n"] if tested else [])
    body = []
    for position, (row, gain) in enumerate(zip(rows, gains(rows), strict=True)):
        cells = [cell(row.title, "name"), *_score(row.oof, row.oof_interval, row.oof_clips)]
        if tested:
            cells += _score(row.test, row.test_interval, row.test_clips)
        look = "last" if position == len(rows) - 1 else None
        body.append(tag("tr", cells, cell(gain or "", "step"), class_=look))
    return section(
        "results",
        "Results",
        caption,
        legend,
        tag("div", figures.scores(rows), class_="figure"),
        table([*head, "step adds"], body, numbers=range(1, len(head))),
        explained(RESULT_TERMS),
    )


def _score(waf: float | None, edges: Interval, clips: int | None) -> list[Html]:
    count = "–" if clips is None else f"{clips:,}"
    return [cell(percent(waf), "n"), cell(interval(edges), "n quiet"), cell(count, "n quiet")]


def confusions(run_data: RunData) -> Html:
    data = run_data.confusion
    if data is None:
        text = "No out-of-fold predictions yet, or the truth of no labelled clip is known."
        return section("confusion", "Confusion", "", absent(text))
    parts = [_confusion(data, "out of fold on {} labelled clips")]
    if tested := run_data.test_confusion:
        parts.append(tag("h3", "On the truth of the unlabelled clips"))
        parts.append(_confusion(tested, "on {} unlabelled clips that have an answer"))
    return section("confusion", "Confusion", "", *parts, explained(CONFUSION_TERMS))


def _confusion(data: Confusion, clips: str) -> Html:
    """
    Args:
        clips: which clips these are, with a place for their number.
    """
    caption = (
        f"{data.title}, {clips.format(f'{sum(map(sum, data.counts)):,}')}. Each row is one true label: the "
        "share of its clips that got each answer, and below it their number."
    )
    drawing = tag("div", figures.confusion(data), class_="figure")
    return join(tag("p", caption, class_="caption"), tag("div", drawing, _class_table(data), class_="beside"))


def _class_table(data: Confusion) -> Html:
    rows = []
    for row, label in enumerate(data.labels):
        hits, support = data.counts[row][row], sum(data.counts[row])
        answers = sum(counts[row] for counts in data.counts)
        cells = [
            cell(percent(hits * part / whole if whole else None, 1), "n")
            for part, whole in ((1, answers), (1, support), (2, support + answers))
        ]
        rows.append(tag("tr", cell(label, "name"), cells))
    return table(["label", "precision", "recall", "F1"], rows, numbers=range(1, 4))


def corpus(run_data: RunData) -> Html:
    data = run_data.corpus
    if data is None:
        text = "There is no shard index: nothing was ingested, or the features were imported."
        return section("corpus", "Corpus", "", absent(text))
    answered = data.unstored[UNLABELED]
    stored = sum(map(data.clips, data.counts)) - answered
    caption = (
        f"{plural(stored, 'clip')} in {plural(data.shards, 'shard')}, {duration(data.seconds)} of material."
    )
    if answered:
        caption += (
            f" {plural(answered, 'more unlabelled clip')} could not be stored: the tables "
            "count them, and they get the most frequent label."
        )
    if lost := data.unstored[LABELED]:
        caption += f" {plural(lost, 'labelled clip')} could not be stored; the tables leave them out."
    return section(
        "corpus", "Corpus", caption, _label_table(data), _missing_table(data), _remark_table(run_data.remarks)
    )


def _label_table(data: Corpus) -> Html:
    splits = sorted(data.counts)
    labels = data.labels + ([""] if any(data.counts[split][""] for split in splits) else [])
    rows = []
    for label in labels:
        cells = [cell(label or tag("span", "no label", class_="quiet"), "name")]
        for split in splits:
            count, total = data.counts[split][label], data.clips(split)
            share = f"{100 * count / total:.1f} %" if count else ""
            cells += [cell(f"{count:,}" if count else "", "n"), cell(share, "n quiet")]
        rows.append(tag("tr", cells))
    totals = [join(cell(f"{data.clips(split):,}", "n"), cell("", "n")) for split in splits]
    rows.append(tag("tr", cell("all"), totals, class_="total"))
    head = ["label", *(text for split in splits for text in (_SPLITS.get(split, split), ""))]
    return table(head, rows, numbers=range(1, len(head)))


def _missing_table(data: Corpus) -> Html:
    modalities = sorted({name for counts in data.missing.values() for name in counts})
    title = tag("h3", "Missing modalities")
    if not modalities:
        return join(title, tag("p", "Every clip has all its modalities.", class_="caption"))
    splits = sorted(data.counts)
    rows = [
        tag("tr", cell(name), [cell(f"{data.missing[split][name]:,}", "n") for split in splits])
        for name in modalities
    ]
    note = "These clips are used; the part they lack is masked."
    head = ["missing", *(_SPLITS.get(split, split) for split in splits)]
    return join(title, tag("p", note, class_="caption"), table(head, rows, numbers=range(1, len(head))))


def _remark_table(remarks: dict[str, list[str]]) -> Html | None:
    if not remarks:
        return None
    rows = []
    for kind, names in sorted(remarks.items(), key=lambda remark: -len(remark[1])):
        shown = ", ".join(names[:NAMED_CLIPS]) + (", …" if len(names) > NAMED_CLIPS else "")
        rows.append(tag("tr", cell(kind, "wrap"), cell(f"{len(names):,}", "n"), cell(shown, "wrap")))
    note = "Found while the clips were decoded; none of it cost a clip. shards/stats.json names all of them."
    return join(
        tag("h3", "Remarks"),
        tag("p", note, class_="caption"),
        table(["remark", "clips", "such as"], rows, numbers=range(1, 2)),
    )


def quarantined(run_data: RunData) -> Html:
    problems = run_data.problems
    if not problems:
        return section("quarantine", "Quarantine", "", absent("Nothing was quarantined."))
    clips = len({problem.name for problem in problems if problem.lost == "clip"})
    parts = sum(problem.lost != "clip" for problem in problems)
    caption = (
        f"{plural(clips, 'clip')} could not be used at all; in {plural(parts, 'case')} a modality, a part of "
        "one or a label was lost and the rest of the clip is used."
    )
    rows = [
        tag(
            "tr",
            cell(problem.stage),
            cell(problem.name, "name"),
            cell(problem.lost),
            cell(problem.reason, "wrap"),
        )
        for problem in problems[:LISTED_PROBLEMS]
    ]
    more = len(problems) - len(rows)
    rest = tag("p", f"… and {more:,} more in quarantine.parquet.", class_="caption")
    listed = tag(
        "details",
        tag(
            "summary",
            f"the {len(rows)} rows" if not more else f"the first {len(rows)} of {len(problems):,} rows",
        ),
        table(["stage", "clip", "lost", "reason"], rows),
        rest if more else None,
        open="open" if len(rows) <= 20 else None,
    )
    return section("quarantine", "Quarantine", caption, _problem_counts(problems), listed)


def _problem_counts(problems: list[Problem]) -> Html:
    counts = Counter((problem.stage, problem.lost) for problem in problems)
    kinds = sorted({lost for _, lost in counts}, key=lambda lost: (lost != "clip", lost))
    rows = []
    for stage in sorted({stage for stage, _ in counts}):
        numbers = [counts[stage, lost] for lost in kinds]
        cells = [cell(f"{number:,}" if number else "", "n") for number in numbers]
        rows.append(tag("tr", cell(stage), cells, cell(f"{sum(numbers):,}", "n")))
    titles = ["whole clip" if lost == "clip" else lost for lost in kinds]
    head = ["lost in", *titles, "all"]
    return table(head, rows, numbers=range(1, len(head)))


def priors(run_data: RunData) -> Html:
    data = run_data.prior
    if data is None:
        return section("prior", "Label prior", "", absent("There are no predictions yet."))
    caption = (
        "Share of each label, in percent: among the labelled clips, as estimated for the "
        "unlabelled clips from the model's own probabilities, and among the answers. A thin line over "
        "a bar is the 95 % bootstrap interval of that estimate."
    )
    remarks = tag("p", " · ".join(data.remarks), class_="caption") if data.remarks else None
    legend = key((f"c{position}", name) for position, (name, _) in enumerate(data.series))
    drawing = tag("div", figures.prior(data), class_="figure")
    return section("prior", "Label prior", caption, remarks, legend, drawing, explained(PRIOR_TERMS))


def teachers(run_data: RunData) -> Html | None:
    """The outside labellers; None where there are none."""
    if not (run_data.teachers or run_data.consensus):
        return None
    caption = (
        "What a teacher has seen cannot be known. If it learned from these labels, or from these clips, it is "
        "trusted too much, and the out-of-fold scores of the vote are too good."
    )
    parts: list[Any] = []
    if run_data.consensus:
        text = f"Pseudo-labels are selected where the models agree with: {', '.join(run_data.consensus)}."
        parts.append(tag("p", text, class_="caption"))
    if run_data.teachers:
        rows = [
            tag(
                "tr",
                cell(one.name, "name"),
                cell(f"{one.labeled:,}", "n"),
                cell(f"{one.unlabeled:,}", "n"),
                cell(f"{one.weight:.2f}", "n"),
            )
            for one in run_data.teachers
        ]
        head = [
            "in the vote",
            "labelled clips",
            "unlabelled clips",
            "exponent beside the members (0: no say)",
        ]
        parts += [table(head, rows, numbers=range(1, 4)), *_disputed_table(run_data)]
    return section("teachers", "Outside labellers", caption, *parts)


def _disputed_table(run_data: RunData) -> list[Html]:
    found = run_data.disputed
    if not found:
        return [tag("p", "No label is disputed by a teacher and the models together.", class_="caption")]
    text = (
        f"{plural(len({row.name for row in found}), 'labelled clip')} for which a teacher and the models, out of "
        "fold and without it, agree on another label; worth a look or a listen."
    )
    rows = [
        tag(
            "tr",
            cell(row.name, "name"),
            *map(cell, (row.label, row.instead)),
            cell(row.probability, "n"),
            cell(row.teacher),
        )
        for row in found[:LISTED_PROBLEMS]
    ]
    more = len(found) - len(rows)
    rest = tag("p", f"… and {more:,} more in vote/disputed_labels.csv.", class_="caption") if more else None
    head = ["clip", "its label", "instead", "probability by the models", "teacher"]
    listed = table(head, rows, numbers=range(3, 4))
    return [
        tag("h3", "Disputed labels"),
        tag("p", text, class_="caption"),
        tag(
            "details",
            tag("summary", f"the {len(rows)} rows"),
            listed,
            rest,
            open="open" if len(rows) <= 20 else None,
        ),
    ]


def learning(run_data: RunData) -> Html:
    extractors = sorted({part.extractor for part in run_data.adapters})
    content: list[Any] = [tag("h3", "Fine-tuning")]
    if not extractors:
        content.append(absent("No extractor was fine-tuned yet."))
    else:
        judged = (
            "validation"
            if all(part.held_out for part in run_data.adapters)
            else ("validation, or, where nothing was held out, the clips it was trained on, after the epoch")
        )
        content.append(
            key(
                [
                    ("c0", "adapters that never saw one fold"),
                    ("c1", "adapter trained on all labelled clips"),
                    ("c5 dashed", f"{judged}; the dot is the selected epoch"),
                ]
            )
        )
    for extractor in extractors:
        parts = [part for part in run_data.adapters if part.extractor == extractor]
        content += [tag("h4", extractor), figures.adapter_curves(parts)]
    content.append(tag("h3", "Audio-Guided Transformer"))
    rounds = [entry for entry in run_data.rounds if entry.train_loss or entry.waf]
    if not rounds:
        content.append(absent("No round of fusion has been trained yet."))
    else:
        names = [(f"c{entry.number % COLOURS}", f"round {entry.number}") for entry in rounds]
        content.append(key([*names, ("c5", "thin: single folds")]))
        content.append(figures.round_curves(rounds))
    labeled = [entry for entry in run_data.rounds if entry.pseudo_labeled is not None]
    if labeled:
        rows = [
            tag("tr", cell(f"round {entry.number}"), cell(f"{entry.pseudo_labeled:,}", "n"))
            for entry in labeled
        ]
        content.append(table(["", "pseudo-labelled for at least one fold"], rows, numbers=range(1, 2)))
    return section("learning", "Learning curves", "", *content)


def times(run_data: RunData) -> Html:
    rows = run_data.timings
    if not rows:
        return section("times", "Times", "", absent("No stage has finished yet."))
    longest = max((row.seconds or 0.0 for row in rows), default=0.0) or 1.0
    total = sum(row.seconds or 0.0 for row in rows)
    body = [
        tag(
            "tr",
            cell(row.stage),
            cell(row.part, "name"),
            cell(duration(row.seconds), "n"),
            cell("–" if row.clips is None else f"{row.clips:,}", "n"),
            cell("–" if row.rate is None else f"{row.rate:,.1f}", "n"),
            cell(tag("i", style=f"width:{100 * (row.seconds or 0) / longest:.1f}%"), "bar"),
        )
        for row in rows
    ]
    body.append(
        tag(
            "tr",
            cell("sum"),
            cell(""),
            cell(duration(total), "n"),
            cell(""),
            cell(""),
            cell(""),
            class_="total",
        )
    )
    caption = (
        "Each finished part of the run, over all starts: working time, clips processed, and clips per second."
    )
    head = ["stage", "part", "time", "clips", "clips/s", ""]
    return section("times", "Times", caption, table(head, body, numbers=range(2, 5)))


def provenance(run_data: RunData) -> Html:
    versions = [tag("tr", cell("mer_dist"), cell(mer_dist.__version__))]
    for package in PACKAGES:
        try:
            versions.append(tag("tr", cell(package), cell(metadata.version(package))))
        except metadata.PackageNotFoundError:
            versions.append(tag("tr", cell(package), cell("not installed", "quiet")))
    markers = [
        tag("tr", cell(row.stage), cell(row.part, "name"), cell(row.made_at), cell(row.fingerprint))
        for row in run_data.timings
    ]
    text = run_data.config_text
    saved = tag("pre", text) if text else absent("There is no saved configuration.")
    statistics = json.dumps(run_data.stats, ensure_ascii=False, indent=1) if run_data.stats else None
    return section(
        "provenance",
        "Configuration and versions",
        "",
        tag("details", tag("summary", "resolved configuration"), saved),
        tag(
            "details",
            tag("summary", "fingerprint of each part"),
            table(["stage", "part", "made at", "fingerprint"], markers),
        )
        if markers
        else None,
        tag("details", tag("summary", "shard statistics"), tag("pre", statistics)) if statistics else None,
        tag(
            "details",
            tag("summary", "versions installed where this page was written"),
            table(["package", "version"], versions),
        ),
    )
