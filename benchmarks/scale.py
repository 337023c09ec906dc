"""What each step that touches all clips costs by the number of clips. ::

    python benchmarks/scale.py --clips 1000 10000 100000 --out runs/scale

Makes a corpus of transcripts, 5 % of them labelled, and three imported feature sets of narrow vectors, and calls every
command on it as a user does, in a process of its own: ``shard``, ``import-features``, ``extract`` of a very small
Baichuan, ``fuse`` (one linear model, one round), each of them once more with nothing to do, ``verify``, ``report``,
``explain``, ``score`` and ``status``. Prints CPU seconds and the peak of memory, and what a clip costs.

With ``--without-stages`` shards and features are written by the library, without a corpus, tars or models; then
the commands that need none of these are called. So a million clips take minutes.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import LABELED, UNLABELED
from mer_dist.features import store
from mer_dist.shards import shard_index
from mer_dist.shards.settings import settings_fingerprint
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run, ShardFolder

LABELS = ("angry", "happy", "neutral", "sad", "surprise", "worried")
#: One labelled clip in so many.
LABELED_EVERY = 20
#: Imported set -> its modality.
SETS = {"sound": "audio", "face": "video", "line": "text"}
WIDTH = 16
CLIPS_PER_SHARD = 1000
JOB = """
run: {{folder: {folder}/run}}
corpus: {{format: manifest, path: {folder}/corpus.csv, labels: [{labels}]}}
shard: {{clips: 1000}}
folds: {{count: 2}}
{extractors}
fuse: {{{sets}model: linear, epochs: 1, seeds: 1, dropout: [0.1]}}
self_train: {{rounds: 1}}
"""
TEXT = "extractors: {{baichuan: {{family: baichuan, path: {folder}/models/baichuan}}}}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float
    mebibytes: float


def names(clips: int) -> list[str]:
    """As the challenge names its own."""
    return [f"sample_{row:08d}" for row in range(clips)]


def label(row: int) -> str | None:
    """Of a labelled clip; another in the truth of the others."""
    return LABELS[row // LABELED_EVERY % len(LABELS)] if row % LABELED_EVERY == 0 else None


#: Runs mer-dist, and leaves the peak of the process's own memory. What the kernel hands to whoever waits for it
#: counts that of the process that started it, too.
COMMAND = """
import sys
from pathlib import Path
from mer_dist.cli import main
code = main(sys.argv[2:])
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
Path(sys.argv[1]).write_text(peak.split()[1])
sys.exit(code)
"""


def measured(folder: Path, *words: str) -> Cost:
    """A command of mer-dist: CPU seconds of it and its children, and the peak of its own memory.

    Raises:
        RuntimeError: it failed.
    """
    peak = folder / "peak.txt"
    with open(folder / "said.txt", "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(peak), *words], stdout=said, stderr=said, cwd=folder
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"mer-dist {' '.join(words)} ended with {process.returncode}: {folder}/said.txt")
    return Cost(seconds=used.ru_utime + used.ru_stime, mebibytes=int(peak.read_text()) / 1024)


def write_corpus(folder: Path, clips: int) -> None:
    """The table of the clips, the truth of the unlabelled ones, and three folders of vectors."""
    random = np.random.default_rng(0)
    with open(folder / "corpus.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "transcript", "label", "split"])
        for row, name in enumerate(names(clips)):
            rows.writerow([name, f"这是第{row}句话", label(row) or "", LABELED if label(row) else UNLABELED])
    _write_truth(folder, clips)
    for set_name in SETS:
        (folder / "vectors" / set_name).mkdir(parents=True)
        values = random.normal(size=(clips, WIDTH)).astype(np.float32)
        for name, vector in zip(names(clips), values, strict=True):
            np.save(folder / "vectors" / set_name / f"{name}.npy", vector)


def _write_truth(folder: Path, clips: int) -> None:
    rows = [
        f"{name},{LABELS[row % len(LABELS)]}\n" for row, name in enumerate(names(clips)) if not label(row)
    ]
    files.write_text(folder / "truth.csv", "name,discrete\n" + "".join(rows))


def write_run(folder: Path, clips: int) -> None:
    """Index and feature sets of a run, as the stages would have left them."""
    random, run = np.random.default_rng(0), Run(folder / "run")
    rows = [_row(row, name) for row, name in enumerate(names(clips))]
    run.shards.mkdir(parents=True)
    for start in range(0, clips, CLIPS_PER_SHARD):
        own, number = rows[start : start + CLIPS_PER_SHARD], start // CLIPS_PER_SHARD
        facts = shard_index.ShardRecord(
            sha256=f"{number:064x}",
            bytes=0,
            fingerprint=settings_fingerprint(ShardConfig(clips=CLIPS_PER_SHARD)),
            clips=dict.fromkeys((row.name for row in own), "scale"),
            problems=[],
            faceless=0,
        )
        shard_index.write_rows(ShardFolder(run.shards).record(number), own, facts)
    shard_index.write(run.shards, shard_index.join(run.shards, shard_index.numbers(run.shards)))
    shard_index.write_unstored(run.shards, {})
    shard_index.write_twins(run.shards, [])
    files.write_marker(run.shards, "scale", clips=clips)
    for set_name, modality in SETS.items():
        with files.atomic_folder(run.features(set_name)) as target:
            for number, start in enumerate(range(0, clips, CLIPS_PER_SHARD)):
                own = names(clips)[start : start + CLIPS_PER_SHARD]
                embeddings = random.normal(size=(len(own), WIDTH)).astype(np.float32)
                shard = store.FeatureSet(modality=modality, names=own, utterance=embeddings)
                store.write_shard(target / f"{number:05d}.safetensors", shard, "scale")
            store.describe(
                target, modality=modality, width=WIDTH, imported=True, variant="imported", held_out_fold=None
            )
            files.write_marker(target, "scale", clips=clips, shards=[*range(number + 1)])
    _write_truth(folder, clips)


def _row(row: int, name: str) -> shard_index.Row:
    return shard_index.Row(
        name=name,
        shard=row // CLIPS_PER_SHARD,
        split=LABELED if label(row) else UNLABELED,
        label=label(row),
        transcript=f"这是第{row}句话",
        duration=0.0,
        missing=["audio", "video"],
        frames=0,
        samples=0,
        checksum=f"{row:064x}",
        members={"json": (512, 200)},
    )


def through_the_stages(folder: Path, clips: int) -> dict[str, Cost]:
    """Step -> its cost, from a corpus to the report."""
    from mer_dist.demo import models

    write_corpus(folder, clips)
    models.make(folder / "models")
    job, run = str(folder / "job.yaml"), str(folder / "run")
    write_job(folder, extracting=True)
    imported = [
        "import-features",
        run,
        "vectors",
        *(f"--modality={name}={kind}" for name, kind in SETS.items()),
    ]
    again = ", nothing to do"
    found = {"shard": measured(folder, "shard", job), f"shard{again}": measured(folder, "shard", job)}
    found["import of three sets"] = measured(folder, *imported)
    found |= {
        "extract": measured(folder, "extract", job),
        f"extract{again}": measured(folder, "extract", job),
    }
    return found | answered(folder)


def without_stages(folder: Path, clips: int) -> dict[str, Cost]:
    """Step -> its cost, of those that need neither media nor models."""
    write_run(folder, clips)
    write_job(folder, extracting=False)
    return answered(folder, verified=False)


def write_job(folder: Path, *, extracting: bool) -> None:
    text = JOB.format(
        folder=folder,
        labels=", ".join(LABELS),
        extractors=TEXT.format(folder=folder) if extracting else "",
        sets=f"sets: [{', '.join(SETS)}], ",
    )
    files.write_text(folder / "job.yaml", text)


def answered(folder: Path, *, verified: bool = True) -> dict[str, Cost]:
    """Fusion and all that looks at its results."""
    job, run, name = str(folder / "job.yaml"), str(folder / "run"), names(2)[1]
    found = {"fuse": measured(folder, "fuse", job), "fuse, nothing to do": measured(folder, "fuse", job)}
    if verified:
        found["verify"] = measured(folder, "verify", run)
    found["report"] = measured(folder, "report", run)
    found["explain"] = measured(folder, "explain", run, name)
    found["score against a truth"] = measured(folder, "score", run, str(folder / "truth.csv"))
    found["status"] = measured(folder, "status", run, "fuse")
    return found


def table(costs: dict[int, dict[str, Cost]]) -> str:
    """A row for each step: CPU seconds and peak of memory by number of clips."""
    steps = list(dict.fromkeys(step for own in costs.values() for step in own))
    lines = [
        f"| CPU s / peak MiB | {' | '.join(f'{clips:,}' for clips in costs)} |",
        "|---" * (1 + len(costs)) + "|",
    ]
    for step in steps:
        cells = [own.get(step) for own in costs.values()]
        told = (f"{one.seconds:.1f} / {one.mebibytes:.0f}" if one else "" for one in cells)
        lines.append(f"| {step} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    parser.add_argument("--without-stages", action="store_true", help="neither corpus, tars nor models")
    parsed = parser.parse_args()
    costs = {}
    for clips in parsed.clips:
        folder = (parsed.out / str(clips)).absolute()
        folder.mkdir(parents=True)
        costs[clips] = (without_stages if parsed.without_stages else through_the_stages)(folder, clips)
    print(table(costs))


if __name__ == "__main__":
    main()
