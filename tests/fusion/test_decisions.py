"""Decisions by expected WAF, the gate and the ballot, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from test_prior import NEW, OLD, draw

from mer_dist.core import metrics
from mer_dist.fusion import decisions, label_shift


def test_decisions_reach_more_waf_than_argmax_and_never_expect_less():
    rare = np.array([0.72, 0.2, 0.05, 0.03])
    gains = []
    for seed in range(10):
        told, truth = draw(2000, rare, seed)
        told = label_shift.adapt(told, OLD, rare)
        gains.append(metrics.waf(truth, decisions.decide(told)) - metrics.waf(truth, told.argmax(1)))
        assert expected(told, decisions.decide(told)) >= expected(told, told.argmax(1))
    assert np.mean(gains) > 0


def expected(probability: np.ndarray, answer: np.ndarray) -> float:
    mass = probability.sum(0)
    right = np.array([probability[answer == label, label].sum() for label in range(4)])
    return (mass * 2 * right / (mass + np.bincount(answer, minlength=4))).sum() / len(answer)


def test_rows_with_a_weight_are_decided_as_so_many_rows():
    told, _ = draw(300, OLD, 7)
    weight = np.random.default_rng(0).integers(0, 4, 300)
    assert np.array_equal(
        np.repeat(decisions.decide(told, weight), weight), decisions.decide(np.repeat(told, weight, 0))
    )


@pytest.mark.slow
def test_the_gate_lets_a_shift_pass_and_stops_a_wrong_prior():
    oof, truth = draw(3000, OLD, 4)
    gate = decisions.gate(oof, truth, NEW, NEW[None], seed=0)
    assert gate.opens and gate.gain > 0.01
    # The WAF that it expects is that of clips which really have these shares.
    told, others = draw(20_000, NEW, 5)
    corrected = label_shift.adapt(told, OLD, NEW)
    assert gate.after == pytest.approx(metrics.waf(others, decisions.decide(corrected)), abs=0.02)
    assert gate.before == pytest.approx(metrics.waf(others, decisions.decide(told)), abs=0.02)
    # If the shares are those of the labelled clips after all, the same correction loses.
    assert not decisions.gate(oof, truth, NEW, OLD[None], seed=0).opens
    # Probabilities that carry nothing cannot be helped by being multiplied.
    noise = label_shift.softmax(np.random.default_rng(0).normal(size=(300, 4)) * 3)
    assert decisions.gate(noise, truth[:300], OLD, OLD[None], seed=0).gain < 0.01


def test_by_labels_alone_the_gate_expects_the_waf_of_weighted_clips(monkeypatch):
    """And with the models' own probabilities it is about as right, and surer, on a few hundred clips."""
    oof, truth = draw(250, OLD, 8)
    gates = {}
    for observed in (1.0, 0.5):
        monkeypatch.setattr(decisions, "OBSERVED", observed)
        gates[observed] = decisions.gate(oof, truth, NEW, NEW[None], seed=3)
    weight = (NEW / label_shift.shares(truth, 4))[truth]
    random = np.random.default_rng(3)
    drawn = np.stack([np.bincount(random.integers(0, 250, 250), minlength=250) for _ in range(200)]) * weight
    answer = decisions.decide(oof, weight)
    assert gates[1.0].before == pytest.approx(metrics.weighted_waf(truth, answer, drawn).mean(), abs=1e-9)
    assert gates[0.5].gain == pytest.approx(gates[1.0].gain, abs=gates[1.0].noise)
    assert gates[0.5].noise < 0.8 * gates[1.0].noise


def test_nothing_to_correct_leaves_the_gate_shut():
    oof, truth = draw(300, OLD, 4)
    own = label_shift.shares(truth, 4)
    gate = decisions.gate(oof, truth, own, own[None], seed=0)
    assert gate.gain == 0 and not gate.opens


@pytest.mark.slow
def test_doubt_about_the_prior_shuts_the_gate():
    oof, truth = draw(3000, OLD, 6)
    new = OLD + 0.5 * (NEW - OLD)
    sure = decisions.gate(oof, truth, new, new[None], seed=0)
    either = np.stack([new, 2 * OLD - new])
    assert sure.opens and not decisions.gate(oof, truth, new, either, seed=0).opens


def test_votes_are_weighed_by_how_often_a_member_is_right():
    truth = np.arange(120) % 3
    good, fair, bad = truth.copy(), truth.copy(), (truth + 1) % 3
    fair[:50] = (truth[:50] + 2) % 3
    members = np.eye(3)[np.stack([good, fair, fair, bad])]
    weights = decisions.vote_weights(members, truth)
    told = decisions.log_odds_vote(members, weights)
    assert weights[0] > weights[1] == weights[2] > 0 == weights[3]
    assert np.allclose(told.sum(1), 1) and (told.argmax(1) == truth).all()
    one = decisions.log_odds_vote(members[1:2], decisions.vote_weights(members[1:2], truth))
    assert (one.argmax(1) == fair).all()
    # Its own posterior: it is right in 70 of 120 clips, one of each kind added.
    assert one.max(1) == pytest.approx(71 / 123)
    assert decisions.vote_weights(members[3:], truth).tolist() == [1]
