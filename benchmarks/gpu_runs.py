"""The configurations that the GPU check runs: published models, the settings that are shipped, drawn clips."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gpu import Check

#: As configs/mer2024/baichuan-lora-1node.yaml trains, without a copy for each fold.
LORA = {"rank": 16, "alpha": 32, "targets": "[W_pack]"}
TRAINING = {
    "method": "lora",
    "epochs": 2,
    "cross_fit": "false",
    "precision": "bf16",
    "label_smoothing": 0.1,
    "lora": f"{{{', '.join(f'{key}: {value}' for key, value in LORA.items())}}}",
}
#: Passes that are counted in clips, as a small card would need them.
BY_CLIPS = {"micro_batch": 4}


def runs(check: Check) -> dict[str, Path]:
    """Name -> YAML file of a run below ``check.work``; its folder holds the drawn shards."""
    models = check.work / "models"
    text = {"family": "baichuan", "path": models / "baichuan", "precision": "bf16", "max_tokens": 128}
    frames = {"family": "clip", "path": models / "clip", "frames": 8}
    sound = {"family": "hubert", "path": models / "hubert"}
    training = TRAINING | {"batch": 8 if check.tiny else 32}
    of_frames = {key: value for key, value in training.items() if key != "lora"}
    # Without it a GPU sums in any order, and no two trainings are the same.
    same = of_frames | {"deterministic": "true"}
    copies = of_frames | {"cross_fit": "true", "epochs": 1}
    nf4 = {"quantize": "nf4"}
    given = {
        "extract_text": ("lines", text, None, 0.0),
        "extract_nf4": ("lines", text | nf4, None, 0.0),
        "extract_frames": ("clips", frames, None, 0.0),
        "extract_sound": ("clips", sound, None, 0.0),
        "train_text": ("lines", text, training, 0.0),
        "train_by_clips": ("lines", text, training | BY_CLIPS, 0.0),
        "train_zero3": ("lines", text, training, 0.0),
        "train_nf4": ("lines", text | nf4, training | {"gradient_checkpointing": "true"}, 0.0),
        "train_whole": ("clips", frames, same, 0.02),
        "train_kill": ("clips", frames, same, 0.02),
        "train_copies": ("clips", frames, copies, 0.0),
    }
    return {name: _run(check, name, *facts) for name, facts in given.items()}


def _run(check: Check, name: str, kind: str, extractor: dict, training: dict | None, minutes: float) -> Path:
    folder = check.work / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "shards").symlink_to(check.work / kind / "shards")
    rows = [
        f"run: {{folder: {folder}, processes: 1, threads: 4, checkpoint_minutes: {minutes}}}",
        f"corpus: {{format: manifest, path: {check.work}/drawn.csv, labels: [happy, sad]}}",
        "folds: {count: 2}",
        "extract: {frame_level: false, anchors: 8}",
        "extractors:",
        f"  {extractor['family']}:",
        *(f"    {key}: {value}" for key, value in extractor.items()),
    ]
    if training:
        rows.append(f"    finetune: {{{', '.join(f'{key}: {value}' for key, value in training.items())}}}")
    path = check.work / "runs" / f"{name}.yaml"
    path.write_text("\n".join(rows) + "\n")
    return path
