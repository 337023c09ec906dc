"""Fine-tuning from shards: which clips a copy may see, what it leaves, and how it is launched."""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_job
from safetensors.numpy import load_file

from mer_dist.config.config import load
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.records import LABELED
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.models import classifier
from mer_dist.models.family import FAMILIES
from mer_dist.shards import shard_index
from mer_dist.stages import finetune
from mer_dist.stages.extract import extract
from mer_dist.stages.run import run as run_all
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run
from mer_dist.training import accelerator as runtime


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = small_job.make(tmp_path_factory.mktemp("job"))
    shard(load(path))
    return path


def folds_of(run: Run) -> dict[str, int]:
    return files.read_json(run.folds)["folds"]


def test_no_copy_is_given_a_clip_of_the_fold_it_serves(job):
    planned = adapters.planned(load(job))
    fold_of = folds_of(Run(load(job).run.folder))
    labeled = {row.name for row in shard_index.read(Run(load(job).run.folder).shards) if row.split == LABELED}
    assert {(adapter.name, adapter.variant) for adapter in planned} == {
        (name, part) for name in ("clip", "baichuan") for part in ("fold-0", "fold-1", "all")
    }
    for adapter in planned:
        seen = {row.name for row in adapter.rows}
        if adapter.variant == "all":
            assert seen == labeled
        else:
            own = {name for name, fold in fold_of.items() if fold == int(adapter.variant[-1])}
            assert not seen & own and seen | own == labeled


def test_the_clips_that_choose_the_epoch_are_neither_trained_on_nor_of_the_copys_fold(job):
    config = load(job)
    adapter = adapters.planned(config)[0]
    fold_of = folds_of(Run(config.run.folder))
    targets = np.arange(60) % 6
    train, held_out = finetune._hold_out(targets, 0.2, seed=0, groups=[*map(str, range(60))])
    assert not set(train) & set(held_out) and len(train) + len(held_out) == 60
    assert sorted(targets[held_out]) == sorted([0, 1, 2, 3, 4, 5] * 2)
    assert all(fold_of[row.name] != 0 for row in adapter.rows)


def test_the_clips_that_choose_the_epoch_are_of_speakers_who_are_not_trained_on():
    targets, speakers = np.arange(60) % 6, [str(row // 6) for row in range(60)]
    train, held_out = finetune._hold_out(targets, 0.2, seed=0, groups=speakers)
    assert len(held_out) == 12 and sorted([*train, *held_out]) == [*range(60)]
    assert not {speakers[row] for row in train} & {speakers[row] for row in held_out}
    # One recording under two names is never on both sides.
    twins = [str(row) for row in range(60)]
    twins[7] = twins[1]
    for seed in range(20):
        train, held_out = finetune._hold_out(targets, 0.2, seed, twins)
        assert (1 in held_out) == (7 in held_out)
    one = finetune._hold_out(targets, 0.2, seed=0, groups=["only"] * 60)
    assert len(one[0]) == len(one[1]) == 60, "there is nobody else to choose by"


def test_another_label_makes_exactly_the_copies_that_saw_it_out_of_date(job):
    config = load(job)
    before = {(adapter.name, adapter.variant): adapter.fingerprint for adapter in adapters.planned(config)}
    fold_of = folds_of(Run(config.run.folder))
    row = next(row for row in shard_index.read(Run(config.run.folder).shards) if row.split == LABELED)
    other = "sad" if row.label != "sad" else "happy"
    labeled = [item for item in shard_index.read(Run(config.run.folder).shards) if item.split == LABELED]
    changed = [replace(item, label=other) if item.name == row.name else item for item in labeled]
    run = Run(config.run.folder)
    for held_out_fold in (0, 1, None):
        adapter = adapters._planned(
            config, run, "clip", config.extractors["clip"], held_out_fold, changed, fold_of, {}
        )
        same = adapter.fingerprint == before["clip", adapter.variant]
        assert same == (fold_of[row.name] == held_out_fold)


def test_a_rank_whose_home_cannot_be_written_compiles_below_the_run_folder(job, tmp_path, monkeypatch):
    def accelerator(*_):
        raise KeyError(os.environ["TORCH_EXTENSIONS_DIR"])

    monkeypatch.setattr(runtime, "make_accelerator", accelerator)
    (tmp_path / "file").touch()
    for name, value in {
        "HOME": str(tmp_path / "file" / "home"),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TORCH_EXTENSIONS_DIR": "",
        "TRITON_HOME": "",
        "TRITON_CACHE_DIR": "",
        "XDG_CACHE_HOME": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(KeyError, match=str(Run(load(job).run.folder).caches)):
        finetune.finetune(load(job))


def test_a_copy_that_never_sees_a_label_is_known_before_it_is_trained(job):
    config = load(job)
    planned = adapters.planned(config)
    assert not any(finetune._never_seen(adapter, planned) for adapter in planned)
    fold_of = {row.name: int(row.label == "sad") for row in planned[-1].rows}
    planned = adapters.planned(config, fold_of)
    assert {
        (adapter.name, adapter.variant): finetune._never_seen(adapter, planned) for adapter in planned
    } == {
        (name, part): ["sad"]
        if part == "fold-1"
        else sorted({*config.corpus.labels} - {"sad"})
        if part == "fold-0"
        else []
        for name in ("clip", "baichuan")
        for part in ("fold-0", "fold-1", "all")
    }


@pytest.mark.processes
def test_two_ranks_train_every_copy_and_a_second_call_trains_none(job):
    config = load(job)
    run = Run(config.run.folder)
    done = small_job.mer_dist("finetune", job, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert files.read_json(run.status("finetune")) == {"code": 0}
    for name, weights in (("clip", "adapter_model.safetensors"), ("baichuan", "model.safetensors")):
        for part in ("fold-0", "fold-1", "all"):
            folder = run.adapter(name, part)
            mark = files.read_marker(folder)
            assert (mark["processes"], mark["zero_stage"]) == (2, 3)
            assert mark["held_out_fold"] == (None if part == "all" else int(part[-1]))
            assert all(value.size for value in load_file(folder / weights).values())
            head = load_file(folder / "head.safetensors")["head.weight"]
            assert head.shape == (6, 24 if name == "clip" else 32)
            history = files.read_json(folder / "history.json")
            assert len(history["epochs"]) == config.extractors[name].finetune.epochs
    assert (run.adapter("clip", "all") / "adapter_config.json").exists()
    assert (run.adapter("baichuan", "all") / "tokenizer.model").exists()
    assert list(run.tracking.rglob("events.out.tfevents*")), "no TensorBoard file"
    assert not list(run.folder.rglob(".*best")) and not list(run.folder.rglob(".*tmp"))
    assert finetune.unfinished(config) == []

    extract(config)
    fold_of = folds_of(run)
    frozen, tuned = (store.load(run.features(name)) for name in ("clip", "clip@fold-1"))
    served = {name for name, fold in fold_of.items() if fold == 1}
    assert served <= set(tuned.names)
    # The rest are the anchors: unlabelled clips that every copy sees.
    assert len(set(tuned.names) - served) == config.extract.anchors
    assert not (set(tuned.names) - served) & set(fold_of)
    unlabeled = store.load(run.features("clip@all"))
    assert not set(unlabeled.names) & set(fold_of) and len(unlabeled.names) == small_job.UNLABELED
    assert store.description(run.features("clip@fold-1"))["held_out_fold"] == 1
    name = tuned.names[0]
    moved = tuned.utterances([name])[0] - frozen.utterances([name])[0]
    assert np.abs(moved).max() > 1e-4, "fine-tuning changed no feature"


def test_an_adapter_of_other_folds_is_not_taken_for_the_one_that_is_meant(job):
    """The planted leak: after a new fold seed, copy fold-0 has trained on clips of the new fold 0."""
    with pytest.raises(UserError, match="run finetune first"):
        extract(load(job, ["folds.seed=1"]))
    extract(load(job))


def test_a_model_that_is_not_whole_is_refused_before_any_copy_trains(job, tmp_path):
    models = shutil.copytree(Path(load(job).extractors["baichuan"].path).parent, tmp_path / "models")
    (models / "baichuan" / "tokenizer.model").unlink()
    config = load(
        job,
        [
            f"run.folder={tmp_path}/run",
            *(f"extractors.{name}.path={models / name}" for name in ("clip", "hubert", "baichuan")),
        ],
    )
    shutil.copytree(Run(load(job).run.folder).shards, Run(config.run.folder).shards)
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        finetune.finetune(config)
    assert not (tmp_path / "run/adapters").exists() and not list((tmp_path / "run").rglob("step-*"))


def test_run_refuses_what_fusion_would_refuse_before_it_makes_a_shard(job, tmp_path):
    options = [f"run.folder={tmp_path}/run", "extractors.clip.finetune.cross_fit=false"]
    with pytest.raises(UserError, match="clip@tuned: .*cross_fit is false"):
        run_all(load(job, options), str(job), options)
    assert not (tmp_path / "run/shards").exists()


@pytest.mark.processes
def test_under_a_launcher_a_mistake_in_the_configuration_reaches_the_user_as_code_2(job):
    run = Run(load(job).run.folder)
    options = ["extractors.clip.path=/nowhere", "extractors.baichuan.finetune=null"]
    done = small_job.mer_dist("finetune", job, *options, processes=2)
    # Ranks that refuse end their launcher with an error, which says so in its own words.
    assert done.returncode == 1
    assert json.loads(run.status("finetune").read_text()) == {"code": 2}
    assert "/nowhere" in done.stderr and "broke down" not in done.stderr
    assert small_job.mer_dist("status", run.folder, "finetune").returncode == 2


@pytest.mark.parametrize(("rate", "when"), [(1e30, "at the evaluation after epoch 1|at step [23]")])
def test_a_loss_that_is_no_number_ends_training_and_leaves_no_copy(job, tmp_path, rate, when):
    """Before, the copy was finished, and all its vectors were NaN."""
    config = load(
        job,
        [
            f"run.folder={tmp_path}/run",
            f"extractors.clip.finetune.learning_rate={rate}",
            "extractors.baichuan.finetune=null",
        ],
    )
    shutil.copytree(Run(load(job).run.folder).shards, Run(config.run.folder).shards)
    with pytest.raises(UserError, match=rf"({when}); lower extractors\.clip\.finetune\.learning_rate"):
        finetune.finetune(config)
    run = Run(config.run.folder)
    assert not run.adapter("clip", "fold-0").exists() and not list(run.folder.rglob("step-*"))


@pytest.fixture
def another_precision():
    """Accelerate keeps the precision of a process that trained before, as tests share one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("another_precision")
def test_a_copy_is_out_of_memory_before_the_next_is_loaded(job, tmp_path, monkeypatch):
    """One by one three copies, each of which would hold its model until the process ends."""
    told = [
        f"run.folder={tmp_path}/run",
        "extractors.clip.finetune.epochs=1",
        # Autocast makes a model point to itself.
        "extractors.clip.finetune.precision=bf16",
        "extractors.baichuan.finetune=null",
    ]
    config, found, make = load(job, told), [], classifier.trainable_classifier
    shutil.copytree(Run(load(job).run.folder).shards, Run(config.run.folder).shards)

    def counted(*arguments):
        found.append(sum(isinstance(item, classifier.Classifier) for item in gc.get_objects()))
        return make(*arguments)

    monkeypatch.setattr(classifier, "trainable_classifier", counted)
    # What the collector of cycles would find by chance is not what is meant.
    gc.disable()
    try:
        finetune.finetune(config)
    finally:
        gc.enable()
    assert found == [0, 0, 0]


def test_a_signal_while_the_ranks_come_together_is_a_stop_and_no_breakdown(job, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise RuntimeError("Error building extension 'deepspeed_shm_comm': ninja: build stopped: interrupted")

    config = load(job, [f"run.folder={tmp_path}/run"])
    shutil.copytree(Run(load(job).run.folder).shards, Run(config.run.folder).shards)
    monkeypatch.setattr("mer_dist.training.accelerator.make_accelerator", interrupted)
    with pytest.raises(RuntimeError, match="ninja"):
        finetune.finetune(config)
    with pytest.raises(Stopped, match="while the ranks came together"):
        finetune.finetune(config, should_stop=lambda: True)


def test_all_ranks_cut_by_the_budget_of_the_smallest_card(monkeypatch):
    """Ranks that cut otherwise would wait for one another for ever."""
    adapter = SimpleNamespace(extractor=SimpleNamespace(family="baichuan", path=""))
    card = SimpleNamespace(total_memory=85 * 10**9)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: card)
    monkeypatch.setattr(runtime, "all_gather_object", lambda joined, value: [value, 512])
    small, large = FAMILIES["baichuan"].training_budgets[1:]
    assert small == 512 < large
    joined = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    assert finetune._budget(joined, adapter) == 512
    monkeypatch.setattr(runtime, "all_gather_object", lambda joined, value: [value])
    assert finetune._budget(joined, adapter) == large
    card.total_memory = 25 * 10**9
    assert finetune._budget(joined, adapter) == small
    joined.device.type = "cpu"
    assert finetune._budget(joined, adapter) == FAMILIES["baichuan"].training_budgets[0]


def test_workspaces_are_fixed_before_cuda_starts_where_a_copy_is_to_be_deterministic(monkeypatch):
    def adapter(asked: bool):
        tuned = SimpleNamespace(deterministic=asked)
        return SimpleNamespace(extractor=SimpleNamespace(finetuning=tuned))

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    finetune._fix_workspaces([adapter(False)])
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    finetune._fix_workspaces([adapter(False), adapter(True)])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    finetune._fix_workspaces([adapter(False), adapter(True)])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
