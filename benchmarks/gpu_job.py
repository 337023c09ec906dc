"""The demo's whole job on the card: from mp4 files to the answer, and again with nothing left to do."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import cv2
from gpu import REPOSITORY, Check

from mer_dist.demo import corpus, models

#: Enough to pass through every part; the demo itself trains longer.
SHORT = [
    "run.processes=1",
    "run.folder=run",
    "extractors.clip.finetune.epochs=2",
    "extractors.baichuan.finetune.epochs=2",
    "self_train.rounds=1",
    "fuse.epochs=4",
    "fuse.seeds=1",
    "folds.count=2",
]
#: `mer-dist run` says so when it is done and some clips are in quarantine, as the demo's damaged ones should be.
QUARANTINED = 3


def step_job(check: Check) -> None:
    here = check.work / "job"
    here.mkdir(parents=True, exist_ok=True)
    job = [str(REPOSITORY / "configs" / "demo.yaml"), *SHORT]
    # Some machines have a release of OpenCV that finds no faces.
    job += [] if hasattr(cv2, "CascadeClassifier") else ["shard.faces=none"]
    corpus.make(here / "demo-data", labeled=60, unlabeled=40, workers=min(8, os.cpu_count() or 1))
    models.make(here / "demo-data" / "models")
    _call(check, here, "run", "run", *job)
    _call(check, here, "again", "run", *job)
    _call(check, here, "verify", "verify", "run")
    _call(check, here, "score", "score", "run", "demo-data/truth.csv")
    _call(check, here, "doctor", "doctor", *job)


def _call(check: Check, here: Path, name: str, *words: str) -> None:
    start = time.time()
    done = subprocess.run(
        [*check.command, *words],
        cwd=here,
        env=check.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (check.out / f"job-{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    fine = done.returncode in ((0, QUARANTINED) if name in ("run", "again") else (0,))
    said = {} if fine else {"said": (done.stdout + done.stderr)[-800:]}
    check.tell("job", what=name, fine=fine, code=done.returncode, seconds=time.time() - start, **said)
