"""The way of one clip through a run, as a reader and as a program sees it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fusion_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mer_dist import cli
from mer_dist.core.errors import UserError
from mer_dist.core.records import Problem
from mer_dist.features import store
from mer_dist.fusion import predictions
from mer_dist.inspect.explain import explain, text
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.slow

NAMES = fusion_run.names(210)
#: One has no audio, one no text that is a number.
SILENT, BROKEN = NAMES[150], NAMES[160]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("explained")
    config, _ = fusion_run.make(folder, epochs=4, rounds=2)
    run = Run(config.run.folder)
    voice, line = (store.load(run.features(name)) for name in ("voice", "line"))
    voice = voice.only(set(NAMES) - {SILENT})
    voice.missing = {SILENT: "no sound in the file"}
    line.utterance[NAMES.index(BROKEN), 2] = np.nan
    for name, changed in (("voice", voice), ("line", line)):
        store.write_shard(run.features(name) / "00000.safetensors", changed, "2")
    fuse(config)
    lost = [Problem(stage="shard", name="clip_lost", lost="clip", reason="not a video")]
    quarantine.replace(run.quarantine, "shard", lost)
    yield run
    torch.set_num_threads(before)


def lines_with(told: str, *words: str) -> list[str]:
    return [line for line in told.splitlines() if all(word in line for word in words)]


def test_an_unlabelled_clip_is_followed_from_features_to_answer(run):
    name = NAMES[120]
    told = explain(run.folder, name)
    assert (told["split"], told["fold"], told["label"]) == ("unlabeled", -1, None)
    assert [one["masked"] for one in told["features"]] == [None] * 3
    assert [one["title"] for one in told["predictions"]] == [
        predictions.read(path).title for path in predictions.all_of(run)
    ]
    for path, one in zip(predictions.all_of(run), told["predictions"], strict=True):
        assert one["probability"] == predictions.read(path).probability[NAMES.index(name)].tolist()
    assert [one["round"] for one in told["rounds"]] == [1, 2]
    for one in told["rounds"]:
        every = pq.read_table(run.round(one["round"]).pseudo_label_log).to_pylist()
        assert one["folds"] == [row for row in every if row["name"] == name] and len(one["folds"]) == 3
    assert told["vote"] == files.read_json(run.vote.prior)
    assert f"{name},{told['answer']}\n" in run.answer.read_text()


def test_a_labelled_clip_tells_its_label_and_fold_and_was_never_a_pseudo_label(run):
    told = explain(run.folder, NAMES[7])
    assert told["label"] == fusion_run.LABELS[7 % 3] and told["rounds"] == [] and told["answer"] is None
    fold = files.read_json(run.folds)["folds"][NAMES[7]]
    assert text(told).startswith(f"clip_0007: labelled {told['label']}, fold {fold}; every prediction")
    assert f"weight of each member for fold {fold}" in text(told)
    assert lines_with(text(told), f"answer: {told['predictions'][-1]['answer']}", "labelled")


def test_what_is_masked_or_left_out_is_named_with_its_reason(run):
    silent, broken, lost = (explain(run.folder, name) for name in (SILENT, BROKEN, "clip_lost"))
    assert lines_with(text(silent), "voice", "audio", "masked: no sound in the file")
    assert lines_with(text(broken), "line", "text", "masked:", "values that are NaN")
    told = quarantine.read(run.quarantine)
    reworded = [replace(row, reason="told in other words") for row in told if row.stage == "fuse"]
    quarantine.replace(run.quarantine, "fuse", reworded)
    assert lines_with(text(explain(run.folder, BROKEN)), "line", "text", "masked: told in other words")
    quarantine.replace(run.quarantine, "fuse", [row for row in told if row.stage == "fuse"])
    assert lines_with(text(broken), "fuse", "lost: text")
    assert text(lost).startswith("clip_lost: left out of fusion")
    assert lines_with(text(lost), "shard", "lost: clip", "not a video")


def test_the_text_is_in_columns_under_the_names_of_the_emotions(run):
    told = explain(run.folder, NAMES[120])
    shown = text(told)
    header = next(line for line in shown.splitlines() if "neutral" in line and "answer" in line)
    for one in told["predictions"]:
        (line,) = [
            line
            for line in lines_with(shown, one["title"], one["answer"])
            if line.strip().startswith(one["title"] + "  ")
        ]
        for label, value in zip(told["labels"], one["probability"], strict=True):
            end = header.index(label) + len(label)
            assert line[:end].endswith(f"{value:.3f}"), "numbers end under the end of their label"
    for one in told["rounds"]:
        for row in one["folds"]:
            threshold = "none" if row["threshold"] is None else f"{row['threshold']:.3f}"
            taken = "yes" if row["selected"] else "no"
            assert lines_with(
                shown,
                f"for fold {row['fold']}",
                taken,
                f"{row['weight']:.3f}",
                threshold,
                row["reason"],
                f"{row['models']} of round {one['round'] - 1}",
            )
    for title, weight in told["vote"]["weights"].items():
        assert lines_with(shown, title, f"{weight:.3f}")
    assert lines_with(shown, "prior correction", told["vote"]["reason"])
    assert lines_with(shown, f"decision for unlabelled clips: {told['vote']['answered_by']}")
    assert shown.splitlines()[-1] == f"answer: {told['answer']}"
    assert not any(line.endswith(" ") for line in shown.splitlines())


def test_an_answer_that_is_not_the_most_probable_label_says_why(run):
    told = explain(run.folder, NAMES[120])
    final, labels = told["predictions"][-1], told["labels"]
    final["probability"], final["answer"] = [0.5, 0.4, 0.1], labels[1]
    assert lines_with(text(told), f"label is {labels[0]}, the answer {labels[1]}", "expected WAF")
    final["answer"] = labels[0]
    assert "expected WAF" not in text(told)


def test_an_answer_that_was_changed_after_the_vote_is_said_to_be(run):
    name = NAMES[120]
    before, voted = run.answer.read_text(), explain(run.folder, name)["answer"]
    other = next(label for label in fusion_run.LABELS if label != voted)
    try:
        run.answer.write_text(before.replace(f"{name},{voted}", f"{name},{other}"))
        line = text(explain(run.folder, name)).splitlines()[-1]
        assert line == (
            f"answer: {other}; answer.csv was changed after the vote, which answered {voted}: run fuse to undo it"
        )
        run.answer.write_text(before.replace(f"{name},{voted}\n", ""))
        line = text(explain(run.folder, name)).splitlines()[-1]
        assert line.startswith("answer: none, its row is missing;") and f"which answered {voted}" in line
    finally:
        run.answer.write_text(before)
    assert text(explain(run.folder, name)).splitlines()[-1] == f"answer: {voted}"


def test_an_unknown_name_is_answered_with_near_ones(run):
    with pytest.raises(UserError, match="no clip 'clip_0120_' there; near names: clip_0120, "):
        explain(run.folder, "clip_0120_")
    with pytest.raises(UserError, match="its names look like clip_0000"):
        explain(run.folder, "zzz")


def test_a_run_without_predictions_says_what_to_run_first(tmp_path):
    config, _ = fusion_run.make(tmp_path)
    with pytest.raises(UserError, match="run fuse first"):
        explain(Path(config.run.folder), NAMES[0])


def test_the_command_prints_text_or_json(run, capsys):
    assert cli.main(["explain", str(run.folder), NAMES[120]]) == 0
    assert capsys.readouterr().out == text(explain(run.folder, NAMES[120])) + "\n"
    assert cli.main(["explain", str(run.folder), NAMES[120], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == explain(run.folder, NAMES[120])
    assert cli.main(["explain", str(run.folder), "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_run_is_explained_where_its_label_file_is_not(run):
    config = run.config.read_text()
    run.config.write_text(config.replace("labels.csv", "gone.csv"))
    told = explain(run.folder, NAMES[7])
    run.config.write_text(config)
    assert told["label"] is None and "(label not available)" in text(told)
