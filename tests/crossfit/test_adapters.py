"""Which copies a fine-tuned extractor has: one per fold and ``all``, or with cross_fit off ``all`` alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_job
import small_models

from mer_dist.config.config import Config, load
from mer_dist.core.errors import UserError
from mer_dist.crossfit import adapters
from mer_dist.features import join, store
from mer_dist.inspect.verify import verify
from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
from mer_dist.models.tokenizer import BaichuanTokenizer
from mer_dist.shards import shard_index
from mer_dist.stages.extract import extract
from mer_dist.stages.fuse import fuse
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run, ShardFolder

LABELED, UNLABELED = 12, 5
OFF = "extractors.text.finetune.cross_fit=false"
TEXT = """
run: {{folder: {folder}/run}}
corpus: {{format: manifest, path: {folder}/corpus.csv, labels: [happy, sad]}}
shard: {{workers: 1, faces: none}}
folds: {{count: 3}}
extractors:
  text:
    family: baichuan
    path: {folder}/model
    finetune: {{method: full, epochs: 1, batch: 8, micro_batch: 8, precision: fp32}}
extract: {{frozen: false}}
trackers: []
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A corpus of transcripts alone in shards, a very small Baichuan, and its ``job.yaml``."""
    folder = tmp_path_factory.mktemp("copies")
    lines = [f"我说第{row}句话" for row in range(LABELED + UNLABELED)]
    rows = [
        f"clip{row:02d},,,{line},{['happy', 'sad'][row % 2] if row < LABELED else ''},"
        for row, line in enumerate(lines)
    ]
    files.write_text(
        folder / "corpus.csv", "\n".join(["name,video,audio,transcript,label,split", *rows]) + "\n"
    )
    tokenizer = BaichuanTokenizer.train(lines * 20, 285)
    tokenizer.save_pretrained(folder / "model")
    sizes = BaichuanConfig(vocab_size=len(tokenizer), **small_models.SIZES)
    BaichuanForCausalLM(sizes).save_pretrained(folder / "model")
    path = folder / "job.yaml"
    path.write_text(TEXT.format(folder=folder), encoding="utf-8")
    shard(load(path))
    return path


def planned(config: Config) -> dict[str, adapters.Adapter]:
    return {adapter.variant: adapter for adapter in adapters.planned(config)}


@pytest.mark.slow
def test_without_cross_fit_one_copy_sees_every_labelled_clip_and_no_folds_are_made(job):
    config = load(job, [OFF, "folds.count=11"])
    made = planned(config)
    assert list(made) == ["all"] and made["all"].held_out_fold is None
    assert [row.name for row in made["all"].rows] == [f"clip{row:02d}" for row in range(LABELED)]
    assert not Run(config.run.folder).folds.exists()


@pytest.mark.slow
def test_cross_fit_does_not_decide_the_weights_of_a_copy(job):
    crossed, alone = planned(load(job)), planned(load(job, [OFF]))
    assert list(crossed) == ["fold-0", "fold-1", "fold-2", "all"]
    assert alone["all"].fingerprint == crossed["all"].fingerprint
    fed = ("batch_budget=64", "micro_batch=2", "deterministic=true")
    other = planned(load(job, [OFF, *(f"extractors.text.finetune.{told}" for told in fed)]))
    assert other["all"].fingerprint == alone["all"].fingerprint
    other = planned(load(job, [OFF, "extractors.text.finetune.epochs=2"]))
    assert other["all"].fingerprint != alone["all"].fingerprint


@pytest.mark.slow
def test_a_label_that_the_configuration_does_not_name_is_refused_without_folds_too(job):
    with pytest.raises(UserError, match="labelled sad, which corpus.labels does not name"):
        adapters.planned(load(job, [OFF, "corpus.labels=[happy, angry]"]))


@pytest.mark.processes
def test_features_are_those_of_unlabelled_clips_and_fuse_refuses_them(job):
    config = load(job, [OFF])
    run = Run(config.run.folder)
    done = small_job.mer_dist("finetune", job, OFF)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in run.adapter("text", "all").parent.iterdir()] == ["all"]
    extract(config)
    assert [path.name for path in (run.folder / "features").iterdir()] == ["text@all"]
    names = [f"clip{row:02d}" for row in range(LABELED, LABELED + UNLABELED)]
    assert sorted(store.load(run.features("text@all")).names) == names
    assert verify(run.folder) == []
    for chosen in ("[]", "['text@tuned']", "['text@all']"):
        with pytest.raises(UserError, match="text.finetune.cross_fit is false, so labelled clips have no"):
            fuse(load(job, [OFF, f"fuse.sets={chosen}"]))


@pytest.mark.slow
def test_frozen_and_imported_sets_of_such_an_extractor_may_be_fused(job):
    config = load(job, [OFF, "fuse.sets=[text, 'voice@fold-1']"])
    assert join.fused_sets(config) == ["text", "voice@fold-1"]


@pytest.mark.slow
def test_a_labelled_clip_whose_label_is_gone_is_named(job, tmp_path, monkeypatch):
    config = load(job)
    rows = list(shard_index.read(Run(config.run.folder).shards))
    rows[3] = replace(rows[3], label=None)
    shard_index.write_rows(ShardFolder(tmp_path).index, rows)
    damaged = shard_index.read(tmp_path)
    monkeypatch.setattr(shard_index, "read", lambda folder: damaged)
    with pytest.raises(UserError, match="clip03 is labeled and has no label; delete it and run shard"):
        adapters.planned(config)
