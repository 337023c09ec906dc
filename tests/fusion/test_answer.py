"""Which row of the result table answers."""

from __future__ import annotations

import csv

import fusion_run
import numpy as np
import pytest

from mer_dist.fusion import answer, predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.inspect import explain
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

CLIPS = 400


def row(title: str, truth: np.ndarray, wrong: np.ndarray) -> Predictions:
    made = np.where(wrong, (truth + 1) % 3, truth)
    return Predictions(
        title=title,
        labels=fusion_run.LABELS,
        names=fusion_run.names(len(truth)),
        labeled=np.ones(len(truth), bool),
        fold=np.arange(len(truth)) % 3,
        probability=np.eye(3)[made],
        answer=made,
    )


def rows_of(*shares: float, same: bool = False) -> tuple[list[Predictions], np.ndarray]:
    """Rows that are wrong in these shares of the clips, each elsewhere or in the ``same``."""
    random = np.random.default_rng(0)
    truth, order = np.arange(CLIPS) % 3, random.permutation(CLIPS)
    rows = []
    for number, share in enumerate(shares):
        wrong = np.zeros(CLIPS, bool)
        wrong[(order if same else random.permutation(CLIPS))[: round(share * CLIPS)]] = True
        rows.append(row(f"row {number}", truth, wrong))
    return rows, truth


def chosen(rows, truth, groups=None) -> int:
    groups = np.arange(CLIPS) if groups is None else groups
    return answer.choose(rows, truth, groups, seed=0)[0]


def test_the_best_row_answers_where_it_is_clearly_better():
    rows, truth = rows_of(0.3, 0.1, 0.2)
    number, reason = answer.choose(rows, truth, np.arange(CLIPS), seed=0)
    assert number == 1 and (reason.row, reason.best) == ("row 1", "row 1")
    assert 0.89 < reason.waf == reason.best_waf < 0.91 and "row 1 answers: no row has a better" in str(reason)


def test_the_simpler_row_answers_within_one_standard_error():
    rows, truth = rows_of(0.21, 0.2)
    number, reason = answer.choose(rows, truth, np.arange(CLIPS), seed=0)
    assert number == 0 and reason.best == "row 1" and 0 < reason.best_waf - reason.waf < reason.error
    assert "within a standard error" in str(reason) and "row 1" in str(reason)


def test_the_difference_is_paired_so_rows_that_err_together_are_told_apart():
    assert chosen(*rows_of(0.22, 0.2)) == 0
    assert chosen(*rows_of(0.22, 0.2, same=True)) == 1


def test_clips_of_a_group_are_drawn_together():
    """The second row is better in all 40 clips of one film and worse in half of another."""
    number = np.arange(CLIPS)
    truth, film = number % 3, number // 40
    rows = [row("first", truth, film == 0), row("second", truth, (film == 1) & (number % 2 == 0))]
    assert chosen(rows, truth) == 1
    assert chosen(rows, truth, film) == 0


def test_unlabelled_clips_have_no_say():
    rows, truth = rows_of(0.3, 0.1)
    hidden = truth.copy()
    hidden[::2] = -1
    number, reason = answer.choose(rows, hidden, np.arange(CLIPS), seed=0)
    assert number == 1 and reason.waf != answer.choose(rows, truth, np.arange(CLIPS), seed=0)[1].waf


@pytest.mark.slow
def test_with_vote_answer_best_that_row_is_the_answer_file_and_is_named(tmp_path, caplog):
    fusion_run.make(tmp_path, epochs=1)
    caplog.set_level("INFO")
    config = fusion_run.configure(tmp_path, epochs=1, overrides=("vote.answer=best",))
    fuse(config)
    run = Run(config.run.folder)
    told = files.read_json(run.vote.prior)["answered_by_row"]
    by_title = {one.title: one for one in map(predictions.read, predictions.all_of(run))}
    # One epoch of AGT is no match for logistic regression.
    assert "AGT" not in told["title"] and told["reason"] in caplog.text
    with open(run.answer, newline="", encoding="utf-8") as file:
        answers = {line["name"]: line["discrete"] for line in csv.DictReader(file)}
    wanted = by_title[told["title"]].answers()
    assert answers == {name: wanted[name] for name in answers} and len(answers) == 120
    assert told["reason"] in explain.text(explain.explain(run.folder, "clip_0100"))

    fuse(fusion_run.configure(tmp_path, epochs=1))
    assert "answered_by_row" not in files.read_json(run.vote.prior)
    with open(run.answer, newline="", encoding="utf-8") as file:
        answers = {line["name"]: line["discrete"] for line in csv.DictReader(file)}
    voted = by_title["prior-aware vote"].answers()
    assert answers == {name: voted[name] for name in answers}
