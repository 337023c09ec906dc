"""MELD: what a small Baichuan learns from real transcripts, beside TF-IDF and the majority class.

The model starts from random weights; its tokenizer is trained on the lines of the train split.
Labelled clips are the train split, unlabelled ones are val and test. The epoch is chosen on a part
held out of train; settings are chosen with ``--validate``, which scores val and never test. ::

    python benchmarks/meld.py ../shared/data/meld --out runs/meld --seed 0
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_dist.config import config as configuration
from mer_dist.core import metrics
from mer_dist.core.errors import QUARANTINED
from mer_dist.core.log import logger, setup
from mer_dist.core.records import LABELED, UNLABELED
from mer_dist.corpus import manifest, mertools, table
from mer_dist.features import store
from mer_dist.processes import env
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "meld.yaml"
#: What the numbers 0 to 6 of the label file stand for.
EMOTIONS = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
SPLITS = ("train", "val", "test")
VOCABULARY = 3000
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Split:
    """One of MELD's three parts."""

    names: list[str]
    lines: list[str]
    #: (N,) index into :data:`EMOTIONS`.
    truth: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with transcription.csv and label.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/meld"))
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and the hold-out")
    parser.add_argument("--validate", action="store_true", help="score val alone, to choose settings by")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of mer-dist")
    parsed = parser.parse_intermixed_args()
    setup("meld")
    splits = read(parsed.data)
    write_corpus(splits, parsed.out / "corpus.csv")
    write_model(splits["train"].lines, parsed.out / "model", parsed.seed)
    overrides = [f"run.folder={parsed.out}", f"run.seed={parsed.seed}", *parsed.overrides]
    train(overrides)
    config = configuration.load(CONFIG, overrides)
    for part in ("val",) if parsed.validate else ("val", "test"):
        print(f"MELD {part}, seed {parsed.seed}: weighted F1 in %, 95 % bootstrap interval")
        for title, answer in answers(splits, part, config).items():
            figure = metrics.waf(splits[part].truth, answer)
            low, high = metrics.waf_interval(splits[part].truth, answer)
            print(f"{title:50}{100 * figure:6.2f}  ({100 * low:.2f} to {100 * high:.2f})")


def read(data: Path) -> dict[str, Split]:
    """The Chinese transcripts and the labels by split, in the order of the label file."""
    rows = table.read(data / "transcription.csv", ("name", "chinese")).rows
    corpora = mertools.read_labels(data / "label.npz")
    splits = {}
    for part in SPLITS:
        labels = corpora[f"{part}_corpus"]
        splits[part] = Split(
            names=list(labels),
            lines=[rows[name]["chinese"] for name in labels],
            truth=np.array([label["emo"] for label in labels.values()]),
        )
    return splits


def write_corpus(splits: dict[str, Split], path: Path) -> None:
    """The manifest: train labelled; val and test unlabelled, so that no stage sees their labels."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(manifest.COLUMNS)
    for part, split in splits.items():
        labeled = part == "train"
        for name, line, emotion in zip(split.names, split.lines, split.truth, strict=True):
            label = EMOTIONS[emotion] if labeled else ""
            writer.writerow([name, "", "", line, label, LABELED if labeled else UNLABELED])
    files.write_text(path, text.getvalue())


def write_model(lines: list[str], folder: Path, seed: int) -> None:
    """A small Baichuan with random weights and a tokenizer of these lines, in the published layout."""
    import torch
    from transformers.utils import logging

    from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
    from mer_dist.models.tokenizer import BaichuanTokenizer

    logging.disable_progress_bar()
    fingerprint = files.fingerprint_of([lines, seed, VOCABULARY, SIZES])
    if files.read_marker(folder, fingerprint):
        return
    with files.atomic_folder(folder) as temporary:
        tokenizer = BaichuanTokenizer.train(lines, VOCABULARY)
        tokenizer.save_pretrained(temporary)
        torch.manual_seed(seed)
        model = BaichuanForCausalLM(
            BaichuanConfig(
                vocab_size=len(tokenizer),
                model_max_length=512,
                initializer_range=0.05,
                use_cache=False,
                architectures=["BaichuanForCausalLM"],
                **SIZES,
            )
        )
        model.save_pretrained(temporary)
        files.write_marker(temporary, fingerprint)
    trained = sum(weight.numel() for weight in model.model.parameters())
    logger.info("the model to train: %d pieces, %d parameters", len(tokenizer), trained)


def train(overrides: list[str]) -> None:
    """Shards, fine-tuning under ZeRO-3 with two processes, and features, by the real commands."""
    mer_dist = ["-m", "mer_dist"]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch" / "zero3-cpu.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        str(env.free_port()),
    ]
    for stage, start in (("shard", mer_dist), ("finetune", launch + mer_dist), ("extract", mer_dist)):
        started = time.monotonic()
        command = [sys.executable, *start, stage, str(CONFIG), *overrides]
        done = subprocess.run(command, env=env.for_children(1), check=False)
        # Every clip lacks sound and frames, which the shard stage notes in quarantine.
        if done.returncode not in (0, QUARANTINED):
            sys.exit(done.returncode)
        logger.info("%s: %.0f s", stage, time.monotonic() - started)


def answers(splits: dict[str, Split], part: str, config: configuration.Config) -> dict[str, np.ndarray]:
    """What each way answers for the clips of ``part``; all have learned from train alone."""
    learned, asked = splits["train"], splits[part]
    majority = np.bincount(learned.truth).argmax()
    return {
        "majority class": np.full(len(asked.truth), majority),
        "TF-IDF of 1 to 3 characters, logistic regression": by_tfidf(learned, asked.lines),
        "small Baichuan from random weights": by_baichuan(asked.names, Run(config.run.folder)),
    }


def by_tfidf(learned: Split, lines: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3)), LogisticRegression(C=3, max_iter=1000)
    )
    return model.fit(learned.lines, learned.truth).predict(lines)


def by_baichuan(names: list[str], run: Run) -> np.ndarray:
    """The fine-tuned head on the extracted vectors, normalised as in training."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    embeddings, valid = store.load(run.features("text@all")).utterances(names)
    if not valid.all():
        raise ValueError(f"{(~valid).sum()} clips have no features")
    head = load_file(run.adapter("text", "all") / "head.safetensors")
    utterance = F.layer_norm(torch.from_numpy(embeddings), embeddings.shape[1:])
    return (utterance @ head["head.weight"].T + head["head.bias"]).argmax(1).numpy()


if __name__ == "__main__":
    main()
