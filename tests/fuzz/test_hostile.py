"""Nothing that comes from outside is run, unpickled, or leads out of its folder."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import tarfile

import fusion_run
import media_files
import numpy as np
import pytest
import small_models
from conftest import ROOT

from fuzz import crash
from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import CorpusConfig, ExtractorConfig, RunConfig, ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.corpus import convert, mertools
from mer_dist.inspect.verify import verify
from mer_dist.interop.npy import export_npy, import_npy
from mer_dist.models.classifier import load_extractor
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.stages import shard as stage
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run, ShardFolder


class _Planted:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def imports_and_calls() -> list[tuple[str, str]]:
    """Module of the package, and dotted name of everything that it imports or calls."""
    found = []
    for path in sorted((ROOT / "mer_dist").rglob("*.py")):
        module = str(path.relative_to(ROOT / "mer_dist"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(module, f"{node.module}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.Call):
                found.append((module, ast.unparse(node.func)))
                found += [(module, f"{one.arg}={ast.unparse(one.value)}") for one in node.keywords]
    return found


@pytest.mark.slow
def test_no_module_unpickles_evaluates_unpacks_or_trusts():
    found = imports_and_calls()
    allowed = {
        ("corpus/mertools.py", "pickle"),
        ("training/checkpoint.py", "pickle"),
        ("models/model_folder.py", "pickletools"),
        ("corpus/mertools.py", "pickletools"),
        # a constant, and a class, of modules that can unpack as well
        ("shards/writer.py", "tarfile.BLOCKSIZE"),
        ("shards/writer.py", "webdataset.TarWriter"),
    }
    for one in found:
        module, name = one
        assert name.split(".")[0] not in ("marshal", "shelve", "dill", "cloudpickle", "joblib"), one
        assert name not in (
            "eval",
            "exec",
            "pickle.load",
            "pickle.loads",
            "os.system",
            "os.popen",
            "shutil.unpack_archive",
            "yaml.unsafe_load",
            "yaml.full_load",
        ), one
        loose = ("trust_remote_code=T", "allow_pickle=T", "weights_only=F", "shell=T")
        assert not name.startswith(loose), one
        if name.split(".")[0] in ("pickle", "pickletools", "tarfile", "webdataset"):
            assert one in allowed or name.startswith(("pickle.Unpickl", "pickletools.genops")), one
        if name == "torch.load":
            assert (module, "weights_only=True") in found, one
        if name == "np.load":
            assert (module, "allow_pickle=False") in found, one


def test_a_pickle_in_an_npy_folder_costs_its_clip_and_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "good.npy", np.ones(3, np.float32))
    np.save(folder / "array.npy", np.array([_Planted()], object), allow_pickle=True)
    (folder / "plain.npy").write_bytes(pickle.dumps(_Planted()))
    np.savez(folder / "archive.npz", a=np.array([_Planted()], object))
    (folder / "archive.npz").rename(folder / "archive.npy")
    import_npy(Run(tmp_path / "run"), "line", "text", folder)
    lost = {row.name for row in quarantine.read(Run(tmp_path / "run").quarantine)}
    assert lost == {"array", "plain", "archive"}
    assert sorted(os.listdir(tmp_path)) == ["in", "run"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "hubert"])
def test_code_beside_a_model_is_not_run(tmp_path, monkeypatch, family):
    monkeypatch.chdir(tmp_path)
    folder = small_models.make(tmp_path / "models", ["我说第3句话"] * 3) / family
    for name, classes in (
        ("config.json", ("AutoConfig", "AutoModel")),
        ("preprocessor_config.json", ("AutoImageProcessor", "AutoFeatureExtractor")),
    ):
        facts = json.loads((folder / name).read_text())
        facts["auto_map"] = {one: f"planted.{one}" for one in classes}
        (folder / name).write_text(json.dumps(facts))
    (folder / "planted.py").write_text("import os\nos.mkdir('ran')\nraise SystemExit('it ran')\n")
    assert load_extractor(ExtractorConfig(family=family, path=str(folder))).width
    assert os.listdir(tmp_path) == ["models"]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a\nb", "..", "a/../../b"])
def test_a_feature_set_whose_clips_have_names_that_lead_elsewhere_is_not_exported(tmp_path, name):
    run = Run(tmp_path / "deep" / "er" / "run")
    fusion_run.write_set(run, "voice", "audio", ["good", name], np.ones((2, 3)))
    with pytest.raises(UserError, match="clip names must be safe and unique"):
        export_npy(run, "voice", tmp_path / "deep" / "out", "UTT")
    assert not list(tmp_path.rglob("*escaped*")) and not (tmp_path / "deep" / "out").exists()


def hostile_tar() -> bytes:
    """Members that leave the folder, point elsewhere, or are devices, in the place of a shard."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (
            ("/tmp/escaped", tarfile.REGTYPE),
            ("../../escaped", tarfile.REGTYPE),
            ("a000.json", tarfile.SYMTYPE),
            ("a000.flac", tarfile.LNKTYPE),
            ("a000.00.jpg", tarfile.CHRTYPE),
            ("a001.json", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.devmajor, member.devminor = kind, "/etc/passwd", 1, 5
            member.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"evil"))
    return stream.getvalue()


def config_of(folder) -> Config:
    corpus = media_files.write_corpus(folder / "corpus", labeled=3, unlabeled=2)
    made = Config(
        run=RunConfig(folder=str(folder / "run")),
        corpus=CorpusConfig(path=str(corpus)),
        shard=ShardConfig(frames=2, image_size=16, faces="none", workers=1),
    )
    configuration.save(made, Run(made.run.folder).config)
    return made


@pytest.mark.slow
def test_a_tar_of_links_devices_and_paths_out_of_the_folder_is_read_by_nobody_and_named(tmp_path):
    made = config_of(tmp_path)
    run = Run(made.run.folder)
    stage.shard(made)
    tar = ShardFolder(run.shards).tar(0)
    size = tar.stat().st_size
    before = sorted(tmp_path.rglob("*"))
    # As long as the one before, so that only its content tells.
    tar.write_bytes(hostile_tar().ljust(size, b"\0"))
    reader = Reader(run.shards)
    for row in reader.rows:
        assert b"root:" not in b"".join(reader.members(row).values())
        with pytest.raises(UserError, match="00000.tar, clip .* the tar is damaged"):
            reader.read(row).images()
    assert any("differ from their checksum" in line for line in verify(run.folder))
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/tmp/escaped")
    tar.unlink()
    stage.shard(made)
    assert verify(run.folder) == []


@pytest.mark.slow
def test_a_clip_that_crashes_the_decoder_keeps_its_text_and_is_in_quarantine(tmp_path, monkeypatch):
    """The crash is the one part that is made up: it happens in a real worker process."""
    made = config_of(tmp_path)
    run = Run(made.run.folder)
    monkeypatch.setattr(convert, "convert", crash.on_a001)
    stage.shard(made)
    lost = {(row.name, row.lost): row.reason for row in quarantine.read(run.quarantine)}
    assert lost.keys() == {("a001", "audio"), ("a001", "video")}
    assert all("the decoder crashed on it" in reason for reason in lost.values())
    rows = {row.name: row for row in shard_index.read(run.shards)}
    assert len(rows) == 5 and rows["a001"].missing == ["audio", "video"] and rows["a001"].transcript
    assert verify(run.folder) == []


@pytest.mark.slow
def test_damaged_label_files_and_arrays_are_refused_or_plain(tmp_path, sandbox, count):
    from fuzz.test_small_files import labels

    outcomes = [sandbox.call(labels, tmp_path, f"hostile {seed}") for seed in range(20)]
    assert "message" in outcomes and mertools.MOST_BYTES == 1 << 27
    count("npz", outcomes)
