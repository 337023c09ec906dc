"""The files that come along: each says what it is for, and none is written over."""

from __future__ import annotations

import pytest
import yaml
from conftest import ROOT

from mer_dist.cli import main
from mer_dist.config.config import load
from mer_dist.config.sections import RunConfig
from mer_dist.core.errors import UserError
from mer_dist.processes import launch_config
from mer_dist.stages import config_files
from mer_dist.storage import files

FULL = "configs/mer2024/full.yaml"


def test_every_file_is_listed_with_a_whole_sentence_of_its_own(capsys):
    assert main(["config", "list"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    there = [path for folder in ("configs", "launch", "slurm") for path in (ROOT / folder).rglob("*.*")]
    others = {path.relative_to(ROOT).as_posix() for path in (ROOT / "launch").glob("*.sh")}
    assert rows.keys() == {path.relative_to(ROOT).as_posix() for path in there} - others | {"constraints.txt"}
    assert all(told.endswith(".") for told in rows.values())
    assert rows["launch/multinode.yaml"] == "Several nodes of 8 GPUs under ZeRO-3."


@pytest.mark.parametrize(
    ("text", "purpose"),
    [
        ("# Two\n# lines. And more.\nrun: {}\n# not this", "Two lines."),
        ("#!/bin/sh\n# Of 0.5 GB, as v1.2.\n", "Of 0.5 GB, as v1.2."),
        ("# no end\nrun: {}\n", "no end"),
        ("run: {}\n", ""),
        ("", ""),
    ],
)
def test_what_a_file_is_for_is_the_first_sentence_of_its_first_comment(text, purpose):
    assert config_files.purpose(text) == purpose


def test_a_copy_stands_where_others_name_it_with_those_that_it_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "copy", "baichuan-lora-1node.yaml"]) == 0
    told = capsys.readouterr().out
    own = "configs/mer2024/baichuan-lora-1node.yaml"
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {own, FULL, "launch/workstation.yaml", "launch/ddp.yaml"}
    assert all((tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in found)
    # Started here, the path of the launch file leads to what was copied; the others are the user's.
    assert (tmp_path / yaml.safe_load((tmp_path / own).read_text())["run"]["accelerate"]).is_file()
    assert "corpus.path (data/mer2024), extractors.baichuan.path (models/Baichuan-13B-Base)" in told
    assert "cd " not in told


def test_a_path_that_is_there_is_not_asked_for_and_another_folder_is_to_be_started_in(tmp_path, capsys):
    (tmp_path / "data" / "mer2024").mkdir(parents=True)
    assert main(["config", "copy", "configs/mer2024/hubert-large.yaml", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "edit them: extractors.hubert.path (models/chinese-hubert-large)\n" in told
    assert f"cd {tmp_path} first" in told


@pytest.mark.slow
def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "job"
    target = folder / "launch" / "workstation.yaml"
    files.write_text(target, "mine\n")
    with pytest.raises(UserError, match="workstation.yaml: is there already and is another one"):
        config_files.copy("launch", folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [target]
    told = config_files.copy("baichuan-lora-1node.yaml", folder)
    assert f"{target}: another one is there already; left as it is" in told and target.read_text() == "mine\n"
    assert any(line.endswith("1node.yaml: there already") for line in config_files.copy("configs", folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ful.yaml", "do you mean configs/mer2024/full.yaml"),
        ("demo", "do you mean configs/demo.yaml"),
        ("nonesuch", "mer-dist config list"),
        ("../configs/demo.yaml", "do you mean configs/demo.yaml"),
        ("launch/setup.sh", "comes with mer-dist"),
        ("", "mer-dist config list"),
        (".", "mer-dist config list"),
    ],
)
def test_what_does_not_come_along_is_refused_with_the_nearest_name(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        config_files.copy(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_to_be_is_named(tmp_path):
    (tmp_path / "configs").touch()
    for folder in (tmp_path, tmp_path / "configs"):
        with pytest.raises(UserError, match="configs: is no folder"):
            config_files.copy("demo.yaml", folder)


def test_a_file_that_is_not_there_and_comes_along_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.offered(FULL) == f"; mer-dist config copy {FULL} writes it here"
    for other in (
        "configs/nonesuch.yaml",
        "configs/../setup.cfg",
        "mer_dist/cli.py",
        tmp_path / FULL,
        "",
        ".",
    ):
        assert files.offered(other) == "", other
    with pytest.raises(UserError, match=f"{FULL}: cannot be read: .*; mer-dist config copy {FULL}"):
        load(FULL)
    with pytest.raises(
        UserError, match="run.accelerate: launch/zero3-cpu.yaml .*mer-dist config copy launch/z"
    ):
        launch_config.layout(RunConfig(accelerate="launch/zero3-cpu.yaml"))
