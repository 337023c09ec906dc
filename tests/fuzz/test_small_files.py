"""Damaged tables, arrays, labels and adapters at the readers that meet them first."""

from __future__ import annotations

from pathlib import Path
from random import Random

import fusion_run
import numpy as np
import pytest
from conftest import cases
from media_files import write_csv

from fuzz.mutations import mutate
from fuzz.sandbox import Broken
from mer_dist.core.errors import UserError
from mer_dist.core.records import EMOTIONS
from mer_dist.corpus import manifest, mertools
from mer_dist.features import join, store
from mer_dist.features.store import FeatureSet
from mer_dist.interop.npy import import_npy
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run

#: Mutations of one test.
EACH = 25


def told(error: UserError, name: str) -> str:
    line = str(error)
    assert name in line and "\n" not in line and len(line) < 3000, line
    return "message"


def table(folder: Path, seed: str) -> str:
    """A manifest of a corpus and a label file, the same damage in both: every row is used or told of."""
    words = ["我说", "words", '说，"quoted",', "two\nlines"]
    rows = [[f"clip{row:02d}", "", "", words[row % 4], EMOTIONS[row % 6], ""] for row in range(20)]
    path = write_csv(folder / "all.csv", [["name", "video", "audio", "transcript", "label", "split"], *rows])
    before = path.read_bytes()
    _, content = mutate(before, ".csv", seed)
    path.write_bytes(content)
    try:
        clips, problems = manifest.clips(path, list(EMOTIONS))
        labels, bad = join.read_labels(path, list(EMOTIONS))
    except UserError as error:
        return told(error, path.name)
    assert all(problem.reason and problem.name for problem in [*problems, *bad])
    assert {clip.name for clip in clips} == labels.keys()
    # What stands on a line of its own and is like a row of before has not been swallowed.
    found = {clip.name for clip in clips} | {problem.name for problem in problems}
    after = set(content.splitlines())
    whole = [line for line in before.splitlines() if line.startswith(b"clip") and line in after]
    inside = " ".join(clip.transcript or "" for clip in clips)
    for name in (line.split(b",")[0].decode() for line in whole):
        assert name in found or name in inside, (seed, name, problems)
    return "quarantine" if problems else "harmless"


def arrays(folder: Path, seed: str) -> list[str]:
    """A folder of damaged .npy files is imported: each has a vector or a reason."""
    source, run = folder / "in", Run(folder / "run")
    source.mkdir(parents=True)
    np.save(source / "good.npy", np.ones((4, 8), np.float32))
    names = [f"clip{row:02d}" for row in range(EACH)]
    for name in names:
        shape = Random(f"{seed} {name}").choice([(8,), (3, 8)])
        np.save(source / "x.npy", np.random.default_rng(0).normal(size=shape).astype(np.float32))
        _, content = mutate((source / "x.npy").read_bytes(), ".npy", f"{seed} {name}")
        (source / f"{name}.npy").write_bytes(content)
    (source / "x.npy").unlink()
    import_npy(run, "line", "text", source)
    found = store.load(run.features("line"))
    lost = {row.name: row.reason for row in quarantine.read(run.quarantine)}
    assert all(lost.values()) and found.missing.keys() == lost.keys()
    assert {*found.names} | lost.keys() == {*names, "good"} and not {*found.names} & lost.keys()
    assert np.isfinite(found.utterance).all() and "good" in found.names
    return ["quarantine" if name in lost else "harmless" for name in names]


def labels(folder: Path, seed: str) -> str:
    """A damaged label file of the baseline, read as plain values or refused."""
    path = folder / "label.npz"
    entries = {f"样本{row}": {"emo": "happy", "val": np.float32(row)} for row in range(30)}
    np.savez(path, train_corpus=entries, test1_corpus={"b": {"emo": np.int64(3)}})
    _, content = mutate(path.read_bytes(), ".npz", seed)
    path.write_bytes(content)
    try:
        found = mertools.read_labels(path)
    except UserError as error:
        return told(error, path.name)
    plain(found)
    return "harmless"


def plain(value) -> None:
    assert isinstance(value, (dict, list, tuple, str, bytes, int, float, type(None))), type(value)
    for one in [*value.keys(), *value.values()] if isinstance(value, dict) else []:
        plain(one)


def embeddings(folder: Path, seed: str) -> str:
    """A damaged feature file, read for fusion: named, or its rows are numbers of the right clips."""
    run, names = Run(folder / "run"), fusion_run.names(12)
    values = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    path = run.features("voice") / "00000.safetensors"
    store.write_shard(
        path,
        FeatureSet(
            modality="audio",
            names=names,
            utterance=values,
            frame=np.repeat(values, 2, 0),
            offsets=2 * np.arange(13),
            missing={"lost": "too short"},
        ),
        "1",
    )
    store.describe(run.features("voice"), modality="audio", width=4)
    _, content = mutate(path.read_bytes(), path.suffix, seed)
    path.write_bytes(content)
    clips = join.Clips(
        labels=["a", "b"], names=names, truth=np.arange(12) % 2, fold=np.arange(12) % 3, folds=3
    )
    try:
        found, problems = join.read_set(run, "voice", clips, frames=True)
    except UserError as error:
        return told(error, "voice")
    found.tokens(names, 2)
    usable, mask = found.utterances(names)
    assert np.isfinite(usable).all() and mask.sum() + len(problems) <= 12
    return "quarantine" if problems else "harmless"


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(short=1, long=8))
@pytest.mark.parametrize("kind", ["csv", "npz", "safetensors", "npy"])
def test_damage_is_named_or_costs_its_clips(tmp_path, sandbox, count, kind, seed):
    function = {"csv": table, "npz": labels, "safetensors": embeddings}.get(kind)
    outcomes, broken = [], []
    if kind == "npy":
        outcomes = sandbox.call(arrays, tmp_path, str(seed))
    for number in range(EACH if function else 0):
        try:
            folder = tmp_path / str(number)
            folder.mkdir()
            outcomes.append(sandbox.call(function, folder, f"{seed} {number}", seconds=30))
        except Broken as error:
            broken.append(f"{seed} {number}\n{error}")
    assert not broken, "\n".join(broken)
    count(kind, outcomes)
