"""A finished small run, one file of it damaged, and everything that reads such a file tried on it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from random import Random

import small_job

from fuzz.mutations import mutate
from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core.errors import UserError
from mer_dist.inspect.explain import explain, text
from mer_dist.inspect.score import score
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.stages.extract import extract
from mer_dist.stages.fuse import fuse
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

OPTIONS = (
    "extractors.clip.finetune=null",
    "extractors.baichuan.finetune=null",
    "fuse.epochs=1",
    "fuse.query_modality=audio",
    "shard.frames=2",
)
#: Written for people or programs beside the run, and read by no stage.
UNREAD = ("report.html", "scores.json")


def build(folder: Path) -> None:
    """A run with shards, features of three modalities, a round of self-training and a vote."""
    job = small_job.make(folder)
    config = configuration.load(job, OPTIONS)
    run = Run(config.run.folder)
    configuration.save(config, run.config)
    for stage in (shard, extract, fuse):
        stage(config)
    score(run.folder)
    assert verify(run.folder) == []


def attack(base: Path, folder: Path, suffix: str, seed: str, stages: bool) -> tuple[str, str]:
    """Damage one file of that suffix in a copy of the run; what was damaged, and the outcome."""
    shutil.copytree(base / "run", folder)
    run = Run(folder)
    victims = sorted(folder.rglob(f"*{suffix}"))
    victim = Random(seed).choice(victims)
    before = victim.read_bytes()
    damage, content = mutate(before, suffix, seed)
    victim.write_bytes(content)
    what = f"{damage} {victim.relative_to(folder)}"
    if content == before:
        return what, "harmless"
    messages = read(run)
    if stages:
        messages += again(base, run)
        if not messages:
            complete(run)
            same = victim.exists() and victim.read_bytes() == content
            return what, "harmless" if same else "made again"
    for line in messages:
        assert "\n" not in line.strip() and len(line) < 3000, f"{what}: {line}"
    named = [
        line for line in messages if any(word in line for word in (victim.stem, victim.parent.name, "clips"))
    ]
    # What was made from a part that is stale is so, too, and does not say what that was made from.
    unnamed = [
        line for line in messages if line not in named and not (named and "stale, computed from" in line)
    ]
    assert not unnamed, f"{what}: {unnamed}"
    return what, "message" if messages else "harmless"


def read(run: Run) -> list[str]:
    """What the commands on a finished run say of it; the report is always written."""
    from mer_dist.report.page import report

    messages = told(verify, run.folder)
    messages += told(score, run.folder)
    for name in ("a001", "u001"):
        messages += told(lambda folder, name=name: text(explain(folder, name)) and [], run.folder)
    files.write_text(run.report, "")
    report(run.folder)
    assert run.report.stat().st_size > 1000
    return messages


def told(command, folder: Path) -> list[str]:
    """The findings or the one line with which a command ends; of a table only that it is there."""
    try:
        found = command(folder)
    except UserError as error:
        return [str(error)]
    return found if command is verify else []


def again(base: Path, run: Run) -> list[str]:
    """Run every stage over what is left; the line with which one ends, or findings of verify after."""
    config = configuration.load(base / "job.yaml", [*OPTIONS, f"run.folder={run.folder}"])
    configuration.save(config, run.config)
    try:
        for stage in (shard, extract, fuse):
            stage(config)
    except UserError as error:
        return [str(error)]
    return verify(run.folder)


def complete(run: Run) -> None:
    """Every clip is in the shards or in quarantine, and every unlabelled one has its answer."""
    rows = shard_index.read(run.shards)
    gone = {row.name for row in quarantine.read(run.quarantine) if row.lost == "clip" and row.reason}
    wanted = {f"a{row:03d}" for row in range(small_job.LABELED)}
    wanted |= {f"u{row:03d}" for row in range(small_job.UNLABELED)}
    assert {row.name for row in rows} | gone == wanted
    with open(run.answer, newline="", encoding="utf-8") as file:
        answers = [row["name"] for row in csv.DictReader(file)]
    assert sorted(answers) == sorted(row.name for row in rows if row.label is None)


def yaml(path: Path, folder: Path, suffix: str, seed: str) -> tuple[str, str]:
    """Damage a configuration and load it."""
    victim = folder / "job.yaml"
    folder.mkdir()
    damage, content = mutate(path.read_bytes(), suffix, seed)
    victim.write_bytes(content)
    try:
        loaded = configuration.load(victim)
    except UserError as error:
        assert victim.name in str(error) and len(str(error)) < 3000, error
        return damage, "message"
    assert isinstance(loaded, Config)
    return damage, "harmless"
