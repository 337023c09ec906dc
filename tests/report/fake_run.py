"""A small run folder as the stages leave it, written through the real writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.config import config
from mer_dist.core import metrics
from mer_dist.core.records import LABELED, UNLABELED, Clip, Problem
from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.shards import writer
from mer_dist.shards.encode import Encoded, encode
from mer_dist.storage import files, parquet, quarantine, timings
from mer_dist.storage.run_folder import Run

LABELS = ["neutral", "angry", "happy", "sad", "worried", "惊讶 surprise"]
HOSTILE = "<script>document.title='owned'</script>"
LABELED_SHARE = [0.22, 0.20, 0.20, 0.14, 0.14, 0.10]
UNLABELED_SHARE = [0.35, 0.12, 0.25, 0.10, 0.12, 0.06]
ROWS = (
    ("linear_probes/face", "CLIP frames, frozen", 0.55),
    ("linear_probes/face@tuned", "CLIP frames, fine-tuned", 0.68),
    ("linear_probes/line", "Baichuan transcript, frozen", 0.52),
    ("linear_probes/line@tuned", "Baichuan transcript, fine-tuned", 0.66),
    ("linear_probes/voice", "HuBERT audio, frozen", 0.62),
    ("rounds/00/predictions", "AGT, three modalities", 0.83),
    ("rounds/01/predictions", "AGT after self-training, round 1", 0.855),
    ("rounds/02/predictions", "AGT after self-training, round 2", 0.850),
    ("vote/predictions", "Vote with the estimated label prior", 0.88),
)

CONFIG = """
run: {folder: demo, processes: 2}
corpus: {path: demo-data, labels: [neutral, angry, happy, sad, worried, 惊讶 surprise]}
folds: {count: 3}
extractors:
  face: {family: clip, path: models/clip, finetune: {epochs: 6}}
  line: {family: baichuan, path: models/baichuan, finetune: {epochs: 6}}
  voice: {family: hubert, path: models/hubert}
"""


def build(folder: Path) -> Run:
    """The whole run, finished."""
    run = Run(folder)
    run.folder.mkdir(parents=True)
    source = folder.parent / "job.yaml"
    source.write_text(CONFIG, encoding="utf-8")
    config.save(config.load(source), run.config)
    names, truth = write_shards(run)
    write_training(run)
    write_predictions(run, names, truth)
    return run


def write_shards(run: Run, labeled=240, unlabeled=400) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(0)
    names = [f"sample_{row:05d}" for row in range(labeled + unlabeled)]
    names[3] = HOSTILE
    truth = np.concatenate(
        [random.choice(6, labeled, p=LABELED_SHARE), random.choice(6, unlabeled, p=UNLABELED_SHARE)]
    )
    missing = [["video"] if row % 61 == 0 else ["text"] if row % 97 == 0 else [] for row in range(len(names))]
    columns = {
        "name": names,
        "shard": [row // 100 for row in range(len(names))],
        "split": [LABELED] * labeled + [UNLABELED] * unlabeled,
        "label": [LABELS[row] for row in truth[:labeled]] + [None] * unlabeled,
        "transcript": [f"{HOSTILE} 你好"] * len(names),
        "duration": random.uniform(2, 4, len(names)).tolist(),
        "missing": pa.array(missing, pa.list_(pa.string())),
        **{key: [0] * len(names) for key in ("frames", "samples")},
        "checksum": [""] * len(names),
        **{key: [[]] * len(names) for key in ("suffixes", "offsets", "sizes")},
    }
    with files.atomic(run.shards / "index.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
    files.write_json(run.shards / "stats.json", {"clips": len(names), "bytes": 123456789})
    quarantine.replace(
        run.quarantine,
        "shard",
        [
            Problem(stage="shard", name=HOSTILE, lost="video", reason="no video stream"),
            Problem(
                stage="shard",
                name="sample_torn",
                lost="clip",
                reason="moov atom not found: the file ends after 1,024 of 88,431 bytes",
            ),
            Problem(stage="shard", name="样本_00061", lost="video", reason="无视频 (no video stream)"),
            Problem(stage="shard", name="sample_00122", lost="audio", reason="no audio stream"),
        ],
    )
    quarantine.replace(
        run.quarantine,
        "extract",
        [Problem(stage="extract", name="sample_00200", lost="audio", reason="398 samples")],
    )
    files.write_marker(run.shards, "5d41402abc4b2a76", clips=len(names))
    timings.note(run, "shard", run.shards, seconds=41.3, clips=len(names))
    return names, truth


def store_media(run: Run) -> None:
    """Tars of the clips in the index. Clip ``row`` is grey of level ``30 + row % 200`` and hums at ``200 + row`` Hz."""
    index = parquet.read(run.shards / "index.parquet", ["name", "shard", "missing"]).to_pylist()
    batches: dict[int, list[Encoded]] = {}
    for row, known in enumerate(index):
        clip = Clip(
            name=known["name"],
            video=None,
            audio=None,
            transcript=f"{HOSTILE} 你好",
            label=None,
            split=LABELED,
        )
        wave = 9000 * np.sin(2 * np.pi * (200 + row) * np.arange(1600) / 16_000)
        batches.setdefault(known["shard"], []).append(
            encode(
                clip,
                frames=[]
                if "video" in known["missing"]
                else [np.full((16, 16, 3), grey_of(row), np.uint8)] * 5,
                samples=wave.astype(np.int16),
                seconds=0.1,
                face=True,
                missing=known["missing"],
                problems=[],
            )
        )
    for number, batch in batches.items():
        sources = {one.clip.name: "" for one in batch}
        writer.write(run.shards, number, batch, fingerprint="", sources=sources)


def grey_of(row: int) -> int:
    return 30 + row % 200


def write_training(run: Run) -> None:
    random = np.random.default_rng(1)
    for extractor, gain in (("face", 0.5), ("line", 0.4)):
        for part in ("fold-0", "fold-1", "fold-2", "all"):
            epochs = [
                {
                    "epoch": epoch,
                    "train_loss": 1.79 * np.exp(-gain * epoch) + random.normal(0, 0.02),
                    "validation_loss": 1.2 * np.exp(-gain * epoch)
                    + 0.55
                    + 0.03 * epoch
                    + random.normal(0, 0.03),
                    "validation_waf": 0.74 - 0.5 * np.exp(-gain * epoch) + random.normal(0, 0.015),
                }
                for epoch in range(1, 7)
            ]
            best = max(epochs, key=lambda epoch: epoch["validation_waf"])["epoch"]
            folder = run.adapter(extractor, part)
            files.write_json(folder / "history.json", {"epochs": epochs, "best_epoch": best})
            files.write_marker(folder, "7d793037a0760186")
            timings.note(run, "finetune", folder, seconds=27.5, clips=160)
    for number, name in enumerate(("face", "face@all", "line", "line@all", "voice")):
        files.write_marker(run.features(name), "9b74c9897bac770f", clips=640)
        timings.note(run, "extract", run.features(name), seconds=3.5 + 2 * number, clips=640)


def write_predictions(run: Run, names: list[str], truth: np.ndarray) -> None:
    random = np.random.default_rng(2)
    labeled = np.arange(len(names)) < 240
    scores = []
    for path, title, right in ROWS:
        odds = (
            random.gumbel(size=(len(names), 6))
            + 6 * np.eye(6)[truth] * (random.random(len(names)) < right)[:, None]
        )
        odds[:, 1] += 0.4 * (truth == 4)
        probability = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
        made = Predictions(
            title=title,
            labels=LABELS,
            names=names,
            labeled=labeled,
            fold=np.where(labeled, np.arange(len(names)) % 3, -1),
            probability=probability,
            answer=probability.argmax(1),
        )
        predictions.write(run.folder / f"{path}.parquet", made)
        scores.append(score(made, truth, labeled))
    files.write_json(run.scores, scores)
    write_rounds(run, names, random)
    write_vote(run, names, truth)


def write_rounds(run: Run, names: list[str], random: np.random.Generator) -> None:
    for number in range(3):
        curves = [
            {
                "fold": fold,
                "train_loss": (
                    1.7 * np.exp(-np.arange(40) / (9 - 2 * number)) + 0.42 + random.normal(0, 0.03, 40)
                ).tolist(),
                "waf": (
                    0.84 + 0.01 * number - 0.5 * np.exp(-np.arange(40) / 7) + random.normal(0, 0.012, 40)
                ).tolist(),
            }
            for fold in range(3)
        ]
        files.write_json(run.round(number).curves, {"folds": curves})
        if number:
            taken = names[240 : 240 + 100 * number]
            rows = pa.table(
                {"name": [*taken, *taken, names[-1]], "selected": [True] * 2 * len(taken) + [False]}
            )
            pq.write_table(rows, run.round(number).pseudo_label_log)
        files.write_marker(run.round(number).folder, "1f3870be274f6c49", clips=240)
        timings.note(run, "fuse", run.round(number).folder, seconds=21.0 + number, clips=240)


def write_vote(run: Run, names: list[str], truth: np.ndarray) -> None:
    files.write_json(
        run.vote.prior,
        {
            "labels": LABELS,
            "labeled": LABELED_SHARE,
            "estimated": {
                "em": [0.34, 0.13, 0.24, 0.11, 0.12, 0.06],
                "bbse": [0.36, 0.11, 0.26, 0.09, 0.13, 0.05],
            },
            "intervals": {"em": [[0.29, 0.1, 0.2, 0.08, 0.09, 0.03], [0.39, 0.16, 0.28, 0.14, 0.15, 0.09]]},
            "origin": "estimate",
            "tried": [0.35, 0.12, 0.25, 0.1, 0.12, 0.06],
            "applied": True,
            "decided_by": "gate",
            "answered_by": "expected WAF, as a correction is applied",
            "reason": "EM and BBSE agree within 0.02",
            "teachers": {HOSTILE: {"labeled": 180, "unlabeled": 390, "weight": 0.61}},
        },
    )
    row = f'"{HOSTILE}",neutral,happy,0.912,"{HOSTILE}"'
    files.write_text(run.vote.disputed, f"name,label,instead,probability,teacher\n{row}\n")
    files.write_marker(run.vote.folder, "e4d909c290d0fb1c", clips=640)
    timings.note(run, "fuse", run.vote.folder, seconds=0.4, clips=640)
    rows = "".join(f'"{name}",{LABELS[label]}\n' for name, label in zip(names, truth, strict=True))
    files.write_text(run.answer, f"name,discrete\n{rows}")


def score(made: Predictions, truth: np.ndarray, labeled: np.ndarray) -> dict:
    return {
        "title": made.title,
        "oof_waf": metrics.waf(truth[labeled], made.answer[labeled]),
        "oof_interval": metrics.waf_interval(truth[labeled], made.answer[labeled]),
        "waf": metrics.waf(truth[~labeled], made.answer[~labeled]),
        "interval": metrics.waf_interval(truth[~labeled], made.answer[~labeled]),
    }
