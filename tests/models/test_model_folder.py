"""Broken, foreign and unsafe model folders: one line that names the file, before any weight is read."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import small_job
import small_models
import torch
from safetensors.torch import load_file, save_file

from mer_dist import cli
from mer_dist.config.config import load
from mer_dist.config.sections import ExtractorConfig, FinetuneConfig, LoraConfig
from mer_dist.core.errors import USAGE, UserError
from mer_dist.models import model_folder
from mer_dist.models.classifier import check_files, load_extractor, save, trainable_classifier
from mer_dist.stages.shard import shard
from mer_dist.storage.run_folder import Run

INDEX = "pytorch_model.bin.index.json"
BIN = "pytorch_model-00001-of-00002.bin"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return small_models.make(tmp_path_factory.mktemp("models"), ["今天真好", "走"])


@pytest.fixture
def broken(folders, tmp_path):
    """A copy of a model folder to damage."""
    return lambda family="baichuan": shutil.copytree(folders / family, tmp_path / family)


@pytest.fixture
def published(shared, tmp_path) -> Path:
    """The reference checkpoint in its published layout: two ``.bin`` shards and their index."""
    folder = tmp_path / "published"
    folder.mkdir()
    for source in (shared / "reference" / "baichuan-tiny").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    return folder


def refusal(folder: Path, family: str = "baichuan") -> str:
    """The one line that both users of a model folder give, and that names a file in it."""
    with pytest.raises(UserError) as caught:
        load_extractor(ExtractorConfig(family=family, path=str(folder)))
    finetune = FinetuneConfig(precision="fp32")
    with pytest.raises(UserError) as again:
        config = ExtractorConfig(family=family, path=str(folder), finetune=finetune)
        trainable_classifier(config, 2, 0, sharded=False)
    assert str(caught.value) == str(again.value)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    return line.replace(str(folder) + "/", "")


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def edit(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_hub_name_is_not_looked_up():
    assert "download it and give the folder" in refusal(Path("baichuan-inc/Baichuan-13B-Base"))
    assert "is missing" in refusal(Path("/nowhere/at/all"))


@pytest.mark.parametrize("family", small_models.FAMILIES)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.model"]
)
def test_a_file_that_is_not_there_is_named(broken, family, name):
    folder = broken(family)
    if not (folder / name).exists():
        return
    (folder / name).unlink()
    assert name in refusal(folder, family)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content, why", [("{", "cannot be read"), ("[]", "no json object")])
def test_json_that_cannot_be_read_is_named(broken, name, content, why):
    folder = broken("clip")
    (folder / name).write_text(content)
    line = refusal(folder, "clip")
    assert line.startswith(name) and why in line


@pytest.mark.parametrize("found", ["bai", "", None])
def test_a_part_of_a_model_type_is_another_model(broken, found):
    folder = broken("baichuan")
    edit(folder, model_type=found)
    assert f"model_type is {found!r}; the family baichuan needs 'baichuan'" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_tokenizer_is_named(published, share):
    cut(published / "tokenizer.model", share)
    assert refusal(published).startswith("tokenizer.model: no readable sentencepiece model")


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"model_type": "llama"}, "model_type is 'llama'; the family baichuan needs 'baichuan'"),
        ({"vocab_size": 125696}, "this is Baichuan2"),
        ({"architectures": ["BaiChuanForCausalLM"]}, "this is Baichuan-7B"),
        ({"rope_scaling": None}, "the key rope_scaling"),
        ({"num_key_value_heads": 8}, "the key num_key_value_heads"),
        ({"architectures": ["MyForCausalLM"]}, "MyForCausalLM is unknown"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
    ],
)
def test_a_config_of_another_model_is_refused_by_name(broken, settings, why):
    folder = broken()
    edit(folder, **settings)
    line = refusal(folder)
    assert line.startswith("config.json") and why in line


def test_a_13b_config_of_other_size_passes_and_its_remote_code_is_ignored(published):
    facts = json.loads((published / "config.json").read_text())
    assert "auto_map" in facts
    (published / "modeling_baichuan.py").write_text("raise SystemExit('this code must never run')")
    (published / "configuration_baichuan.py").write_text("raise SystemExit('nor this')")
    loaded = load_extractor(ExtractorConfig(family="baichuan", path=str(published)))
    assert loaded.backbone.config.num_attention_heads == 10 and loaded.width == 160


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_safetensors_are_named(broken, share):
    folder = broken("hubert")
    cut(folder / "model.safetensors", share)
    assert refusal(folder, "hubert").startswith("model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_bin_shard_is_named(published, share):
    cut(published / BIN, share)
    assert refusal(published).startswith(f"{BIN}: its end is missing")


def test_a_bin_shard_that_lost_its_middle_is_named(published):
    content = (published / BIN).read_bytes()
    (published / BIN).write_bytes(content[:200_000] + content[300_000:])
    assert refusal(published).startswith(BIN)


def test_an_index_that_names_a_missing_shard_is_named_with_it(published):
    (published / BIN).unlink()
    assert refusal(published).startswith(f"{INDEX}: names {BIN}, which is not there")
    (published / INDEX).write_text(json.dumps({"weight_map": {"x": "../elsewhere.bin"}}))
    assert refusal(published).startswith(INDEX)


def test_a_git_lfs_pointer_is_told_from_weights(broken):
    for name in ("model.safetensors", "tokenizer.model"):
        folder = broken()
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert refusal(folder).startswith(f"{name}: only a Git LFS pointer")
        shutil.rmtree(folder)


def test_a_bin_that_holds_code_is_refused_and_not_run(published):
    ran = published / "ran"
    # What pickle writes for an object whose unpickling calls os.mkdir(ran).
    code = b"\x80\x02cposix\nmkdir\nX" + len(str(ran)).to_bytes(4, "little") + str(ran).encode() + b"\x85R."
    with zipfile.ZipFile(published / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    assert refusal(published).startswith(f"{BIN}: holds pickled code (posix.mkdir), which is never run")
    assert not ran.exists()


def test_an_old_pickle_without_a_zip_is_refused(published):
    state = {"weight": torch.ones(3)}
    torch.save(state, published / BIN, _use_new_zipfile_serialization=False)
    assert "an old pickle" in refusal(published)


def test_every_kind_of_tensor_that_torch_saves_passes(published):
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn)
    state = {str(kind): torch.zeros(2, 3).to(kind) for kind in kinds}
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    torch.save(state, published / BIN)
    model_folder.check(published, "baichuan")
    torch.save(state | {"more": print}, published / BIN)
    assert "holds pickled code (__builtin__.print)" in refusal(published)


@pytest.mark.slow
@pytest.mark.parametrize("change, words", [("drop", "lack"), ("shape", "has the shape")])
def test_weights_that_do_not_fit_the_config_are_refused(broken, change, words):
    folder = broken("hubert")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.attention.q_proj.weight"
    weights[name] = torch.zeros(7, 7)
    if change == "drop":
        del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = refusal(folder, "hubert")
    assert words in line and "layers.1.attention.q_proj.weight" in line


def test_a_bin_shard_of_another_shape_than_the_config_says_is_named(published):
    edit(published, intermediate_size=400)
    line = refusal(published)
    assert line.startswith(BIN) and "has the shape [432, 160], by config.json it is [400, 160]" in line


def adapter(folders: Path, family: str, folder: Path) -> ExtractorConfig:
    """A LoRA copy of a small model in ``folder``, and the settings it was trained with."""
    settings = FinetuneConfig(precision="fp32", lora=LoraConfig(rank=2))
    config = ExtractorConfig(family=family, path=str(folders / family), finetune=settings)
    classifier = trainable_classifier(config, 2, 0, sharded=False)
    weights = {name: value.detach() for name, value in classifier.named_parameters() if value.requires_grad}
    save(classifier, weights, folder)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_an_adapter_for_another_base_model_is_refused_before_the_base_is_loaded(folders, tmp_path, family):
    config = adapter(folders, family, tmp_path / "adapter")
    check_files(config, tmp_path / "adapter")
    wide = {**small_models.SIZES, "hidden_size": 64}
    other = small_models.make(tmp_path / "other", ["今天真好", "走"], wide)
    families = [name for name in small_models.FAMILIES if name != family]
    for name, folder in [(family, other), (families[0], folders), (families[1], folders)]:
        with pytest.raises(UserError, match="adapter_model.safetensors: .*another base model"):
            check_files(ExtractorConfig(family=name, path=str(folder / name)), tmp_path / "adapter")


@pytest.mark.slow
def test_an_adapter_that_is_not_lora_is_refused_whatever_its_weights_are(folders, tmp_path):
    """Other kinds may load further files, by any path or name."""
    config = adapter(folders, "baichuan", tmp_path)
    path = tmp_path / "adapter_config.json"
    for kind in ("XLORA", "IA3", None):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": kind}))
        with pytest.raises(UserError, match="adapter_config.json: no LoRA adapter"):
            check_files(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_torn_adapter_is_refused_by_its_file(folders, tmp_path, name):
    config = adapter(folders, "baichuan", tmp_path)
    cut(tmp_path / name)
    with pytest.raises(UserError, match=str(tmp_path / name)):
        load_extractor(config, tmp_path)
    (tmp_path / name).unlink()
    # Without its adapter_config.json it would be a folder of whole weights, which it is not.
    missing = "config.json" if name == "adapter_config.json" else name
    with pytest.raises(UserError, match=missing):
        load_extractor(config, tmp_path)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = small_job.make(tmp_path_factory.mktemp("job"))
    shard(load(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert", "baichuan"])
def test_extract_ends_with_2_and_one_line_and_writes_no_feature(job, tmp_path, name):
    folder = Path(load(job).extractors[name].path)
    broken = shutil.copytree(folder, tmp_path / name)
    cut(broken / "model.safetensors")
    frozen = ["extractors.clip.finetune=null", "extractors.baichuan.finetune=null"]
    done = small_job.mer_dist("extract", job, *frozen, f"extractors.{name}.path={broken}")
    assert done.returncode == USAGE
    (line,) = done.stderr.splitlines()
    assert str(broken / "model.safetensors") in line
    # Not those of the healthy models before it either.
    assert not list(Run(load(job).run.folder).folder.glob("features/**/*.safetensors"))


@pytest.mark.slow
def test_run_ends_with_2_before_it_makes_a_shard(job, tmp_path, capsys):
    options = [f"run.folder={tmp_path}/run", "extractors.hubert.path=me/chinese-hubert-large"]
    assert cli.main(["run", str(job), *options]) == USAGE
    assert "extractors.hubert.path: there is no model folder" in capsys.readouterr().err
    assert not Run(tmp_path / "run").shards.exists()
