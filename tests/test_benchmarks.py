"""The benchmarks of speed and of the prior run to their end, at sizes that take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fusion_run
import numpy as np
import pytest

from mer_dist.stages.fuse import fuse
from mer_dist.storage import files

SMALL_FUSE = Path(__file__).parent / "small_fuse.py"
MODALITIES = ("audio", "video", "text")


def call_fuse(*words: str) -> list[str]:
    """The lines that the fusion benchmark prints."""
    done = subprocess.run(
        [sys.executable, SMALL_FUSE, *words], check=False, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
def test_the_fusion_benchmark_prints_a_figure_for_every_part(tmp_path):
    said = call_fuse("--out", str(tmp_path), "--few", "200", "--unlabeled", "300", "--rounds", "1")
    for row in (
        "the same until tensors are ready, standardised",
        "attention, 200 unlabelled",
        "attention, 300 unlabelled",
        "  times faster than one by one",
        "attention width 8, batch 16, float64: 5 at once and one by one",
        "  of the rate of torch.mm",
        "AGT step: matrix products",
        "AGT step: the rest",
        "extrapolated, width 8, batch 16",
        "peak memory of loading, 200",
        "peak memory of training AGT, 300",
    ):
        assert any(line.startswith(row) for line in said), row
    assert sum("aim 4:" in line for line in said) == sum("aim 11:" in line for line in said) == 2


@pytest.mark.slow
def test_the_fusion_benchmark_runs_the_whole_job_through_the_stage(tmp_path):
    said = call_fuse("--out", str(tmp_path), "--full", "--unlabeled", "100", "--width", "8", "--batch", "32")
    rows = [
        "5 folds, 1 seed, 1 rounds of 1 epochs, width 8, batches of 32 ",
        "  of which linear_probes ",
        "  of which rounds/00 ",
        "  of which rounds/01 ",
        "  of which vote ",
        "peak memory ",
    ]
    for row, line in zip(rows, said[-len(rows) :], strict=True):
        assert line.startswith(row)
    assert (tmp_path / "full" / "run" / "answer.csv").read_text("utf-8").count("\n") == 101


@pytest.mark.slow
@pytest.mark.usefixtures("benchmarks", "one_thread")
def test_the_benchmark_of_the_prior_prints_a_row_for_every_shift(tmp_path, monkeypatch, capsys):
    import prior_shift

    random, truth = np.random.default_rng(0), np.arange(240) % 2
    for modality in MODALITIES:
        values = random.normal(size=(240, 3)) + truth[:, None]
        rows = [",".join([*map(str, row), str(own)]) for row, own in zip(values, truth, strict=True)]
        files.write_text(tmp_path / f"{modality}_test.csv", "\n".join([*rows, ""]))
    rows = [f"video{row // 12}_{row},{own}\n" for row, own in enumerate(truth)]
    files.write_text(tmp_path / "names_test.csv", "name,label\n" + "".join(rows))
    few = {"LABELED": 120, "UNLABELED": 80, "RIDGES": (0.1,), "POSITIVE": {"30 %": 0.3}}
    few["SIX"] = {shift: prior_shift.SIX[shift] for shift in ("no shift", "reversed")}
    for name, value in few.items():
        monkeypatch.setattr(prior_shift, name, value)
    monkeypatch.setattr(sys, "argv", ["prior_shift", str(tmp_path), "--labeled", "100", "--seeds", "2"])
    prior_shift.main()
    said = capsys.readouterr().out.splitlines()
    for shift in ("as labelled", *prior_shift.POSITIVE, *prior_shift.SIX):
        row, told = (line for line in said if line.startswith(f"{shift:14} "))
        assert len(row.split()) > 15 and told.removeprefix(shift).count("%") == 2 and "nan" not in row + told


@pytest.mark.slow
@pytest.mark.usefixtures("benchmarks", "one_thread")
def test_the_benchmark_of_label_shift_prints_a_row_for_every_part(tmp_path, monkeypatch, capsys):
    import label_shift

    random, truth = np.random.default_rng(0), np.arange(360) % 3
    values = random.normal(size=(360, 5)) + 2 * np.eye(3, 5)[truth]
    # A zero vector is a missing transcript; test2 looks different.
    values[:3], values[240:] = 0, 0.05 * values[240:]
    part = np.repeat(["train", "test1", "test2"], 120)
    np.savez(tmp_path / "mer.npz", minilm=values, label=truth.astype(str), part=part)
    monkeypatch.setattr(sys, "argv", ["label_shift", "--mer", str(tmp_path / "mer.npz"), "--seeds", "2"])
    label_shift.main()
    head, one, two = capsys.readouterr().out.splitlines()
    assert "argmax" in head and "nan" not in one + two
    assert one.startswith("MER2023 text, test1") and one.split()[3] == "120"
    assert two.startswith("MER2023 text, test2") and two.endswith("two-sample test 2")
    assert "+0.00" in two and " 0 %" in two


@pytest.mark.slow
@pytest.mark.usefixtures("benchmarks", "one_thread")
def test_finished_runs_with_one_truth_share_a_row_and_answer_its_clips_alone(tmp_path, monkeypatch, capsys):
    import label_shift

    _, truth = fusion_run.make(tmp_path)
    small = ("fuse.seeds=1", "fuse.dropout=[0.2]", "fuse.epochs=1", "fuse.width=8", "self_train.rounds=0")
    config = fusion_run.configure(tmp_path, overrides=small)
    fuse(config)
    named = zip(fusion_run.names(150)[90:], truth[90:150], strict=True)
    rows = [f"{name},{fusion_run.LABELS[label]}\n" for name, label in named]
    files.write_text(tmp_path / "half.csv", "name,discrete\n" + "".join(rows))
    run = f"{config.run.folder}:{tmp_path}/half.csv"
    words = ["label_shift", "--run", run, run, "--seeds", "1", "--out", str(tmp_path / "again")]
    monkeypatch.setattr(sys, "argv", words)
    label_shift.main()
    _, row = capsys.readouterr().out.splitlines()
    assert row.startswith(f"{tmp_path.name}/half.csv") and row.endswith("floor 2") and row.split()[1] == "60"
    assert files.read_json(tmp_path / "again" / "vote" / "prior.json")["clips"] == 60


@pytest.mark.slow
@pytest.mark.usefixtures("benchmarks", "one_thread")
def test_rules_of_the_vote_are_compared_on_a_part_whose_truth_is_known():
    import vote_rules

    title, trial, others = next(vote_rules.generated(range(3)))
    case = vote_rules.judged(trial, others)
    ways = {case.argmax, case.decided, case.corrected, case.corrected_decided}
    assert all(0 < way <= 100 for way in ways)
    got = {rule: waf(case) for rule, waf in vote_rules.RULES.items()}
    assert set(got.values()) <= ways
    # Nothing differs in the first part, so the vote corrects nothing.
    assert title == "nothing differs" and got["as it is, DOUBT 1.0"] == case.argmax
    head, *rows = vote_rules.table({title: [case]})
    assert [row[:44].strip() for row in rows] == [*got] and f"{title} (1)" in head
    assert all(f"{waf - case.argmax:+.2f} (worst" in row for waf, row in zip(got.values(), rows, strict=True))
