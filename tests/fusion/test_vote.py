"""The vote: a shift of the label prior is found and used, and where there is none nothing is lost."""

from __future__ import annotations

import csv
from dataclasses import replace

import fusion_run
import numpy as np
import pytest

from mer_dist.config import config as configuration
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.core.records import Problem
from mer_dist.features import join
from mer_dist.features.join import Clips
from mer_dist.fusion import decisions, predictions, recipes
from mer_dist.fusion.answer import publish
from mer_dist.fusion.cross_fitted import CrossFitted, CrossFittedRound
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.recipes import Recipe
from mer_dist.fusion.vote import pool, vote
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

LABELED, UNLABELED, FOLDS = 300, 600, 3
EVEN, SHIFTED = (1, 1, 1), (1, 1, 8)


def case(shares: tuple, sharp: float = 1.0, seed: int = 0, unlabeled: int = UNLABELED):
    """Clips, one member that says what a model trained on even labels knows, and the truth."""
    random = np.random.default_rng(seed)
    truth = np.concatenate(
        [np.arange(LABELED) % 3, random.choice(3, unlabeled, p=np.array(shares) / sum(shares))]
    )
    points = 1.5 * np.eye(3)[truth] + random.normal(size=(len(truth), 3))
    odds = sharp * 1.5 * points
    probability = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    labeled = np.arange(len(truth)) < LABELED
    fold = np.where(labeled, np.arange(len(truth)) // 3 % FOLDS, -1)
    names = fusion_run.names(len(truth))
    clips = Clips(
        labels=fusion_run.LABELS, names=names, truth=np.where(labeled, truth, -1), fold=fold, folds=FOLDS
    )
    member = Predictions(
        title="AGT",
        labels=clips.labels,
        names=names,
        labeled=labeled,
        fold=fold,
        probability=probability,
        answer=probability.argmax(1),
    )
    return clips, member, truth


def honest(clips, probability: np.ndarray) -> np.ndarray:
    """(K, L, C): the same for every fold, but nothing of its own clips."""
    oof = np.stack([probability[clips.labeled]] * clips.folds).astype(np.float64)
    oof[clips.fold[clips.labeled], np.arange(clips.labeled.sum())] = np.nan
    return oof


def voted(tmp_path, clips, members, overrides=(), present=None, oof=None) -> tuple[Predictions, dict]:
    """The vote where models without two folds say what those without one say, or ``oof``."""
    if oof is None:
        oof = [honest(clips, member.probability) for member in members]
    config = fusion_run.configure(tmp_path, overrides=overrides)
    run = Run(config.run.folder)
    first = CrossFittedRound(
        number=0,
        oof=members[0],
        nested_oof=oof[0],
        fold_predictions=np.stack([members[0].probability[~clips.labeled]] * FOLDS),
        present=np.ones(len(clips.names), bool) if present is None else present,
        dropout=np.zeros(FOLDS),
    )
    pairs = zip(members[1:], oof[1:], strict=True)
    vote(config, clips, first, [CrossFitted(oof=oof, nested_oof=own) for oof, own in pairs], Recipe("here"))
    publish(run)
    return predictions.read(run.vote.predictions), files.read_json(run.vote.prior)


@pytest.mark.slow
def test_a_shift_of_the_prior_is_found_and_correcting_for_it_helps(tmp_path):
    clips, member, truth = case(SHIFTED, sharp=2.0)
    made, told = voted(tmp_path, clips, [member])
    own = ~clips.labeled
    assert told["applied"] and told["gain"] > 0
    assert np.abs(np.array(told["used"]) - [0.1, 0.1, 0.8]).max() < 0.12
    before = metrics.waf(truth[own], member.answer[own])
    assert metrics.waf(truth[own], made.answer[own]) > before + 0.03
    assert {"em", "bbse"} == told["estimated"].keys() and told["labels"] == fusion_run.LABELS


@pytest.mark.slow
def test_without_a_shift_the_vote_loses_less_than_a_fifth_of_a_point_on_average(tmp_path):
    changes = []
    for seed in range(6):
        clips, member, truth = case(EVEN, seed=seed)
        own = ~clips.labeled
        plain, made = (
            voted(tmp_path, clips, [member], overrides)[0].answer[own]
            for overrides in (("vote.prior=none",), ())
        )
        changes.append(metrics.waf(truth[own], made) - metrics.waf(truth[own], plain))
    assert np.mean(changes) > -0.002


@pytest.mark.slow
def test_intervals_of_both_estimators_are_kept_and_cover_the_truth(tmp_path):
    covered = []
    for seed in range(4):
        clips, member, truth = case(SHIFTED, seed=seed)
        _, told = voted(tmp_path, clips, [member])
        now = np.bincount(truth[~clips.labeled]) / UNLABELED
        assert told["intervals"].keys() == {"em", "bbse"}
        for low, high in map(np.array, told["intervals"].values()):
            covered += [(low <= now) & (now <= high)]
            assert (high - low < 0.25).all()
    assert np.sum(covered) >= 20  # of 24


@pytest.mark.slow
def test_a_labelled_clip_is_pooled_by_what_models_without_its_fold_say(tmp_path):
    clips, member, truth = case(EVEN)
    noise = np.random.default_rng(9).dirichlet([1, 1, 1], len(truth))
    other = Predictions(**vars(member) | {"title": "noise", "probability": noise})
    _, told = voted(tmp_path, clips, [member, other])
    assert told["weights"]["AGT"] > 0.8
    # What models without fold 1 say, and nobody else, praises the noise.
    oof = np.stack([honest(clips, one.probability) for one in (member, other)])
    oof[:, 1] = oof[::-1, 1]
    _, told = voted(tmp_path, clips, [member, other], oof=oof)
    by_fold = [own["AGT"] for own in told["weights_of_folds"]]
    assert by_fold[1] < 0.2 and min(by_fold[0], by_fold[2], told["weights"]["AGT"]) > 0.8


def own_answers_with_other_labels(config, monkeypatch, fold: int) -> list[Predictions]:
    """The vote with the labels of a fold as they are and shuffled, everything trained again."""
    run, made = Run(config.run.folder), []
    clips, problems = join.read_clips(config, run)
    truth, own = clips.truth.copy(), clips.fold == fold
    truth[own] = np.roll(truth[own], 1)
    for some in (clips, replace(clips, truth=truth)):
        monkeypatch.setattr(join, "read_clips", lambda *_, some=some: (some, problems))
        fuse(config)
        made.append(predictions.read(run.vote.predictions))
    assert not np.array_equal(made[0].probability[~own], made[1].probability[~own])
    return made


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_answers(tmp_path, monkeypatch, kind):
    fusion_run.make(tmp_path, shares=SHIFTED)
    config = fusion_run.configure(tmp_path, overrides=(f"vote.kind={kind}",))
    before, after = own_answers_with_other_labels(config, monkeypatch, fold=1)
    own = before.fold == 1
    assert np.array_equal(before.probability[own], after.probability[own])
    assert np.array_equal(before.answer[own], after.answer[own])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_that_proof_sees_weights_fitted_on_plain_out_of_fold_predictions(tmp_path, monkeypatch):
    config, _ = fusion_run.make(tmp_path, shares=SHIFTED)

    def leaky(probability, oof, clips, present, kind, *others):
        plain = np.stack([honest(clips, member) for member in probability])
        return pool(probability, plain, clips, present, kind, *others)

    monkeypatch.setattr("mer_dist.fusion.vote.pool", leaky)
    before, after = own_answers_with_other_labels(config, monkeypatch, fold=1)
    own = before.fold == 1
    assert not np.array_equal(before.probability[own], after.probability[own])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_with_two_folds_the_members_have_equal_weights_for_labelled_clips(tmp_path):
    fusion_run.make(tmp_path)
    config = fusion_run.configure(tmp_path, overrides=("folds.count=2",))
    fuse(config)
    told = files.read_json(Run(config.run.folder).vote.prior)
    equal = 1 / len(told["weights"])
    assert [*told["weights_of_folds"][0].values()] == pytest.approx([equal] * len(told["weights"]))
    assert len(set(told["weights"].values())) > 1


@pytest.mark.slow
def test_calibration_makes_the_pooled_probabilities_honest(tmp_path):
    clips, member, truth = case(EVEN, sharp=4.0)
    made, _ = voted(tmp_path, clips, [member])
    own = clips.labeled
    right = (made.answer == truth)[own].mean()
    assert abs(made.probability[own].max(1).mean() - right) < 0.04
    assert member.probability[own].max(1).mean() > right + 0.1


@pytest.mark.slow
def test_a_prior_given_by_hand_is_used_through_the_same_gate_and_its_origin_is_kept(tmp_path):
    clips, member, truth = case(SHIFTED)
    given = "vote.given={neutral: 0.1, angry: 0.1, happy: 0.8}"
    _, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert told["origin"] == "given" and told["applied"] and told["used"] == pytest.approx([0.1, 0.1, 0.8])
    with pytest.raises(UserError, match="sum to 1"):
        configuration.load(tmp_path / "job.yaml", ["vote.prior=given", "vote.given={happy: 0.8}"])


@pytest.mark.slow
def test_groups_of_folds_are_drawn_together_for_the_intervals(tmp_path):
    clips, member, _ = case(SHIFTED)
    _, apart = voted(tmp_path, clips, [member])
    # Ten groups by the last digit of the name.
    _, grouped = voted(tmp_path, clips, [member], ("folds.group='([0-9])$'",))
    assert apart["estimated"] == grouped["estimated"] and apart["intervals"] != grouped["intervals"]


@pytest.mark.slow
def test_a_prior_probed_from_a_scorer_is_used_and_its_origin_is_kept(tmp_path, caplog):
    clips, member, truth = case(SHIFTED)
    now = np.bincount(truth[~clips.labeled]) / UNLABELED
    scores = {
        label: round(float(100 * 2 * share**2 / (1 + share)), 2)
        for label, share in zip(clips.labels, now, strict=True)
    }
    linear_probes = (
        "vote.scorer_feedback={" + ", ".join(f"{label}: {score}" for label, score in scores.items()) + "}"
    )
    _, told = voted(tmp_path, clips, [member], ("vote.prior=probed", linear_probes))
    assert told["origin"] == "probed" and told["applied"]
    assert told["used"] == pytest.approx(now.tolist(), abs=1e-3)
    assert "probes of a scorer" in caplog.text and "may forbid" in caplog.text
    with pytest.raises(UserError, match="vote.scorer_feedback do not fit together"):
        wrong = linear_probes.replace("neutral: ", "neutral: 1")
        configuration.load(tmp_path / "job.yaml", ["vote.prior=probed", wrong])
    with pytest.raises(UserError, match="vote.scorer_feedback belongs to vote.prior: probed"):
        configuration.load(tmp_path / "job.yaml", [linear_probes])


@pytest.mark.slow
@pytest.mark.parametrize("now", [EVEN, SHIFTED])
def test_a_prior_told_wrongly_stays_outside_the_gate(tmp_path, caplog, now):
    """Labelled clips weighed to it gain by it, whatever it is; the unlabelled ones contradict it."""
    clips, member, truth = case(now)
    given = "vote.given={neutral: 0.8, angry: 0.1, happy: 0.1}"
    made, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert told["gain"] > 0.03 and told["tried"] == pytest.approx([0.8, 0.1, 0.1])
    assert not told["applied"] and told["used"] == told["labeled"]
    assert "vote.given does not fit the unlabelled clips" in caplog.text
    assert told["reason"].startswith("EM and BBSE find other label shares")
    assert told["estimated"].keys() == told["intervals"].keys() == {"em", "bbse"}


@pytest.mark.slow
def test_a_prior_told_rightly_passes_the_gate(tmp_path, caplog):
    for seed in range(4):
        clips, member, _ = case(SHIFTED, seed=seed)
        given = "vote.given={neutral: 0.1, angry: 0.1, happy: 0.8}"
        _, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
        assert told["applied"] and told["used"] == pytest.approx([0.1, 0.1, 0.8])
    assert "does not fit" not in caplog.text


@pytest.mark.slow
def test_a_prior_that_changes_nothing_is_not_applied(tmp_path):
    clips, member, _ = case(EVEN)
    member.probability[:] = np.random.default_rng(1).dirichlet([1, 1, 1], len(clips.names))
    given = "vote.given={neutral: 0.34, angry: 0.33, happy: 0.33}"
    _, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert not told["applied"] and told["used"] == told["labeled"]


@pytest.mark.slow
def test_a_hard_vote_is_the_weighted_majority_of_the_answers(tmp_path):
    clips, member, truth = case(EVEN)
    random = np.random.default_rng(3)
    # Two weaker members that agree outvote a surer one; one that guesses has next to no say.
    others = []
    for number in range(2):
        wrong = random.random(len(truth)) < 0.2
        said = np.where(wrong, (truth + 1 + random.integers(0, 2, len(truth))) % 3, truth)
        others.append(
            Predictions(**vars(member) | {"title": f"m{number}", "probability": 0.1 + 0.7 * np.eye(3)[said]})
        )
    guess = Predictions(
        **vars(member) | {"title": "guess", "probability": np.eye(3)[random.integers(0, 3, len(truth))]}
    )
    made, told = voted(tmp_path, clips, [member, *others, guess], ("vote.kind=hard", "vote.prior=none"))
    assert told["kind"] == "hard" and sum(told["weights"].values()) == pytest.approx(1)
    assert told["weights"]["guess"] < 0.2 * told["weights"]["m0"]
    weights = np.array([told["weights"][title] for title in ("AGT", "m0", "m1", "guess")])
    answers = np.stack([one.probability.argmax(1) for one in (member, *others, guess)])
    votes = (weights[:, None, None] * np.eye(3)[answers]).sum(0)
    own = ~clips.labeled
    assert np.array_equal(made.answer[own], votes[own].argmax(1))
    best = max(metrics.waf(truth[own], row[own]) for row in answers)
    assert metrics.waf(truth[own], made.answer[own]) > best
    soft, _ = voted(tmp_path, clips, [member, *others, guess], ("vote.prior=none",))
    assert not np.array_equal(soft.answer, made.answer)


def test_without_a_prior_the_answer_is_the_plain_argmax(tmp_path, caplog):
    caplog.set_level("INFO", "mer_dist")
    clips, member, _ = case(SHIFTED)
    made, told = voted(tmp_path, clips, [member], ("vote.prior=none",))
    assert not told["applied"] and (made.answer == made.probability.argmax(1)).all()
    assert "not applied: vote.prior is none" in caplog.text and "expected WAF" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
def test_without_a_correction_each_clip_gets_its_most_probable_label(tmp_path, caplog, seed):
    """A mild shift that the gate lets go: answers by expected WAF would lose half a point and more."""
    caplog.set_level("INFO", "mer_dist")
    clips, member, truth = case((1, 1, 2), seed=seed)
    plain, _ = voted(tmp_path, clips, [member], ("vote.prior=none",))
    made, told = voted(tmp_path, clips, [member])
    own = ~clips.labeled
    by_waf = decisions.decide(made.probability[own])
    assert metrics.waf(truth[own], by_waf) < metrics.waf(truth[own], made.answer[own]) - 0.005
    assert not told["applied"] and told["decided_by"] == "gate" and np.array_equal(made.answer, plain.answer)
    assert told["answered_by"] == "most probable label, as no correction is applied"
    assert "so each clip is answered with its most probable label" in caplog.text
    assert "maximise expected WAF" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("shares, seed", [((1, 1, 2), 4), ((1, 4, 6), 1)])
def test_corrected_clips_are_answered_for_expected_waf_and_gain_by_it(tmp_path, caplog, shares, seed):
    caplog.set_level("INFO", "mer_dist")
    clips, member, truth = case(shares, seed=seed)
    made, told = voted(tmp_path, clips, [member])
    own = ~clips.labeled
    most = made.probability.argmax(1)
    assert told["applied"] and np.array_equal(made.answer[own], decisions.decide(made.probability[own]))
    assert metrics.waf(truth[own], made.answer[own]) > metrics.waf(truth[own], most[own]) + 0.01
    # Labelled clips are never corrected.
    assert np.array_equal(made.answer[~own], most[~own])
    assert told["answered_by"] == "expected WAF, as a correction is applied"
    moved = int((made.answer != most)[own].sum())
    assert (
        f"answers maximise expected WAF, and for {moved} of {UNLABELED} unlabelled clips that is not the "
        "most probable label"
    ) in caplog.text


@pytest.mark.slow
def test_shares_told_that_the_unlabelled_clips_contradict_leave_the_most_probable_labels(tmp_path):
    clips, member, _ = case(SHIFTED)
    given = "vote.given={neutral: 0.8, angry: 0.1, happy: 0.1}"
    made, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert told["decided_by"] == "estimates" and not told["applied"]
    assert np.array_equal(made.answer, made.probability.argmax(1))


def test_without_unlabelled_clips_there_is_a_vote_and_an_empty_answer(tmp_path):
    clips, member, _ = case(EVEN, unlabeled=0)
    made, told = voted(tmp_path, clips, [member])
    assert not told["applied"] and "no unlabelled" in told["reason"]
    assert len(made.names) == LABELED
    assert (tmp_path / "run" / "answer.csv").read_text() == "name,discrete\n"


@pytest.mark.slow
def test_the_answer_names_each_unlabelled_clip_once_with_its_label(tmp_path):
    clips, member, _ = case(EVEN)
    made, _ = voted(tmp_path, clips, [member])
    with open(tmp_path / "run" / "answer.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    own = {name: label for name, label in made.answers().items() if name >= clips.names[LABELED]}
    assert rows == own and len(rows) == UNLABELED


def restrict(tmp_path, text: str) -> str:
    (tmp_path / "names.csv").write_text(text)
    return f"vote.names={tmp_path}/names.csv"


@pytest.mark.slow
def test_the_answer_has_the_wanted_names_in_their_order(tmp_path):
    clips, member, truth = case(EVEN)
    happy = np.flatnonzero((truth == 2) & ~clips.labeled)
    wanted = [clips.names[row] for row in [*happy[::-1], 400, 401]]
    # The form of a submission, with its endings, will do.
    text = "discrete,name\n" + "".join(f",{name}.mp4\n" for name in wanted)
    made, told = voted(tmp_path, clips, [member], (restrict(tmp_path, text),))
    with open(tmp_path / "run" / "answer.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == wanted
    assert [row["discrete"] for row in rows] == [made.answers()[name] for name in wanted]
    assert len(made.names) == len(clips.names)
    # The prior is that of the wanted clips alone.
    assert told["estimated"]["em"][2] > 0.9 and told["applied"]
    _, of_all = voted(tmp_path, clips, [member])
    assert of_all["estimated"]["em"][2] < 0.5


@pytest.mark.parametrize(
    "text, why",
    [
        ("name\nclip_0301\nnot_here\nnor_here\n", "2 of 3 names are not among .* not_here, nor_here"),
        ("name\nclip_0301\nclip_0001\n", "1 of 2 names are labelled .* clip_0001"),
        ("name\n", "names no clip"),
        ("name\nclip_0301\nclip_0301\n", "occurs twice"),
        ("clip\nclip_0301\n", "lacks the columns name"),
    ],
)
def test_wanted_names_that_cannot_be_answered_are_refused(tmp_path, text, why):
    clips, member, _ = case(EVEN)
    with pytest.raises(UserError, match=why):
        voted(tmp_path, clips, [member], (restrict(tmp_path, text),))
    assert not (tmp_path / "run" / "answer.csv").exists()


@pytest.mark.slow
def test_a_wanted_clip_in_quarantine_gets_the_most_frequent_label(tmp_path, caplog):
    clips, member, _ = case(SHIFTED)
    broken = Problem(stage="shard", name="broken", lost="clip", reason="no frame")
    quarantine.replace(tmp_path / "run" / "quarantine.parquet", "shard", [broken])
    voted(tmp_path, clips, [member], (restrict(tmp_path, "name\nclip_0301\nbroken\n"),))
    with open(tmp_path / "run" / "answer.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row["discrete"] for row in csv.DictReader(file)}
    assert list(rows) == ["clip_0301", "broken"] and rows["broken"] in clips.labels
    assert "1 clips of vote.names are in quarantine" in caplog.text


@pytest.mark.slow
def test_another_list_of_names_is_another_vote(tmp_path):
    clips, member, _ = case(EVEN)
    marks = []
    for text in ("name\nclip_0301\n", "name\nclip_0302\n", "name\nclip_0302\n"):
        config = fusion_run.configure(tmp_path, overrides=(restrict(tmp_path, text),))
        marks.append(recipes.vote(config, Recipe("x"), []).fingerprint)
    assert marks[0] != marks[1] == marks[2]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 10])
def test_two_or_ten_wanted_names_give_no_prior_and_one_without_any_modality_no_runaway_label(
    tmp_path, count, caplog
):
    caplog.set_level("INFO", "mer_dist")
    clips, member, truth = case(SHIFTED, sharp=2.0)
    wanted = np.flatnonzero((truth == 2) & ~clips.labeled)[:count]
    present = np.arange(len(truth)) != wanted[-1]
    member.probability[~present] = [0.34, 0.33, 0.33]
    text = "name\n" + "".join(f"{clips.names[row]}\n" for row in wanted)
    made, told = voted(tmp_path, clips, [member], (restrict(tmp_path, text),), present)
    # What would have been assumed: nearly all of them of one label.
    assert told["estimated"]["em"][2] > 0.9 and not told["applied"] and told["used"] == told["labeled"]
    assert told["decided_by"] == "floor" and told["p_value"] is None and told["clips"] == count - 1
    assert f"not applied: {count - 1} unlabelled and 300 labelled clips" in caplog.text
    assert made.answer[wanted[-1]] == 0
    assert np.array_equal(made.answer[~clips.labeled], made.probability[~clips.labeled].argmax(1))


@pytest.mark.slow
def test_a_vote_over_clips_that_look_different_says_so_and_takes_shares_that_were_told(tmp_path, caplog):
    caplog.set_level("INFO", "mer_dist")
    clips, member, truth = case(SHIFTED)
    others = ~clips.labeled
    # Surer of the first label, whatever the clip is, and less sure of the rest.
    odds = 0.3 * np.log(member.probability[others]) + [1, 0, 0]
    member.probability[others] = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    made, told = voted(tmp_path, clips, [member])
    assert not told["applied"] and told["decided_by"] == "two-sample test" and told["p_value"] < 0.02
    assert np.array_equal(made.answer[others], made.probability[others].argmax(1))
    assert "more than the label shares differs" in caplog.text
    given = "vote.given={neutral: 0.1, angry: 0.1, happy: 0.8}"
    made, told = voted(tmp_path, clips, [member], ("vote.prior=given", given))
    assert told["applied"] and told["used"] == pytest.approx([0.1, 0.1, 0.8])
    assert told["decided_by"] == "two-sample test" and "does not fit" not in caplog.text


@pytest.mark.slow
def test_clips_without_any_modality_tell_nothing_of_the_prior(tmp_path):
    clips, member, _ = case(SHIFTED, sharp=2.0)
    present = np.random.default_rng(3).random(len(clips.names)) > 0.3
    present[clips.labeled] = True
    member.probability[~present] = 1 / 3
    of_happy = [
        voted(tmp_path, clips, [member], present=counted)[1]["estimated"]["bbse"][2]
        for counted in (present, np.ones_like(present))
    ]
    assert 0.65 < of_happy[0] < 0.85 and of_happy[1] < of_happy[0] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_clip_without_any_modality_gets_the_label_shares_as_they_are(tmp_path, kind):
    clips, member, _ = case(SHIFTED, sharp=2.0)
    present = np.arange(len(clips.names)) % 5 > 0
    shares = [0.5, 0.3, 0.2]
    member.probability[~present] = shares
    made, told = voted(tmp_path, clips, [member], (f"vote.kind={kind}",), present)
    assert np.allclose(made.probability[clips.labeled & ~present], shares)
    assert told["applied"] == (kind == "soft")
    corrected = np.array(shares) * (np.divide(told["used"], told["labeled"]) if told["applied"] else 1)
    assert np.allclose(made.probability[~clips.labeled & ~present], corrected / corrected.sum(), atol=1e-6)


@pytest.mark.slow
def test_an_answer_that_was_cut_short_is_put_in_its_place_again(tmp_path):
    clips, member, _ = case(EVEN)
    voted(tmp_path, clips, [member])
    answer = Run(tmp_path / "run").answer
    whole = answer.read_bytes()
    answer.write_text("name,discrete\n")
    publish(Run(tmp_path / "run"))
    assert answer.read_bytes() == whole
