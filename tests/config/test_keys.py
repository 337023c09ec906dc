"""The reference of keys: complete, described, and the same that the reader of configurations holds to."""

from __future__ import annotations

import dataclasses

import pytest

from mer_dist.cli import main
from mer_dist.config import keys, limits, yaml_reader
from mer_dist.config.config import Config, load
from mer_dist.config.sections import ExtractorConfig, FinetuneConfig
from mer_dist.core.errors import UserError

SECTIONS = keys.sections()
KEYS = {key.name: key for section in SECTIONS for key in section.keys}


def leaves(value, name: str) -> dict:
    """Every value below a section by its full key; mappings whose names are the user's are values."""
    if not dataclasses.is_dataclass(value):
        return {name: value}
    found = {}
    for field in dataclasses.fields(value):
        found |= leaves(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    return found


def default_values() -> dict:
    extractor = ExtractorConfig(family="clip", path="model", finetune=FinetuneConfig())
    values = leaves(Config(), "") | leaves(extractor, "extractors.NAME")
    del values["extractors"]
    return values


def test_every_key_and_section_is_told_and_means_something():
    assert KEYS.keys() - {"extractors.NAME.finetune"} == default_values().keys()
    assert [section.name for section in SECTIONS if not section.meaning] == []
    assert [name for name, key in KEYS.items() if len(key.meaning) < 5] == []


def test_a_key_is_told_with_type_default_limit_and_meaning():
    assert KEYS["fuse.width"] == keys.Key(
        name="fuse.width",
        type="whole number",
        default="64",
        limit="at least 1",
        meaning="Numbers in a token inside the model; a multiple of ``heads``.",
    )
    assert KEYS["slurm.times"].type == "mapping of a name to text"
    assert KEYS["corpus.labels"].type == "list, each text"
    assert KEYS["extractors.NAME.finetune"].default == "absent"
    assert KEYS["run.layout"].limit == "one of: auto, ddp, zero2, zero3"


def test_the_defaults_are_those_of_a_configuration_without_the_keys():
    given = {"run.folder", "extractors.NAME.family", "extractors.NAME.path"}
    for name, value in default_values().items():
        if name in given:
            assert KEYS[name].default == "" and KEYS[name].facts == "text; required"
        else:
            assert yaml_reader.parse(KEYS[name].default, "") == value, name


@pytest.mark.parametrize(
    "override",
    ["vote.kind=loud", "run.processes=0", "fuse.feature_dropout=1.0", "self_train.weight=0", "folds.count=1"],
)
def test_the_limit_that_is_told_is_the_one_that_refuses(tmp_path, override):
    job = tmp_path / "job.yaml"
    job.write_text(f"run: {{folder: {tmp_path}}}\n")
    name, _, value = override.partition("=")
    with pytest.raises(UserError) as refused:
        load(job, [override])
    assert str(refused.value).endswith(f"; it must be {KEYS[name].limit}") and value in str(refused.value)


def test_a_key_without_a_text_below_it_is_noticed():
    found = keys._meanings(Undescribed)
    assert found == {"told": "What it is."}
    assert limits.of(Undescribed) == {}


class Undescribed:
    told: int = 1
    """What it is."""
    untold: int = 2


def test_a_section_is_printed_with_those_within_it_and_a_key_alone():
    extractors = keys.text("extractors")
    assert "extractors.NAME.finetune.lora.rank (whole number; at least 1; default 16)" in extractors
    assert "fuse.width" not in extractors
    one = keys.text("run.seed")
    assert "run.seed" in one and "run.folder" not in one
    assert all(name in keys.text() for name in KEYS)
    assert "``" not in keys.text()


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("fus", "do you mean fuse?"),
        ("finetune", "do you mean extractors.NAME.finetune?"),
        ("selftrain", "do you mean self_train?"),
        ("zzz", "there are: run, corpus, shard"),
    ],
)
def test_an_unknown_section_is_one_line_with_what_is_near(asked, hint, capsys):
    assert main(["keys", asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no section or key '{asked}'; {hint}" in line


def test_the_command_prints_it(capsys):
    assert main(["keys", "folds"]) == 0
    assert capsys.readouterr().out.strip() == keys.text("folds")
