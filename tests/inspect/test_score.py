"""The result table, and that the truth is read nowhere else."""

from __future__ import annotations

import ast

import fusion_run
import numpy as np
import pytest
from conftest import ROOT

from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.inspect.score import score, table
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

STEPS = (
    ("linear_probes/clip", "video alone (clip, frozen)", 0.5),
    ("linear_probes/clip@tuned", "video alone (clip, fine-tuned)", 0.6),
    ("linear_probes/voice", "audio alone (voice, frozen)", 0.55),
    ("rounds/00/predictions", "AGT", 0.7),
    ("rounds/01/predictions", "AGT + self-training round 1", 0.65),
    ("vote/predictions", "prior-aware vote", 0.9),
)


@pytest.fixture
def scored(tmp_path):
    """A run whose every step answers a known part of the clips right."""
    config, truth = fusion_run.make(tmp_path, labeled=90, unlabeled=100)
    run, labeled = Run(config.run.folder), np.arange(190) < 90
    for path, title, right in STEPS:
        answer = np.where(np.arange(190) % 100 < 100 * right, truth, (truth + 1) % 3)
        told = Predictions(
            title=title,
            labels=fusion_run.LABELS,
            names=fusion_run.names(190),
            labeled=labeled,
            fold=np.where(labeled, 0, -1),
            probability=np.eye(3)[answer],
            answer=answer,
        )
        predictions.write(run.folder / f"{path}.parquet", told)
    rows = "".join(
        f"{name},{fusion_run.LABELS[label]}\n"
        for name, label in list(zip(fusion_run.names(190), truth, strict=True))[90:]
    )
    files.write_text(tmp_path / "truth.csv", "name,discrete\n" + rows)
    return run, tmp_path / "truth.csv", truth


@pytest.mark.slow
def test_every_step_is_scored_on_what_the_models_never_saw(scored):
    run, path, truth = scored
    rows = score(run.folder, path)
    assert [row["title"] for row in rows] == [title for _, title, _ in STEPS]
    for row, (file, _, _) in zip(rows, STEPS, strict=True):
        told = predictions.read(run.folder / f"{file}.parquet")
        assert row["oof_waf"] == metrics.waf(truth[:90], told.answer[:90])
        assert row["waf"] == metrics.waf(truth[90:], told.answer[90:])
        assert row["interval"][0] <= row["waf"] <= row["interval"][1]
        assert row["confusion"] == metrics.confusion(truth[90:], told.answer[90:], 3).tolist()
        assert row["unanswered_names"] == []
    assert files.read_json(run.scores) == rows


@pytest.mark.slow
def test_a_step_that_does_not_help_is_marked(scored):
    run, path, _ = scored
    rows = score(run.folder, path)
    assert [row["helped"] for row in rows] == [None, True, None, True, False, True]
    shown = table(rows).splitlines()
    assert [line.endswith("no gain") for line in shown[2:]] == [False] * 4 + [True, False]
    assert f"{100 * rows[3]['waf']:.2f}" in shown[5] and len({line.find("(") for line in shown[5:]}) > 0


@pytest.mark.slow
def test_without_a_truth_file_only_out_of_fold_figures_are_given(scored):
    run, _, _ = scored
    rows = score(run.folder)
    assert all("waf" not in row and "oof_waf" in row and "confusion" not in row for row in rows)
    assert table(rows).count(" -") == len(rows)


@pytest.mark.slow
def test_a_truth_file_that_does_not_fit_is_refused(scored, tmp_path):
    run, _, _ = scored
    other = tmp_path / "other.csv"
    other.write_text("name,discrete\nsomeone,happy\n")
    with pytest.raises(UserError, match="none of the unlabelled clips"):
        score(run.folder, other)
    other.write_text("name,discrete\nclip_0100,joyful\n")
    with pytest.raises(UserError, match="line 2: label 'joyful'"):
        score(run.folder, other)
    other.write_text("name,emotion\nclip_0100,happy\n")
    with pytest.raises(
        UserError, match="needs a column label, or discrete, and not both; it has: 'name', 'emotion'"
    ):
        score(run.folder, other)
    with pytest.raises(UserError, match="no run there"):
        score(tmp_path / "nowhere")


@pytest.mark.slow
def test_labels_of_a_truth_file_in_other_capitals_are_understood(scored, tmp_path):
    run, path, _ = scored
    other = tmp_path / "other.csv"
    head, _, rows = path.read_text().partition("\n")
    other.write_text(f"{head}\n{rows.title().replace('Clip', 'clip')}")
    assert score(run.folder, other) == score(run.folder, path)


def test_a_column_of_answers_beside_the_truth_is_told_and_not_read(scored, tmp_path, caplog):
    run, path, _ = scored
    plain = score(run.folder, path)
    rows = path.read_text().splitlines()
    (tmp_path / "both.csv").write_text(
        "\n".join([rows[0] + ",prediction,set", *(f"{row},sad,test" for row in rows[1:]), ""])
    )
    with caplog.at_level("INFO"):
        assert score(run.folder, tmp_path / "both.csv") == plain
    assert (
        "both.csv: column 'prediction' is not read: the answers of the run are scored, against 'discrete'"
        in caplog.text
    )
    assert "both.csv: columns that are not used: 'set'" in caplog.text


@pytest.mark.slow
def test_a_row_without_a_label_is_left_out_and_counted(scored, tmp_path, caplog):
    run, path, _ = scored
    head, *rows = path.read_text().splitlines()
    other = tmp_path / "other.csv"
    gaps = [f"{rows[0].partition(',')[0]},", f"{rows[1].partition(',')[0]},NA"]
    other.write_text("\n".join([head, *gaps, *rows[2:]]) + "\n")
    assert [row["clips"] for row in score(run.folder, other)] == [98] * len(STEPS)
    assert "2 clips have no label there and are not scored; for example clip_0090, clip_0091" in caplog.text


@pytest.mark.slow
def test_no_stage_but_score_has_a_word_for_the_truth_file():
    """A stage that wanted the truth would have to be told where it lies."""
    for path in (ROOT / "mer_dist" / "stages").glob("*.py"):
        names = {
            arg.arg
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
            for arg in node.args.args
        }
        texts = {
            node.value
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert path.stem == "score" or not {"truth_csv", "truth.csv"} & (names | texts), path


@pytest.mark.slow
def test_rows_of_a_truth_that_are_not_used_are_counted_and_named_with_those_that_contradict(
    scored, tmp_path, caplog
):
    run, path, truth = scored
    alike, other = (fusion_run.LABELS[(truth[row] + row) % 3] for row in (0, 1))
    more = tmp_path / "more.csv"
    more.write_text(f"{path.read_text()}clip_0000,{alike}\nclip_0001,{other}\n")
    assert score(run.folder, more) == score(run.folder, path)
    assert (
        f"{more}: 2 rows are of labelled clips and are not used: clip_0000, clip_0001; 1 of them have another "
        "label here, as clip_0001" in caplog.messages
    )


@pytest.mark.slow
def test_a_truth_with_two_columns_of_labels_is_refused(scored, tmp_path):
    run, _, _ = scored
    (tmp_path / "both.csv").write_text("name,discrete,label\nclip_0100,happy,angry\n")
    with pytest.raises(UserError, match="a column label, or discrete, and not both"):
        score(run.folder, tmp_path / "both.csv")


@pytest.mark.slow
def test_the_answer_is_no_truth(scored, tmp_path, caplog):
    run, truth, _ = scored
    answers = predictions.read(run.vote.predictions).answers()
    names = fusion_run.names(190)[90:]
    content = "name,discrete\n" + "".join(f"{name},{answers[name]}\n" for name in names)
    for path in (run.answer, run.vote.answer, tmp_path / "copy.csv"):
        files.write_text(path, content)
        with pytest.raises(UserError, match=f"{path.name}: this is the answer of .*, not the truth"):
            score(run.folder, path)
    files.write_text(tmp_path / "other.csv", content.replace("\n", "\r\n"))
    score(run.folder, tmp_path / "other.csv")
    assert "it has the run's answer for every clip" in caplog.text
    caplog.clear()
    score(run.folder, truth)
    assert "it has the run's answer" not in caplog.text


@pytest.mark.slow
def test_an_answer_that_was_changed_after_the_vote_is_told_and_the_vote_is_scored(scored, caplog):
    run, path, _ = scored
    files.write_text(run.vote.answer, "name,discrete\nclip_0090,happy\nclip_0091,angry\n")
    files.write_text(run.answer, "\ufeffname,discrete\r\nclip_0090,happy\r\nclip_0091,angry\r\n")
    rows = score(run.folder, path)
    assert "answer.csv is not what" not in caplog.text
    files.write_text(run.answer, "name,discrete\nclip_0090,angry\nclip_0099,angry\n")
    assert score(run.folder, path) == rows
    assert (
        f"{run.answer} differs from the vote's answer, which is scored: 1 rows have another label (clip_0090 "
        "angry and not happy); 1 rows are missing (clip_0091); 1 rows were added (clip_0099)"
        in caplog.messages
    )
