"""The plan of a run: exact parameters, the recipe at full size, and what does not fit."""

from __future__ import annotations

import json

import media_files
import pytest
from conftest import ROOT

from mer_dist.cli import main
from mer_dist.config.config import as_dict, load
from mer_dist.core import log
from mer_dist.core.errors import UserError
from mer_dist.planning import plan as stage
from mer_dist.planning import plan_text
from mer_dist.processes import launch_config
from mer_dist.processes.launch_config import LaunchLayout

RECIPE = ROOT / "configs" / "mer2024"
BAICHUAN = """
run: {{folder: {folder}/run, processes: 8}}
corpus: {{path: {folder}/corpus}}
extractors:
  baichuan:
    family: baichuan
    path: models/Baichuan-13B-Base
    precision: bf16
    finetune: {{batch: 32, micro_batch: 1, gradient_checkpointing: true}}
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(BAICHUAN.format(folder=tmp_path))
    return path


def plan(path, *overrides, clips=None) -> dict:
    return stage.plan(load(path, overrides), clips)


@pytest.mark.slow
def test_baichuan_13b_has_the_published_number_of_parameters(job, shared):
    facts = json.loads((shared / "reference" / "baichuan-13b-facts.json").read_text())
    lm_head = facts["config"]["vocab_size"] * facts["config"]["hidden_size"]
    found = plan(job)["extractors"]["baichuan"]
    assert found["parameters"] + lm_head == facts["n_params"]
    head = 6 * 5120 + 6
    assert found["finetune"]["trainable"] == 40 * 16 * (5120 + 15360) + head
    assert found["source"] == "Baichuan-13B-Base"


@pytest.mark.slow
def test_13b_by_lora_on_8_gpus_and_in_full(job):
    lora = plan(job)["extractors"]["baichuan"]["finetune"]
    states = sum(lora["gpu"][key] for key in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(3.27e9, rel=0.01)
    assert lora["gpu"]["reduce bucket"] == 2 * lora["trainable"]
    assert lora["adapters"] == 6 and lora["fits"] == [24, 40, 80, 141]
    full = plan(job, "extractors.baichuan.finetune.method=full")["extractors"]["baichuan"]["finetune"]
    assert full["gpu_total"] > 29e9 and full["fits"] == [40, 80, 141]
    assert full["smallest"]["24"] == 16 and full["smallest"]["80"] == 4


@pytest.mark.slow
def test_passes_by_length_are_counted_by_the_size_of_the_gpu(job):
    """A large GPU takes more at a time, unless the budget or a number of clips is given."""

    def at_a_time(*told: str) -> list[tuple[int, float]]:
        finetune = "extractors.baichuan.finetune."
        config = load(job, ["run.processes=1", *(f"{finetune}{key}" for key in ("micro_batch=0", *told))])
        step = stage._training(config, config.extractors["baichuan"], stage._size(config, "baichuan"))
        found = [step(launch_config.layout(config.run), size * 1e9) for size in (24, 80)]
        return [(own.clips, own.rows["activations"]) for own in found]

    (few, small), (many, large) = at_a_time()
    assert (few, many) == (1, 8) and large == pytest.approx(8 * small, rel=0.05)
    assert at_a_time("batch_budget=2048") == [(4, pytest.approx(4 * small, rel=0.05))] * 2
    assert [clips for clips, _ in at_a_time("micro_batch=1")] == [1, 1]


@pytest.mark.slow
def test_extraction_is_planned_in_the_precision_that_a_gpu_gets(job):
    def extraction(precision: str) -> dict:
        told = f"extractors.baichuan.precision={precision}", "extractors.baichuan.finetune=null"
        needs = plan(job, *told)
        assert f"at a time, {precision.replace('auto', 'bf16')})" in plan_text.table(needs)
        return needs["extractors"]["baichuan"]["extract"]

    auto, half, whole = map(extraction, ("auto", "bf16", "tf32"))
    assert auto == half and auto["precision"] == "bf16"
    assert whole["gpu"]["weights"] == 2 * half["gpu"]["weights"]


@pytest.mark.slow
def test_what_does_not_fit_is_said(job, capsys):
    tight = [
        "run.processes=1",
        "extractors.baichuan.finetune.method=full",
        "extractors.baichuan.precision=fp32",
        "extractors.baichuan.max_tokens=4096",
        "extractors.baichuan.batch_budget=1000000",
    ]
    assert main(["plan", str(job), *tight]) == 0
    out = capsys.readouterr().out
    assert "WARNING: finetune baichuan does not fit" in out
    assert "WARNING: extract baichuan does not fit" in out


@pytest.mark.slow
def test_a_launch_that_is_not_supported_is_said(job, tmp_path, caplog, monkeypatch):
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}\n")
    caplog.set_level("INFO", log.logger.name)
    monkeypatch.setattr(log, "SECONDS_OF_SILENCE", 0.01)
    needs = plan(job, f"run.accelerate={launch}")
    assert "ZeRO stage 1" in " ".join(needs["warnings"])
    assert needs["extractors"]["baichuan"]["finetune"]["fits"] == []
    # Tracing takes seconds, and says so meanwhile.
    assert "tracing what baichuan holds" in caplog.text


def recipes() -> list:
    """``full`` has what the others have; those go through in the long suite."""
    often = ("full", "baichuan-qlora-1gpu")
    return [
        pytest.param(file, id=file.stem, marks=() if file.stem in often else pytest.mark.long)
        for file in sorted(RECIPE.glob("*.yaml"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("file", recipes())
def test_the_recipe_is_planned_without_corpus_models_or_gpu(file, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--json", str(file)]) == 0
    needs = json.loads(capsys.readouterr().out)
    assert needs["warnings"] == []
    assert needs["clips"] is None and "data/mer2024" in needs["clips_unknown"]
    assert "give --clips N" in plan_text.table(needs)
    for name, facts in needs["extractors"].items():
        assert facts["source"] in facts["path"], name
        assert 24 in facts["extract"]["fits"] or name == "baichuan"
        if facts["finetune"]:
            assert 24 in facts["finetune"]["fits"]
            # The QLoRA variant is the one for a single GPU of 24 GB.
            if file.stem == "baichuan-qlora-1gpu":
                assert facts["finetune"]["gpu"]["weights"] == pytest.approx(7.8e9, rel=0.01)
            single = facts["finetune"]["smallest"]["24"] == 1
            assert single == (name == "clip" or file.stem == "baichuan-qlora-1gpu")


@pytest.mark.slow
def test_the_variants_of_the_recipe_are_what_their_names_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    layouts = {file.stem: launch_config.layout(load(file).run) for file in RECIPE.glob("baichuan-*.yaml")}
    assert layouts == {
        "baichuan-lora-1node": LaunchLayout(processes=8, zero_stage=3),
        "baichuan-lora-2nodes": LaunchLayout(processes=16, machines=2, zero_stage=3),
        "baichuan-qlora-1gpu": LaunchLayout(processes=1),
    }


@pytest.mark.slow
def test_the_parts_of_the_recipe_have_the_settings_of_the_whole(monkeypatch):
    """Otherwise full.yaml would train again what a part has finished."""
    monkeypatch.chdir(ROOT)
    whole = load(RECIPE / "full.yaml")
    for file in RECIPE.glob("*.yaml"):
        part = load(file)
        assert (part.run.folder, part.run.threads, part.corpus, part.folds, part.extract) == (
            whole.run.folder,
            whole.run.threads,
            whole.corpus,
            whole.folds,
            whole.extract,
        )
        for name, extractor in part.extractors.items():
            ours, theirs = as_dict(extractor), as_dict(whole.extractors[name])
            for settings in (ours, theirs):
                settings.pop("quantize") if file.stem.startswith("baichuan-qlora") else None
                for key in ("micro_batch", "gradient_checkpointing"):
                    (settings["finetune"] or {}).pop(key, None)
            assert ours == theirs, file


@pytest.mark.slow
def test_shards_and_disk_follow_the_clips_of_the_corpus(job, tmp_path):
    media_files.write_corpus(tmp_path / "corpus", 6, 4)
    needs = plan(job, "shard.clips=4")
    assert needs["clips"] == {"all": 10, "labeled": 6, "from": "the corpus"}
    assert needs["shards"]["count"] == 3
    assert "3 shards for 8 processes" in " ".join(needs["warnings"])
    config = load(job, ["extract.frame_level=false", "extract.storage=fp16"])
    # Frozen once, fine-tuned once, and 128 anchors by each of the five copies of the folds.
    assert stage.plan(config)["disk"]["features"]["baichuan"] == (10 + 10 + 5 * 128) * 5120 * 2


@pytest.mark.slow
def test_unknown_models_are_refused_by_key_and_file(job, tmp_path):
    with pytest.raises(UserError, match=r"extractors\.baichuan\.path: there is no folder .*nowhere"):
        plan(job, "extractors.baichuan.path=models/nowhere")
    with pytest.raises(UserError, match=r"extractors\.baichuan\..*family clip"):
        plan(job, "extractors.baichuan.path=models/clip-vit-large-patch14")
    folder = tmp_path / "Baichuan-13B-Base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "baichuan", "vocab_size": 125696}')
    with pytest.raises(UserError, match=r"extractors\.baichuan\..*config\.json: this is Baichuan2"):
        plan(job, f"extractors.baichuan.path={folder}")


@pytest.mark.slow
def test_json_is_alone_on_standard_output_and_says_the_same(job, capsys):
    full = "extractors.baichuan.finetune.method=full"
    assert main(["plan", "--json", "--clips", "1000", str(job), full]) == 0
    needs = json.loads(capsys.readouterr().out)
    assert needs["extractors"]["baichuan"]["finetune"]["gpu_total"] > 29e9
    assert needs["clips"]["all"] == 1000
