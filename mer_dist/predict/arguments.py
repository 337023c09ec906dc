"""What the command line says of predicting; light, since every command reads it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def of_predict(parser: ArgumentParser) -> None:
    parser.usage = "mer-dist predict [-h] MODEL [CLIPS] [--out FOLDER] [options]"
    parser.add_argument("model", type=Path, help="run folder or bundle")
    parser.add_argument(
        "clips",
        type=Path,
        nargs="?",
        help="a folder of media files, one file, or a CSV name,video,audio,transcript",
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="default: predictions")
    parser.add_argument("--transcripts", type=Path, help="CSV name,transcript")
    parser.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="SET=FOLDER",
        help="in place of clips: their features, as .npy files",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="where the base model of an extractor lies",
    )
    parser.add_argument(
        "--openface", type=Path, help="faces of the clips, of a model that learned from OpenFace's"
    )
    parser.add_argument(
        "--explain", action="store_true", help="also what each feature set alone says, and gate weights"
    )
    parser.add_argument(
        "--prior",
        choices=("none", "estimate"),
        default="none",
        help="estimate: correct for the class prior of all these clips together; an answer then depends on the others",
    )
    parser.add_argument(
        "--workers", type=int, help="processes that decode clips; default: one for each processor, up to 4"
    )
    parser.epilog = "example: mer-dist predict runs/mine new-clips --out predictions --transcripts new.csv"


def of_bundle(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--merged",
        action="store_true",
        help="fine-tuned extractors as whole models, which need no base model",
    )
    parser.epilog = "example: mer-dist bundle runs/mine my-model"
