"""The vote: a shift of the label prior is found and used, and where there is none nothing is lost."""

from __future__ import annotations

import csv

import fusion_run
import numpy as np
import pytest

from mer_dist import config as configuration
from mer_dist import files, metrics, predictions
from mer_dist.errors import UserError
from mer_dist.joined import Clips
from mer_dist.layout import Run
from mer_dist.predictions import Predictions
from mer_dist.stages.vote import vote

LABELED, UNLABELED, FOLDS = 300, 600, 3
EVEN, SHIFTED = (1, 1, 1), (1, 1, 8)


def case(shares: tuple, sharp: float = 1.0, seed: int = 0, unlabeled: int = UNLABELED):
    """Clips, one member that says what a model trained on even labels knows, and the truth."""
    random = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(LABELED) % 3,
                            random.choice(3, unlabeled, p=np.array(shares) / sum(shares))])
    points = 1.5 * np.eye(3)[truth] + random.normal(size=(len(truth), 3))
    odds = sharp * 1.5 * points
    probability = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    labeled = np.arange(len(truth)) < LABELED
    fold = np.where(labeled, np.arange(len(truth)) // 3 % FOLDS, -1)
    names = fusion_run.names(len(truth))
    clips = Clips(labels=fusion_run.LABELS, names=names, truth=np.where(labeled, truth, -1),
                  fold=fold, folds=FOLDS)
    member = Predictions(title="AGT", labels=clips.labels, names=names, labeled=labeled, fold=fold,
                         probability=probability, answer=probability.argmax(1))
    return clips, member, truth


def voted(tmp_path, clips, members, overrides=()) -> tuple[Predictions, dict]:
    config = fusion_run.configure(tmp_path, overrides=overrides)
    told = members[0].probability[~clips.labeled]
    vote(config, clips, members, np.stack([told] * FOLDS), "here")
    run = Run(config.run.folder)
    return predictions.read(run.vote / "predictions.parquet"), files.read_json(run.vote / "prior.json")


def test_a_shift_of_the_prior_is_found_and_correcting_for_it_helps(tmp_path):
    clips, member, truth = case(SHIFTED, sharp=2.0)
    made, told = voted(tmp_path, clips, [member])
    own = ~clips.labeled
    assert told["applied"] and told["gain"] > 0
    assert np.abs(np.array(told["used"]) - [0.1, 0.1, 0.8]).max() < 0.12
    before = metrics.waf(truth[own], member.answer[own])
    assert metrics.waf(truth[own], made.answer[own]) > before + 0.03
    assert {"em", "bbse"} == told["estimated"].keys() and told["labels"] == fusion_run.LABELS


def test_without_a_shift_the_vote_loses_next_to_nothing(tmp_path):
    changes = []
    for seed in range(10):
        clips, member, truth = case(EVEN, seed=seed)
        made, _ = voted(tmp_path, clips, [member])
        own = ~clips.labeled
        changes.append(metrics.waf(truth[own], made.answer[own]) - metrics.waf(truth[own], member.answer[own]))
    assert np.mean(changes) > -0.004


def test_a_labelled_clip_is_pooled_by_what_the_other_folds_say(tmp_path):
    clips, member, truth = case(EVEN)
    noise = np.random.default_rng(9).dirichlet([1, 1, 1], len(truth))
    other = Predictions(**vars(member) | {"title": "noise", "probability": noise})
    first, told = voted(tmp_path, clips, [member, other])
    assert told["weights"]["AGT"] > 0.8
    own = clips.fold == 1
    shuffled = clips.truth.copy()
    shuffled[own] = np.roll(shuffled[own], 1)
    second, _ = voted(tmp_path, Clips(**vars(clips) | {"truth": shuffled}), [member, other])
    assert np.array_equal(first.probability[own], second.probability[own])
    assert not np.array_equal(first.probability[clips.fold == 0], second.probability[clips.fold == 0])


def test_calibration_makes_the_pooled_probabilities_honest(tmp_path):
    clips, member, truth = case(EVEN, sharp=4.0)
    made, _ = voted(tmp_path, clips, [member])
    own = clips.labeled
    right = (made.answer == truth)[own].mean()
    assert abs(made.probability[own].max(1).mean() - right) < 0.04
    assert member.probability[own].max(1).mean() > right + 0.1


def test_a_prior_given_by_hand_is_used_through_the_same_gate_and_its_origin_is_kept(tmp_path):
    clips, member, truth = case(SHIFTED)
    given = "vote.given={neutral: 0.1, angry: 0.1, happy: 0.8}"
    _, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert told["origin"] == "given" and told["applied"] and told["used"] == pytest.approx([0.1, 0.1, 0.8])
    with pytest.raises(UserError, match="sum to 1"):
        configuration.load(tmp_path / "job.yaml", ["vote.prior=given", "vote.given={happy: 0.8}"])


def test_without_a_prior_the_answer_is_the_plain_argmax(tmp_path):
    clips, member, _ = case(SHIFTED)
    made, told = voted(tmp_path, clips, [member], ("vote.prior=none",))
    assert not told["applied"] and (made.answer == made.probability.argmax(1)).all()


def test_without_unlabelled_clips_there_is_a_vote_and_an_empty_answer(tmp_path):
    clips, member, _ = case(EVEN, unlabeled=0)
    made, told = voted(tmp_path, clips, [member])
    assert not told["applied"] and "no unlabelled" in told["reason"]
    assert len(made.names) == LABELED
    assert (tmp_path / "run" / "answer.csv").read_text() == "name,discrete\n"


def test_the_answer_names_each_unlabelled_clip_once_with_its_label(tmp_path):
    clips, member, _ = case(EVEN)
    made, _ = voted(tmp_path, clips, [member])
    with open(tmp_path / "run" / "answer.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    own = {name: label for name, label in made.answers().items() if name >= clips.names[LABELED]}
    assert rows == own and len(rows) == UNLABELED
