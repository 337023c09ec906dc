"""A training that was stopped, and the copy that it ends with; one file damaged, and what then is made."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import torch
import underway

from fuzz.mutations import mutate
from mer_dist.core.errors import UserError
from mer_dist.report.page import report
from mer_dist.stages.extract import extract
from mer_dist.stages.finetune import finetune
from mer_dist.storage.files import digest
from mer_dist.storage.run_folder import Run
from mer_dist.training.checkpoint import trained_weights

#: kind -> where its files lie below the checkpoints of the copy.
UNDERWAY = {"pt": "step-*/*.pt", "mark": "*/complete.json", "best": "best-*/*"}
FEATURES = "clip@all"


def build(folder: Path) -> None:
    """``stopped`` is the run folder with two checkpoints, ``run`` the same when all is done."""
    job = underway.make(folder)
    config = underway.load(job)
    shutil.copytree(config.run.folder, folder / "stopped")
    finetune(config)
    extract(config)


def go_on(base: Path, folder: Path, kind: str, seed: str) -> tuple[str, str]:
    """Damage a file of the training, go on with it, and compare with the undisturbed copy."""
    shutil.copytree(base / "stopped", folder)
    run = Run(folder)
    victims = sorted(underway.checkpoints(run).glob(UNDERWAY[kind]))
    what, victim, changed = damage(victims, seed)
    if not changed:
        return what, "harmless"
    if kind == "pt":
        exported = line_of(lambda: trained_weights(victim.parent, torch.float32))
        assert exported and str(victim.parent) in exported, f"{what}: exported all the same"
    message = line_of(lambda: finetune(underway.load(base / "job.yaml", f"run.folder={folder}")))
    if message:
        assert str(victim.parent) in message, f"{what}: {message}"
        return what, "message"
    same(what, underway.adapter(run), underway.adapter(Run(base / "run")))
    return what, "harmless" if kind == "mark" else "made again"


def use(base: Path, folder: Path, seed: str) -> tuple[str, str]:
    """Damage a file of the finished copy, make features with it, and compare them."""
    shutil.copytree(base / "run", folder)
    run = Run(folder)
    shutil.rmtree(run.features(FEATURES))
    victims = sorted(path for path in underway.adapter(run).iterdir() if path.suffix != ".md")
    what, victim, changed = damage(victims, seed)
    report(run.folder)
    assert run.report.stat().st_size > 1000
    message = line_of(lambda: extract(underway.load(base / "job.yaml", f"run.folder={folder}")))
    if message:
        assert changed and str(victim.parent) in message, f"{what}: {message}"
        return what, "message"
    same(what, run.features(FEATURES), Run(base / "run").features(FEATURES))
    assert not changed or victim.name == "complete.json", f"{what}: not seen"
    return what, "harmless"


def damage(victims: list[Path], seed: str) -> tuple[str, Path, bool]:
    """What was done to which of them, and whether its bytes are others now."""
    victim = Random(seed).choice(victims)
    before = victim.read_bytes()
    kind, content = mutate(before, victim.suffix, seed)
    victim.unlink()  # it may be a link
    victim.write_bytes(content)
    return f"{kind} {victim.parent.name}/{victim.name}", victim, content != before


def line_of(act) -> str:
    """The one line with which it ends; empty if it does not."""
    try:
        act()
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 3000, line
        return line
    return ""


def same(what: str, made: Path, wanted: Path) -> None:
    """All but the mark, which may tell of other processes."""
    for path in wanted.iterdir():
        if path.name != "complete.json":
            assert digest(made / path.name) == digest(path), f"{what}: {path.name} is another"
