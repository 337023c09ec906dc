"""Outside labellers in the vote: what a good one gains, that a poor one costs nothing, and that no label leaks."""

from __future__ import annotations

import csv
from dataclasses import replace

import fusion_run
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_vote import EVEN, FOLDS, case, honest

from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.fusion import teachers
from mer_dist.fusion.teachers import Teacher
from mer_dist.fusion.vote import pool
from mer_dist.inspect.explain import explain, text
from mer_dist.inspect.verify import verify
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


def teacher_of(
    truth: np.ndarray, right: float, sure: float = teachers.SURE, covers: float = 1.0, seed: int = 5
) -> Teacher:
    """One that is right in this part of the clips, always as ``sure``, and says nothing of the rest."""
    random = np.random.default_rng(seed)
    said = np.where(random.random(len(truth)) < right, truth, (truth + random.integers(1, 3, len(truth))) % 3)
    probability = np.full((len(truth), 3), (1 - sure) / 2)
    probability[np.arange(len(truth)), said] = sure
    probability[random.random(len(truth)) >= covers] = np.nan
    return Teacher("one", probability)


def pooled(clips, member, *taught: Teacher) -> tuple[np.ndarray, dict]:
    found = pool(
        member.probability[None],
        honest(clips, member.probability)[None],
        clips,
        np.ones(len(clips.names), bool),
        taught_by=taught,
    )
    return found.probability, found.taught


def gain(right: float, seeds=range(6), **how) -> tuple[float, float]:
    """WAF in points that a teacher adds, on the unlabelled clips that it covers and on the labelled ones; mean."""
    found = []
    for seed in seeds:
        clips, member, truth = case(EVEN, sharp=0.5, seed=seed)
        teacher = teacher_of(truth, right, seed=seed + 100, **how)
        before, after = pooled(clips, member)[0], pooled(clips, member, teacher)[0]
        parts = (teacher.covers & ~clips.labeled, clips.labeled)
        found.append(
            [
                100
                * (
                    metrics.waf(truth[own], after[own].argmax(1))
                    - metrics.waf(truth[own], before[own].argmax(1))
                )
                for own in parts
            ]
        )
    unlabeled, labeled = np.mean(found, 0)
    return float(unlabeled), float(labeled)


@pytest.mark.slow
@pytest.mark.parametrize("sure", [0.5, 0.9, 0.999])
def test_a_good_teacher_gains_however_sure_it_is_of_itself(sure):
    assert min(gain(0.85, sure=sure)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("right", [1 / 3, 0.2])
def test_one_that_knows_nothing_or_less_costs_next_to_nothing(right):
    assert min(gain(right, sure=0.999)) > -0.3


@pytest.mark.slow
def test_one_that_covers_a_part_gains_there_and_changes_no_other_clip():
    clips, member, truth = case(EVEN, sharp=0.5)
    teacher = teacher_of(truth, 0.9, covers=0.4)
    before, (after, told) = pooled(clips, member)[0], pooled(clips, member, teacher)
    assert np.array_equal(before[~teacher.covers], after[~teacher.covers])
    own = teacher.covers & ~clips.labeled
    assert (
        metrics.waf(truth[own], after[own].argmax(1)) > metrics.waf(truth[own], before[own].argmax(1)) + 0.05
    )
    assert told["one"]["labeled"] == (teacher.covers & clips.labeled).sum() and told["one"]["weight"] > 0.3
    assert np.allclose(after.sum(1), 1)


def test_on_few_labelled_clips_it_has_no_say():
    clips, member, truth = case(EVEN)
    teacher = teacher_of(truth, 1.0)
    hidden = teacher.probability.copy()
    hidden[np.flatnonzero(clips.labeled)[teachers.LEAST - 1 :]] = np.nan
    before, (after, told) = pooled(clips, member)[0], pooled(clips, member, Teacher("one", hidden))
    assert np.array_equal(before, after) and told["one"]["weight"] == 0


@pytest.mark.slow
def test_two_teachers_join_one_after_the_other():
    clips, member, truth = case(EVEN, sharp=0.5)
    first, second = (replace(teacher_of(truth, 0.7, seed=seed), name=str(seed)) for seed in (1, 2))
    waf = [
        metrics.waf(truth[~clips.labeled], pooled(clips, member, *some)[0][~clips.labeled].argmax(1))
        for some in ((), (first,), (first, second))
    ]
    assert waf[0] + 0.02 < waf[1] and waf[1] + 0.01 < waf[2]
    assert [*pooled(clips, member, first, second)[1]] == ["1", "2"]


def test_the_labels_of_a_fold_do_not_touch_a_bit_of_its_own_pooled_predictions():
    clips, member, truth = case(EVEN)
    teacher = teacher_of(truth, 0.8)
    own, shuffled = clips.fold == 0, clips.truth.copy()
    shuffled[own] = np.roll(shuffled[own], 1)
    before, after = (pooled(some, member, teacher)[0] for some in (clips, replace(clips, truth=shuffled)))
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[clips.fold == 1], after[clips.fold == 1])
    assert len(before) == len(clips.names) and FOLDS == 3


@pytest.fixture
def made(tmp_path):
    config, truth = fusion_run.make(tmp_path, epochs=1, rounds=0)
    return config, truth, Run(config.run.folder)


def taught(folder, *options: str):
    """By one weak set, and the answers of an expert."""
    overrides = ("fuse.sets=[voice]", "vote.teachers=[expert]", *options)
    return fusion_run.configure(folder, epochs=1, rounds=0, overrides=overrides)


@pytest.mark.slow
def test_from_its_answers_to_the_answer_file_and_the_labels_that_it_doubts(made, tmp_path, caplog):
    _, truth, run = made
    fuse(alone := fusion_run.configure(tmp_path, epochs=1, rounds=0, overrides=("fuse.sets=[voice]",)))
    plain = metrics.waf(truth[90:], answers(run))
    said = teacher_of(truth, 0.97).probability
    teachers.write(run, "expert", fusion_run.LABELS, fusion_run.names(len(truth)), said)
    caplog.set_level("INFO")
    fuse(taught(tmp_path))
    assert metrics.waf(truth[90:], answers(run)) > plain + 0.1
    told = files.read_json(run.vote.prior)["teachers"]["expert"]
    assert told["labeled"] == 90 and told["unlabeled"] == 120 and told["weight"] > 0.3
    assert verify(run.folder) == []
    shown = text(explain(run.folder, "clip_0100"))
    assert "outside labellers" in shown and "expert" in shown
    # Other answers make the vote again, and nothing before it.
    before = (run.round(0).folder / "complete.json").stat().st_mtime_ns
    teachers.write(run, "expert", fusion_run.LABELS, fusion_run.names(len(truth)), said[::-1].copy())
    assert any("answers of vote.teachers" in line for line in verify(run.folder))
    fuse(taught(tmp_path))
    assert (run.round(0).folder / "complete.json").stat().st_mtime_ns == before
    fuse(alone)
    assert not run.vote.disputed.exists() and metrics.waf(truth[90:], answers(run)) == plain


@pytest.mark.slow
def test_labels_that_a_teacher_and_the_models_doubt_are_listed_and_no_others(tmp_path, caplog):
    caplog.set_level("INFO")
    _, truth = fusion_run.make(tmp_path, epochs=1, rounds=0)
    told, wrong = truth.copy(), [3, 17, 40, 66, 88]
    told[wrong] = (told[wrong] + 1) % 3
    fusion_run.write_labels(tmp_path, told, 90)
    config = fusion_run.configure(tmp_path, epochs=1, rounds=0, overrides=("vote.teachers=[expert]",))
    run = Run(config.run.folder)
    names = fusion_run.names(len(truth))
    teachers.write(run, "expert", fusion_run.LABELS, names, teacher_of(truth, 1.0).probability)
    fuse(config)
    with open(run.vote.disputed, newline="", encoding="utf-8") as file:
        doubted = {
            row["name"]: (row["label"], row["instead"], row["teacher"]) for row in csv.DictReader(file)
        }
    # The models, out of fold and without the teacher, see most of them.
    assert len(doubted) >= 4 and doubted.keys() <= {names[row] for row in wrong}
    for row in wrong:
        expected = (fusion_run.LABELS[told[row]], fusion_run.LABELS[truth[row]], "expert")
        assert doubted.get(names[row], expected) == expected
    assert f"for {len(doubted)} of 90 labelled clips a teacher and the models agree" in caplog.text
    clip = next(iter(doubted))
    assert f"as the models, against its label {doubted[clip][0]}" in text(explain(run.folder, clip))


def answers(run: Run) -> np.ndarray:
    with open(run.answer, newline="", encoding="utf-8") as file:
        rows = sorted((row["name"], row["discrete"]) for row in csv.DictReader(file))
    return np.array([fusion_run.LABELS.index(label) for _, label in rows])


@pytest.mark.slow
def test_a_teacher_that_is_not_there_or_of_other_labels_or_clips_is_refused_in_a_line(made, tmp_path):
    config, truth, run = made
    with pytest.raises(UserError, match="there are no answers of expert; mer-dist import-answers"):
        fuse(taught(tmp_path))
    said = teacher_of(truth, 0.9).probability
    teachers.write(run, "expert", ["a", "b", "c"], fusion_run.names(len(truth)), said)
    with pytest.raises(UserError, match="its labels are a, b, c"):
        fuse(taught(tmp_path))
    teachers.write(run, "expert", fusion_run.LABELS, [f"x{row}" for row in range(len(truth))], said)
    with pytest.raises(UserError, match="covers none of the 210 clips"):
        fuse(taught(tmp_path))
    run.teacher("expert").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"teachers/expert\.parquet.*import it again"):
        fuse(taught(tmp_path))
    with pytest.raises(UserError, match="names one twice"):
        fusion_run.configure(tmp_path, overrides=("vote.teachers=[a,a]",))


@pytest.mark.slow
def test_self_training_takes_what_models_and_teacher_agree_on(made, tmp_path, caplog):
    _, truth, run = made
    caplog.set_level("INFO")
    said = teacher_of(truth, 0.9).probability
    teachers.write(run, "expert", fusion_run.LABELS, fusion_run.names(len(truth)), said)

    def right(*options: str) -> float:
        """The part of the selected pseudo-labels that is right."""
        overrides = ("fuse.sets=[voice]", *options)
        fuse(fusion_run.configure(tmp_path, epochs=6, rounds=1, overrides=overrides))
        rows = [row for row in pq.read_table(run.round(1).pseudo_label_log).to_pylist() if row["selected"]]
        assert len(rows) > 3 * 30
        row_of = {name: row for row, name in enumerate(fusion_run.names(len(truth)))}
        return np.mean([fusion_run.LABELS[truth[row_of[row["name"]]]] == row["pseudo_label"] for row in rows])

    by_quota = right()
    before = (run.round(0).folder / "complete.json").stat().st_mtime_ns
    agreed = right("self_train.rule=consensus", "self_train.teachers=[expert]")
    assert agreed > by_quota + 0.05
    assert (run.round(0).folder / "complete.json").stat().st_mtime_ns == before
    rows = pq.read_table(run.round(1).pseudo_label_log).to_pylist()
    reasons = {row["reason"] for row in rows if not row["selected"]}
    assert "models and teachers disagree" in reasons and any(row["selected"] for row in rows)
    assert "expert" in text(explain(run.folder, "clip_0100")) and verify(run.folder) == []
    # Other answers make this round again.
    teachers.write(run, "expert", fusion_run.LABELS, fusion_run.names(len(truth)), said[::-1].copy())
    assert any("answers of self_train.teachers" in line for line in verify(run.folder))
    # A teacher that covers no labelled clip has no say: the clips are those of quota.
    hidden = said.copy()
    hidden[:90] = np.nan
    teachers.write(run, "expert", fusion_run.LABELS, fusion_run.names(len(truth)), hidden)
    assert right("self_train.rule=consensus", "self_train.teachers=[expert]") == by_quota


def test_consensus_needs_a_teacher_and_a_teacher_needs_consensus(tmp_path):
    for options in (("self_train.rule=consensus",), ("self_train.teachers=[one]",)):
        with pytest.raises(UserError, match="self_train.teachers belongs to self_train.rule: consensus"):
            fusion_run.configure(tmp_path, overrides=options)
    with pytest.raises(UserError, match="self_train.teachers names one twice"):
        fusion_run.configure(tmp_path, overrides=("self_train.rule=consensus", "self_train.teachers=[a,a]"))
