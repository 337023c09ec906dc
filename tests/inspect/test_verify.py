"""verify finds every way in which a run does not add up, and nothing where it does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fusion_run
import numpy as np
import pyarrow.parquet as pq
import pytest
from media_files import write_corpus

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.section import with_values
from mer_dist.config.sections import (
    CorpusConfig,
    ExtractConfig,
    ExtractorConfig,
    FinetuneConfig,
    FoldConfig,
    RunConfig,
    ShardConfig,
)
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import EMOTIONS
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run, ShardFolder

pytestmark = pytest.mark.slow


def feature_set(names, modality="audio", missing=()) -> FeatureSet:
    rows = np.arange(len(names) * 4, dtype=np.float32).reshape(len(names), 4)
    return FeatureSet(
        modality=modality,
        names=list(names),
        utterance=rows,
        frame=np.repeat(rows, 2, 0),
        offsets=np.arange(len(names) + 1) * 2,
        missing={name: "too short" for name in missing},
    )


def write_features(run: Run, set_name: str, *parts: FeatureSet) -> None:
    for number, part in enumerate(parts):
        store.write_shard(run.features(set_name) / f"{number:05d}.safetensors", part)
    own = FeatureSetId.parse(set_name)
    store.describe(
        run.features(own),
        modality=parts[0].modality,
        variant=own.variant or "frozen",
        held_out_fold=own.held_out_fold,
    )


def write_predictions(path, folds, unlabeled, names=None) -> None:
    names = list(folds) + unlabeled if names is None else names
    labeled = np.array([name in folds for name in names])
    predictions.write(
        path,
        Predictions(
            title="t",
            labels=list(EMOTIONS),
            names=names,
            labeled=labeled,
            fold=np.array([folds.get(name, -1) for name in names]),
            probability=np.full((len(names), 6), 1 / 6),
            answer=np.zeros(len(names), int),
        ),
    )


FOLDS = {"a000": 0, "a002": 1, "a003": 0, "a004": 1}
STORED = ["u000", "u001"]
#: Nothing of u002 can be used; it is answered all the same.
UNLABELED = [*STORED, "u002"]
NAMES = [*FOLDS, *STORED]
ANSWER = "name,discrete\nu000,happy\nu001,sad\nu002,happy\n"


def write_adapters(run: Run, config: Config) -> None:
    """The copies of the extractor ``text`` as finetune leaves them, with weights of equal size."""
    for adapter in adapters.planned(config, FOLDS):
        files.write_text(adapter.folder / "weights", f"learned {adapter.variant:>6}")
        files.write_marker(
            adapter.folder,
            adapter.fingerprint,
            held_out_fold=adapter.held_out_fold,
            content=files.contents([adapter.folder / "weights"]),
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every stage; one clip is lost, one lacks its video, of an unlabelled one nothing is left."""
    base = tmp_path_factory.mktemp("verify")
    corpus = write_corpus(base / "corpus", labeled=5, unlabeled=2)
    (corpus / "video-labeled" / "a000.mp4").write_bytes(b"")
    (corpus / "video-unlabeled-with-test2noise" / "u002.mp4").touch()
    with open(corpus / "label-disdim.csv") as file:
        labels = file.read().replace("a001,angry", "a001,bored")
    (corpus / "label-disdim.csv").write_text(labels)
    run = Run(base / "run")
    config = Config(
        run=RunConfig(folder=str(run.folder)),
        corpus=CorpusConfig(path=str(corpus)),
        shard=ShardConfig(clips=3, frames=2, image_size=16, faces="none", workers=1),
        folds=FoldConfig(count=2),
        extract=ExtractConfig(frozen=False),
    )
    # So few clips make no folds for fine-tuning; shard would refuse, so its work comes first.
    shard(config)
    extractors = {
        "hubert": ExtractorConfig(family="hubert", path=str(base / "hubert")),
        "text": ExtractorConfig(family="baichuan", path=str(base / "text"), finetune=FinetuneConfig()),
    }
    config = with_values(config, extractors=extractors)
    configuration.save(config, run.config)
    files.write_json(run.folds, {"fingerprint": "x", "folds": FOLDS})
    heard = [name for name in NAMES if name != "a000"]
    write_features(run, "hubert", feature_set(heard[:3]), feature_set(heard[3:], missing=["a000"]))
    write_features(run, "text@fold-0", feature_set(["a000", "a003", "u000"], "text"))
    write_features(run, "text@fold-1", feature_set(["a002", "a004", "u000"], "text"))
    write_features(run, "text@all", feature_set(STORED, "text"))
    write_adapters(run, config)
    for path in (run.linear_probes.predictions("hubert"), run.round(0).predictions, run.vote.predictions):
        write_predictions(path, FOLDS, UNLABELED)
    files.write_text(run.answer, ANSWER)
    return run.folder


@pytest.fixture
def run(whole, tmp_path):
    return Run(shutil.copytree(whole, tmp_path / "run"))


def test_a_run_that_adds_up_has_no_finding(run):
    assert verify(run.folder) == []


def test_a_run_of_shards_only_adds_up_too(run, caplog):
    caplog.set_level("INFO", "mer_dist")
    for name in ("adapters", "features", "linear_probes", "rounds", "vote"):
        shutil.rmtree(run.folder / name)
    run.answer.unlink()
    run.folds.unlink()
    assert verify(run.folder) == []
    assert "answer: there is none yet; run fuse" in caplog.text


def test_shards_that_were_cut_with_other_settings_are_found(run):
    config = configuration.of_run(run)
    config = with_values(config, **{"shard.frames": config.shard.frames + 1})
    configuration.save(config, run.config)
    finding(run, "cut with other settings", "run shard")


def test_copies_that_a_program_for_synchronising_made_are_told_and_change_nothing(run, caplog):
    shard = next(run.features_folder.glob("*/0*.safetensors"))
    shutil.copy(shard, shard.with_name(f"{shard.stem} 2{shard.suffix}"))
    shutil.copytree(run.round(0).folder, run.rounds_folder / "00 2")
    tar = next(run.shards.glob("0*.tar"))
    shutil.copy(tar, tar.with_name(f"{tar.stem} (1).tar"))
    assert verify(run.folder) == []
    assert "3 files or folders in the run folder do not belong to the run" in caplog.text
    assert "rounds/00 2" in caplog.text


def finding(run, *words):
    findings = verify(run.folder)
    assert any(all(word in line for word in words) for line in findings), findings
    return findings


def test_a_clip_that_was_dropped_from_the_index_is_found(run):
    path = ShardFolder(run.shards).index
    shard_index.write_rows(path, [row for row in shard_index.read(run.shards) if row.name != "a002"])
    finding(run, "of the corpus are neither in the shards nor in quarantine", "a002")


def test_a_lost_clip_that_is_not_in_quarantine_is_found(run):
    quarantine.replace(run.quarantine, "shard", [])
    finding(run, "could not be listed and are not in quarantine", "a001")
    finding(run, "lack their video without a reason", "a000")
    finding(run, "lack their audio without a reason", "a000")


def test_a_quarantine_row_without_a_reason_is_found(run):
    rows = [replace(row, reason="") for row in quarantine.read(run.quarantine)]
    quarantine.replace(run.quarantine, "shard", rows)
    finding(run, "in quarantine without a reason", "a000", "a001")


@pytest.mark.parametrize(
    ("field", "value"), [("label", "surprise"), ("transcript", "other"), ("split", "unlabeled")]
)
def test_an_index_that_says_other_than_corpus_and_tar_is_found(run, field, value):
    rows = list(shard_index.read(run.shards))
    rows[1] = replace(rows[1], **{field: value})
    shard_index.write_rows(ShardFolder(run.shards).index, rows)
    finding(run, f"another {field} in the corpus", rows[1].name)
    elsewhere = "in the tar" if field == "transcript" else "another label or split in the index than beside"
    finding(run, elsewhere, rows[1].name)


def test_one_flipped_bit_in_a_tar_is_found_and_the_clip_named(run):
    row = shard_index.read(run.shards)[2]
    offset, size = row.members["flac"]
    tar = ShardFolder(run.shards).tar(row.shard)
    content = bytearray(tar.read_bytes())
    content[offset + size // 2] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    finding(run, "differ from their checksum", row.name)


def test_a_short_or_missing_tar_and_an_unfinished_stage_are_found(run):
    tar = ShardFolder(run.shards).tar(0)
    tar.write_bytes(tar.read_bytes()[:1000])
    ShardFolder(run.shards).tar(1).unlink()
    (run.shards / files.MARKER).unlink()
    findings = finding(run, "00000.tar", "ends too early")
    assert any("00001.tar" in line and "cannot be read" in line for line in findings)
    assert any("shards are not complete" in line for line in findings)


def test_without_shards_the_finding_is_what_to_do(run):
    shutil.rmtree(run.shards)
    finding(run, "run shard first")


@pytest.mark.parametrize(
    ("set_name", "names", "gone"),
    [
        ("hubert", NAMES[1:3], "a004, u000, u001"),
        ("text@fold-0", ["a000"], "a003"),
        ("text@all", ["u001"], "u000"),
    ],
)
def test_a_clip_without_row_and_without_reason_in_a_feature_set_is_found(run, set_name, names, gone):
    shutil.rmtree(run.features(set_name))
    missing = ["a000"] if set_name == "hubert" else []
    modality = "audio" if set_name == "hubert" else "text"
    write_features(run, set_name, feature_set(names, modality, missing))
    assert len(finding(run, f"features {set_name}: have neither a row nor a reason", gone)) == 1


def test_faults_inside_feature_files_are_found(run):
    shutil.rmtree(run.features("text@fold-1"))
    part = feature_set(["a002", "a004"], "text")
    part.utterance[1, 1] = np.nan
    write_features(run, "text@fold-1", part)
    finding(run, "text@fold-1", "not finite")
    part = feature_set(["a002", "a004"], "text")
    part.offsets = np.array([0, 1, 2])
    write_features(run, "text@fold-1", part)
    finding(run, "text@fold-1", "offsets do not match")
    path = run.features("text@fold-1") / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    finding(run, "text@fold-1", "not readable")
    write_features(run, "text@fold-1", feature_set(["a002", "a004", "stranger"], "text"))
    finding(run, "text@fold-1", "not in the shards", "stranger")
    write_features(run, "text@fold-1", feature_set(["a002", "a004"], "text", missing=["a004"]))
    finding(run, "text@fold-1", "listed as missing", "a004")
    (run.features("text@fold-1") / "set.json").unlink()
    finding(run, "text@fold-1", "no feature set")


def test_a_row_for_a_modality_that_the_clip_lacks_is_found(run):
    shutil.rmtree(run.features("hubert"))
    write_features(run, "hubert", feature_set(NAMES))
    finding(run, "hubert: have a row although they lack the audio", "a000")


def test_an_imported_set_is_only_read(run):
    write_features(run, "other", feature_set(["elsewhere"]))
    description = json.loads((run.features("other") / "set.json").read_text())
    files.write_json(run.features("other") / "set.json", {**description, "imported": True})
    files.write_marker(run.features("other"), "x", shards=[0])
    assert verify(run.folder) == []
    (run.features("other") / "00000.safetensors").write_bytes(b"nothing")
    finding(run, "other", "not readable")
    (run.features("other") / "00000.safetensors").unlink()
    finding(run, "other", "features are missing")


@pytest.mark.parametrize("place", ["linear_probes/hubert", "rounds/00/predictions", "vote/predictions"])
def test_predictions_without_a_clip_or_for_another_fold_are_found(run, place):
    path = run.folder / f"{place}.parquet"
    write_predictions(path, FOLDS, UNLABELED[1:])
    finding(run, place, "have no row", "u000")
    write_predictions(path, FOLDS, [*UNLABELED, "stranger"])
    finding(run, place, "not among the fused clips", "stranger")
    write_predictions(path, FOLDS, UNLABELED, names=[*NAMES, "a002"])
    finding(run, place, "several rows", "a002")
    write_predictions(path, {**FOLDS, "a002": 0}, UNLABELED)
    finding(run, place, "another fold than their own", "a002")
    write_predictions(path, {name: FOLDS[name] for name in list(FOLDS)[1:]}, ["a000", *UNLABELED])
    finding(run, place, "wrong split", "a000")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["p_happy"]), path)
    finding(run, place, "not readable")


def test_folds_that_do_not_fit_the_labels_are_found(run):
    files.write_json(run.folds, {"fingerprint": "x", "folds": {**FOLDS, "gone": 1}})
    finding(run, "labelled without a fold, or the reverse", "gone")
    run.folds.unlink()
    finding(run, "folds.json", "no such file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,discrete\nu000,happy\nu002,sad\n", ("no answer", "u001")),
        ("name,discrete\nu000,happy\nu001,sad\n", ("1 clips of the unlabelled have no answer", "u002")),
        ("name,discrete\nu000,happy\nu001,sad\na000,sad\n", ("not among the unlabelled", "a000")),
        ("name,discrete\nu000,happy\nu001,sad\nu001,happy\n", ("'u001' occurs twice",)),
        ("name,discrete\nu000,happy\nu001,bored\n", ("outside corpus.labels", "u001")),
        ("name,discrete\nu000,happy\nu001\n", ("answer.csv line 3: 1 fields",)),
        (None, ("answer.csv", "no such file")),
    ],
)
def test_an_answer_that_is_not_every_unlabelled_clip_once_is_found(run, text, words):
    run.answer.unlink()
    if text is not None:
        run.answer.write_text(text)
    finding(run, *words)


def test_an_answer_for_wanted_names_is_checked_against_these(run, tmp_path):
    (tmp_path / "names.csv").write_text("name\nu001\n")
    config = configuration.of_run(run)
    config = with_values(config, **{"vote.names": f"{tmp_path}/names.csv"})
    configuration.save(config, run.config)
    finding(run, "not among", "u000")
    run.answer.write_text("name,discrete\nu001,sad\n")
    assert verify(run.folder) == []


def test_a_run_on_imported_features_is_checked_against_its_label_file(tmp_path):
    run = Run(tmp_path / "run")
    (tmp_path / "labels.csv").write_text("name,label,split\na,happy,labeled\nb,sad,\nc,sad,unlabeled\n")
    config = Config(run=RunConfig(folder=str(run.folder)), corpus=CorpusConfig(path="nowhere"))
    config = with_values(config, **{"fuse.labels": str(tmp_path / "labels.csv"), "fuse.sets": ["voice"]})
    config = with_values(config, **{"self_train.rounds": 0})
    fusion_run.write_set(run, "voice", "audio", ["a", "b", "c"], np.eye(3), imported=True)
    configuration.save(config, run.config)
    files.write_json(run.folds, {"fingerprint": "x", "folds": {"a": 0, "b": 1}})
    write_predictions(run.vote.predictions, {"a": 0, "b": 1}, ["c"])
    files.write_text(run.answer, "name,discrete\nc,happy\n")
    # There is a vote and nothing that it was taken over.
    assert {text.partition(":")[0] for text in verify(run.folder)} == {
        "linear_probes/voice",
        "rounds/00",
        "vote",
    }
    files.write_text(run.answer, "name,discrete\nb,happy\n")
    finding(run, "no answer", "c")
    shutil.rmtree(run.features("voice"))
    finding(run, "features voice: there are none; run import-features")


@pytest.mark.parametrize(
    "gone", [("hubert",), ("text@fold-1",), ("hubert", "text@all", "text@fold-0", "text@fold-1")]
)
def test_feature_sets_that_are_gone_are_found_although_there_is_an_answer(run, gone):
    for name in gone:
        shutil.rmtree(run.features(name))
    assert verify(run.folder) == [f"features {name}: there are none; run extract" for name in sorted(gone)]


def test_weights_that_change_places_are_found_however_they_did(run):
    first, second, aside = (run.adapter("text", part) for part in ("fold-0", "fold-1", "aside"))
    ours, theirs = ((folder / "weights").read_bytes() for folder in (first, second))
    assert len(ours) == len(theirs)
    (first / "weights").write_bytes(theirs)
    (second / "weights").write_bytes(ours)
    assert [line.partition(";")[0] for line in verify(run.folder)] == [
        f"{folder}: weights holds other bytes than were written" for folder in (first, second)
    ]
    (first / "weights").write_bytes(ours)
    (second / "weights").write_bytes(theirs)
    for here, there in ((first, aside), (second, first), (aside, second)):
        here.rename(there)
    assert [line.partition(";")[0] for line in verify(run.folder)] == [
        f"{first}: by its marker this is fold-1, not fold-0",
        f"{second}: by its marker this is fold-0, not fold-1",
    ]


def test_a_copy_that_is_gone_or_was_trained_on_something_else_is_found(run):
    config = configuration.of_run(run)
    config = with_values(config, **{"run.folder": str(run.folder)})
    shutil.rmtree(run.adapter("text", "fold-0"))
    gone = run.adapter("text", "fold-0")
    assert verify(run.folder) == [f"{gone}: this adapter is missing or incomplete; run finetune"]
    write_adapters(run, config)
    assert verify(run.folder) == []
    # Another model lies in its place since: known only where there is one at all.
    model = Path(config.extractors["text"].path)
    files.write_text(model / "config.json", "{}")
    try:
        assert len(finding(run, "trained with other settings, another model or other clips")) == 3
    finally:
        shutil.rmtree(model)
    shutil.rmtree(run.folder / "adapters")
    assert verify(run.folder) == [], "they may be deleted once the features are there"


def test_features_of_another_copy_are_found(run):
    path = FeatureFolder(run.features("text@fold-1")).description
    files.write_json(path, files.read_json(path) | {"variant": "fold-0", "held_out_fold": 0})
    finding(run, "text@fold-1", "this is 'fold-0'")


def test_an_answer_that_the_vote_did_not_give_is_found(run):
    files.write_text(run.vote.answer, ANSWER)
    assert verify(run.folder) == []
    files.write_text(run.answer, ANSWER.replace("sad", "happy"))
    finding(run, "answer.csv: differs from the vote's answer")


def test_the_answer_is_counted_against_the_corpus_and_not_against_what_was_stored(run, caplog):
    with caplog.at_level("INFO", logger="mer_dist"):
        assert verify(run.folder) == []
    assert "answer: 3 of 3 unlabelled clips" in caplog.text
    # As an earlier version left it: u002 in quarantine, in no prediction and in no answer.
    ShardFolder(run.shards).unstored.unlink()
    for path in predictions.all_of(run):
        write_predictions(path, FOLDS, STORED)
    files.write_text(run.answer, "name,discrete\nu000,happy\nu001,sad\n")
    caplog.clear()
    with caplog.at_level("INFO", logger="mer_dist"):
        assert verify(run.folder) == ["1 clips of the unlabelled have no answer; run shard and fuse: u002"]
    assert "answer: 2 of 3 unlabelled clips" in caplog.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        verify(tmp_path)


def test_a_relative_path_that_leads_nowhere_is_told_with_where_it_counts_from(tmp_path, monkeypatch):
    for name in ("there", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Path("all.csv").write_text("name,transcript,label\n" + "".join(f"c{n},x,happy\n" for n in range(4)))
    for kind, path in (("manifest", "all.csv"), ("mer2024", "corpus"), ("manifest", "/nowhere/all.csv")):
        run = Run(tmp_path / kind)
        config = Config(run=RunConfig(folder=str(run.folder)), corpus=CorpusConfig(path=path, format=kind))
        configuration.save(config, run.config)
        monkeypatch.chdir(tmp_path / "elsewhere")
        told = [line for line in verify(run.folder) if line.startswith(f"{path}: ")]
        where = f"as one in config.yaml, counts from the folder where the command is started, here {Path.cwd()}: start it"
        assert len(told) == 1 and (where in told[0]) == (path[0] != "/")
    config = Config(
        run=RunConfig(folder=str(run.folder)), corpus=CorpusConfig(path="all.csv", format="manifest")
    )
    configuration.save(config, run.config)
    monkeypatch.chdir(tmp_path / "there")
    assert not any("all.csv" in line for line in verify(run.folder))
