"""The benchmarks of speed and of the prior run to their end, at sizes that take seconds."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace

import numpy as np
import pytest

from mer_dist import files

WIDTHS = {"audio": 8, "video": 6, "text": 10}

pytestmark = pytest.mark.usefixtures("benchmarks", "one_thread")


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a benchmark's command line; gives the lines that it printed."""

    def run(program, *words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [program.__name__, *words])
        program.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def fuse(monkeypatch):
    """The fusion benchmark with few labelled clips and small models."""
    import fuse
    import fuse_setting

    for module in (fuse, fuse_setting):
        monkeypatch.setattr(module, "LABELED", 60)
    monkeypatch.setattr(fuse_setting, "WIDTHS", WIDTHS)
    small = {"width": 8, "heads": 2, "batch": 16}
    for name in ("ATTENTION", "LARGER", "AGT"):
        monkeypatch.setattr(fuse, name, replace(getattr(fuse, name), **small))
    for name, value in {"SQUARE": 64, "SEEDS": 1, "EPOCHS": 1, "ROUNDS": 1}.items():
        monkeypatch.setattr(fuse, name, value)
    # A process that starts afresh would measure the memory of the whole size.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fuse.multiprocessing, "get_context", lambda _: fork)
    return fuse


def test_the_fusion_benchmark_prints_a_figure_for_every_part(fuse, call, tmp_path):
    said = call(fuse, "--out", str(tmp_path), "--few", "200", "--unlabeled", "300", "--rounds", "1")
    for row in ("the same until tensors are ready, standardised", "attention, 200 unlabelled",
                "attention, 300 unlabelled", "  times faster than one by one",
                "attention width 8, batch 16, float64: 5 at once and one by one",
                "  of the rate of torch.mm",
                "AGT step: matrix products", "AGT step: the rest", "extrapolated, width 8, batch 16",
                "peak memory of loading, 200", "peak memory of training AGT, 300"):
        assert any(line.startswith(row) for line in said), row
    assert sum("aim 4:" in line for line in said) == sum("aim 11:" in line for line in said) == 2


def test_the_fusion_benchmark_runs_the_whole_job_through_the_stage(fuse, call, tmp_path):
    said = call(fuse, "--out", str(tmp_path), "--full", "--unlabeled", "100", "--width", "8", "--batch", "32")
    assert said[-1].startswith("5 folds, 1 seed, 1 rounds of 1 epochs, width 8, batches of 32: ")
    assert (tmp_path / "full" / "run" / "answer.csv").read_text("utf-8").count("\n") == 101


def test_the_benchmark_of_the_prior_prints_a_row_for_every_shift(call, tmp_path, monkeypatch):
    import prior_shift

    random, truth = np.random.default_rng(0), np.arange(240) % 2
    for modality in WIDTHS:
        values = random.normal(size=(240, 3)) + truth[:, None]
        rows = [",".join([*map(str, row), str(own)]) for row, own in zip(values, truth, strict=True)]
        files.write_text(tmp_path / f"{modality}_test.csv", "\n".join([*rows, ""]))
    rows = [f"video{row // 12}_{row},{own}\n" for row, own in enumerate(truth)]
    files.write_text(tmp_path / "names_test.csv", "name,label\n" + "".join(rows))
    few = {"LABELED": 120, "UNLABELED": 80, "RIDGES": (0.1,), "POSITIVE": {"30 %": 0.3}}
    few["SIX"] = {shift: prior_shift.SIX[shift] for shift in ("no shift", "reversed")}
    for name, value in few.items():
        monkeypatch.setattr(prior_shift, name, value)
    said = call(prior_shift, str(tmp_path), "--labeled", "100", "--seeds", "2")
    for shift in ("as labelled", *prior_shift.POSITIVE, *prior_shift.SIX):
        row, told = (line for line in said if line.startswith(f"{shift:14} "))
        assert len(row.split()) > 15 and told.removeprefix(shift).count("%") == 2 and "nan" not in row + told
