"""Clips of which nothing can be used: answered with the most frequent label, counted, lost nowhere."""

from __future__ import annotations

import csv
from pathlib import Path

import fusion_run
import numpy as np
import pytest
import torch

from mer_dist.config import config as configuration
from mer_dist.core import metrics
from mer_dist.core.records import Problem
from mer_dist.features import join
from mer_dist.fusion import predictions
from mer_dist.inspect.explain import explain, text
from mer_dist.inspect.score import score, table
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.stages.fuse import fuse
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run, ShardFolder

LABELED, UNLABELED = 30, 20
#: Three transcripts are empty; one row, whose transcript has a comma without quotes, cannot be read.
SILENT = ["u_03", "u_07", "u_19"]
BROKEN = "u_20"
JOB = """
run: {{folder: {folder}/run}}
corpus: {{format: manifest, path: {folder}/clips.csv, labels: [neutral, angry, happy]}}
shard: {{workers: 1}}
folds: {{count: 3}}
fuse: {{sets: [line], width: 8, heads: 2, seeds: 1, epochs: 2, batch: 16, dropout: [0.2]}}
self_train: {{rounds: 1}}
"""


def label_of(row: int) -> str:
    """Every other clip is happy."""
    return "happy" if row % 2 else fusion_run.LABELS[row // 2 % 2]


def unlabeled_names() -> list[str]:
    return [f"u_{row:02d}" for row in range(UNLABELED)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A corpus of transcripts alone, taken to its answer; its truth names every unlabelled clip."""
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("silent")
    rows = [f"l_{row:02d},,,line {row},{label_of(row)},labeled" for row in range(LABELED)]
    rows += [f"{name},,,{'' if name in SILENT else 'a line'},,unlabeled" for name in unlabeled_names()]
    rows.append(f"{BROKEN},,,well, no,,unlabeled")
    rows.insert(0, "name,video,audio,transcript,label,split")
    files.write_text(folder / "clips.csv", "\n".join(rows) + "\n")
    files.write_text(folder / "job.yaml", JOB.format(folder=folder))
    config = configuration.load(folder / "job.yaml")
    shard(config)
    names = [row.name for row in shard_index.read(Run(config.run.folder).shards)]
    values = np.eye(4)[[("neutral", "angry", "happy").index(label_of(int(name[2:]))) for name in names]]
    values += np.random.default_rng(0).normal(0, 0.5, values.shape)
    fusion_run.write_set(Run(config.run.folder), "line", "text", names, values, imported=True)
    fuse(config)
    truth = [f"{name},{label_of(row)}" for row, name in enumerate(unlabeled_names())]
    files.write_text(folder / "truth.csv", "\n".join(["name,discrete", "l_00,neutral", *truth]) + "\n")
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def said(caplog):
    with caplog.at_level("INFO", logger="mer_dist"):
        yield


def answers(folder: Path) -> dict[str, str]:
    with open(Run(folder / "run").answer, newline="", encoding="utf-8") as file:
        return {row["name"]: row["discrete"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_every_clip_that_the_corpus_names_as_unlabelled_is_answered_in_the_order_of_names(made):
    stored = {row.name for row in shard_index.read(Run(made / "run").shards)}
    assert stored.isdisjoint(SILENT) and shard_index.unstored(Run(made / "run").shards) == dict.fromkeys(
        SILENT, "unlabeled"
    )
    assert list(answers(made)) == unlabeled_names()
    assert {answers(made)[name] for name in SILENT} == {"happy"}
    for path in predictions.all_of(Run(made / "run")):
        told = predictions.read(path)
        assert np.isfinite(told.probability).all() and set(SILENT) <= set(told.names)


@pytest.mark.slow
def test_log_verify_and_page_tell_the_same_counts(made, caplog):
    from mer_dist.report.collect import collect

    fuse(configuration.load(made / "job.yaml"))
    assert verify(made / "run") == []
    assert "fuse: 30 labelled and 20 unlabelled clips" in caplog.text
    assert caplog.text.count("answer: 20 of 20 unlabelled clips") == 2
    assert "the vote's probability of every label, in" in caplog.text
    assert str(Run(made / "run").vote.predictions) in caplog.text
    (line,) = [line for line in caplog.messages if "answer: 3 of these clips have no usable modality" in line]
    assert all(name in line for name in SILENT)
    (line,) = [line for line in caplog.messages if "answer: 1 entries of the corpus are left out" in line]
    assert f"{BROKEN} (clips.csv line 52: 7 fields" in line
    facts = collect(made / "run")
    assert (facts.answers, facts.corpus.clips("labeled"), facts.corpus.clips("unlabeled")) == (20, 30, 20)
    assert facts.corpus.unstored == {"unlabeled": 3}


@pytest.mark.slow
def test_score_counts_every_clip_of_the_truth_and_what_has_no_answer_as_wrong(made, tmp_path, caplog):
    truth = {name: label_of(row) for row, name in enumerate(unlabeled_names())}
    right = np.array([answers(made)[name] == label for name, label in truth.items()])
    rows = score(made / "run", made / "truth.csv")
    assert all((row["clips"], row["unanswered"], row["oof_clips"]) == (20, 0, 30) for row in rows)
    assert "out of fold n = 30; unlabelled truth n = 20" in table(rows)
    # A clip that the run knows nothing of counts as any scorer counts it.
    files.write_text(
        tmp_path / "truth.csv",
        (made / "truth.csv").read_text() + "".join(f"gone_{row},happy\n" for row in range(5)),
    )
    rows = score(made / "run", tmp_path / "truth.csv")
    labels = fusion_run.LABELS
    true = np.array([labels.index(label) for label in [*truth.values(), *["happy"] * 5]])
    told = np.array([*(labels.index(answers(made)[name]) for name in truth), *[len(labels)] * 5])
    assert (rows[-1]["clips"], rows[-1]["unanswered"]) == (25, 5)
    assert rows[-1]["unanswered_names"] == [f"gone_{row}" for row in range(5)]
    assert rows[-1]["confusion"] == metrics.confusion(true[:20], told[:20], len(labels)).tolist()
    assert rows[-1]["waf"] == pytest.approx(metrics.waf(true, told)) and right.any()
    assert "5 of 25 clips with a known truth have no answer and count as wrong" in caplog.text
    assert "5 without an answer" in table(rows) and "n = 25" in table(rows)


@pytest.mark.slow
def test_its_way_is_told_without_weights_that_do_not_concern_it(made):
    told = explain(made / "run", SILENT[0])
    assert told["split"] == "unlabeled" and told["answer"] == "happy"
    shown = text(told)
    assert "lost: clip" in shown and "it gets the label shares" in shown
    assert "weight of each member" not in shown and shown.endswith("answer: happy")
    left_out = explain(made / "run", BROKEN)
    assert left_out["vote"] == {} and text(left_out).endswith("answer: none, since it was left out")
    assert "weight" not in text(left_out) and "prior" not in text(left_out)
    labelled = text(explain(made / "run", "l_00"))
    assert "weight of each member for fold" in labelled and "prior correction" not in labelled


@pytest.mark.slow
def test_wanted_names_may_be_of_clips_without_any_part(made, tmp_path, caplog):
    files.write_text(tmp_path / "names.csv", f"name\n{SILENT[1]}\n{BROKEN}\nu_00\n")
    config = configuration.load(made / "job.yaml", [f"vote.names={tmp_path}/names.csv", "vote.prior=none"])
    # The rounds are those of the run: only the vote is taken again, and afterwards as it was.
    fuse(config)
    assert list(answers(made)) == [SILENT[1], BROKEN, "u_00"] and answers(made)[BROKEN] == "happy"
    assert "answer: 18 unlabelled clips are not in vote.names" in caplog.text
    shown = text(explain(made / "run", BROKEN))
    assert shown.endswith("answer: happy, the most frequent label, since vote.names asks for it")
    assert score(made / "run", made / "truth.csv")[-1]["unanswered"] == 0
    fuse(configuration.load(made / "job.yaml"))


@pytest.mark.slow
def test_shards_of_an_earlier_version_are_kept_and_their_lost_clips_are_noted_and_answered(
    made, tmp_path, caplog
):
    config = configuration.load(made / "job.yaml", [f"run.folder={tmp_path}/run"])
    run = Run(config.run.folder)
    shard(config)
    ShardFolder(run.shards).unstored.unlink()
    clips, _ = join.read_clips(config, run)
    assert set(SILENT).isdisjoint(clips.names) and "an earlier version made these shards" in caplog.text
    tar = ShardFolder(run.shards).tar(0)
    before = tar.stat().st_mtime_ns
    shard(config)
    assert set(SILENT) <= set(join.read_clips(config, run)[0].names) and tar.stat().st_mtime_ns == before


@pytest.mark.slow
def test_rows_of_a_label_file_that_cannot_be_used_are_named_again_at_the_end(tmp_path, caplog):
    config, _ = fusion_run.make(tmp_path, labeled=30, unlabeled=10, epochs=1, rounds=0)
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text() + "no_features,\n", encoding="utf-8")
    labels.write_text(labels.read_text() + "odd,happy,extra\n", encoding="utf-8")
    quarantine.replace(
        Run(config.run.folder).quarantine,
        "shard",
        [Problem(stage="shard", name="part", lost="audio", reason="no sound")],
    )
    fuse(config)
    last = [record.getMessage() for record in caplog.records][-3:]
    assert last[0].startswith("answer: 11 of 11 unlabelled clips")
    assert last[1].startswith("answer: 1 of these clips have no usable modality") and "no_features" in last[1]
    assert last[2].startswith("answer: 1 entries of the corpus")
    assert "odd (labels.csv line 43: 3 fields" in last[2]
