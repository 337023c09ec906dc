"""What each command is called with: its arguments, their help, and an example."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

from mer_dist import __version__
from mer_dist.config.slurm import STAGES as SLURM_STAGES
from mer_dist.inspect import problems
from mer_dist.storage import files

STAGES = {
    "shard": "clips to WebDataset shards",
    "finetune": "fine-tune extractors, alone or under accelerate launch",
    "extract": "shards to features, alone or under accelerate launch",
    "fuse": "features to AGT, self-training rounds, vote and answer.csv",
    "run": "all stages in order, skipping what is done",
}
#: Makes the parser of a command from its name, its purpose, and what its example has behind the name.
Command = Callable[[str, str, str], ArgumentParser]


def parser() -> ArgumentParser:
    top = ArgumentParser(
        prog="mer-dist", description="Commands of mer-dist: stages, checks, exports and batch jobs."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, example: str) -> ArgumentParser:
        return _added(commands, name, text, f"{name} {example}")

    _stages(command)
    _before_a_run(command)
    _on_a_run(command)
    _on_a_cluster(command)
    _on_files(command)
    _on_features(command)
    _predict(command)
    _export(command)
    return top


def of_each_command(top: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parser of every command by its words, as ``config copy``, in the order of the help."""
    found = {}
    for action in top._actions:
        if isinstance(action, _SubParsersAction):
            for name, parser in action.choices.items():
                found[name] = parser
                found |= {f"{name} {words}": below for words, below in of_each_command(parser).items()}
    return found


def _added(commands: _SubParsersAction, name: str, text: str, example: str) -> ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: mer-dist {example}",
        formatter_class=RawDescriptionHelpFormatter,
    )


def _takes_config(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any number, as fuse.epochs=20")


def _takes_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")


def _stages(command: Command) -> None:
    examples = {"fuse": "job.yaml fuse.epochs=60", "run": "job.yaml run.processes=4"}
    for name, text in STAGES.items():
        stage = command(name, text, examples.get(name, "job.yaml"))
        if name in ("shard", "run"):
            stage.epilog = f"{textwrap.fill(files.UNCHANGED, 80)}\n\n{stage.epilog}"
        _takes_config(stage)


def _before_a_run(command: Command) -> None:
    plan = command(
        "plan",
        "what a run needs: memory, GPUs, shards, disk; reads only config files",
        "job.yaml --clips 20000",
    )
    _takes_config(plan)
    plan.add_argument("--clips", type=int, help="number of clips, if the corpus is not here")
    plan.add_argument("--json", action="store_true", help="every figure, in bytes")
    _takes_config(
        command("doctor", "whether this machine and these files are ready: one line per check", "job.yaml")
    )
    keys = command("keys", "every key of a configuration: type, limits, default, meaning", "fuse")
    keys.add_argument("section", nargs="?", default="", help="as fuse, extractors or run.seed; default: all")
    demo = command("demo", "generate the demo corpus and its small models", "demo-data")
    demo.add_argument("folder", type=Path)
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--models-only", action="store_true", help="the models, without the corpus")


def _on_a_run(command: Command) -> None:
    _takes_run(command("verify", "prove that no clip was lost between the stages", "runs/mine"))
    report = command("report", "write report.html", "runs/mine --clips 12 --sound link")
    _takes_run(report)
    report.add_argument("--clips", type=int, help="in place of report.clips")
    report.add_argument("--sound", help="embed, link or none, in place of report.sound")
    status = command("status", "exit with the code of a stage", "runs/mine finetune")
    _takes_run(status)
    status.add_argument("stage", choices=tuple(STAGES))
    score = command("score", "the result table, scored against a truth file", "runs/mine truth.csv")
    _takes_run(score)
    score.add_argument("truth", type=Path, nargs="?", help="CSV name,discrete")
    problems.arguments(
        command(
            "quarantine", "what could not be used: the reasons by count", "runs/mine --stage shard --rows"
        )
    )
    explain = command("explain", "one clip through the rounds to its prediction", "runs/mine clip-0007")
    _takes_run(explain)
    explain.add_argument("name", help="name of a clip")
    explain.add_argument("--json", action="store_true", help="every value, unrounded")


def _on_a_cluster(command: Command) -> None:
    graph = command("slurm", "submit all stages to Slurm, one job per stage", "job.yaml --dry-run")
    _takes_config(graph)
    graph.add_argument("--dry-run", action="store_true", help="print the batch scripts, submit nothing")
    for name, text in (
        ("slurm-options", "the options of sbatch for a stage"),
        ("slurm-task", "one process of a stage; srun starts it in a batch job"),
    ):
        of_stage = command(name, text, "extract job.yaml")
        of_stage.add_argument("stage", choices=SLURM_STAGES)
        _takes_config(of_stage)
    _takes_config(
        command("slurm-srun", "the srun command that starts mer-dist, one word per line", "job.yaml")
    )
    _takes_run(command("slurm-status", "the submitted jobs of a run", "runs/mine"))
    _takes_run(command("slurm-cancel", "cancel the submitted jobs of a run", "runs/mine"))


def _on_files(command: Command) -> None:
    config = command("config", "the included configurations, launch files and batch scripts", "list")
    asked = config.add_subparsers(dest="asked", required=True, metavar="list|copy")
    _added(asked, "list", "each file, and what it is for", "config list")
    copy = _added(
        asked,
        "copy",
        "copy one, with the files named in it; nothing is overwritten",
        "config copy configs/mer2024/full.yaml",
    )
    copy.add_argument("name", help="as configs/mer2024/full.yaml, full.yaml, or a folder: launch")
    copy.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="default: here; keeps the paths below it"
    )


def _on_features(command: Command) -> None:
    imported = command(
        "import-features",
        "read features in MERTools' layout",
        "runs/mine my-audio features/hubert --modality audio",
    )
    imported.usage = "mer-dist import-features [-h] RUN [SET] FOLDER --modality [SET=]MODALITY"
    _takes_run(imported)
    imported.add_argument(
        "source", nargs="+", help="the set's name and its folder, or a folder of several sets"
    )
    imported.add_argument(
        "--modality",
        required=True,
        action="append",
        help="audio, video or text; for several sets once each, as SET=audio",
    )
    answered = command(
        "import-answers", "read the answers of an outside labeller", "runs/mine llm answers.csv"
    )
    _takes_run(answered)
    answered.add_argument("teacher", metavar="NAME", help="a name for the labeller, for vote.teachers")
    answered.add_argument("file", type=Path, help="name,label[,confidence] or name,p_<label>,…")
    exported = command(
        "export-features", "write features in MERTools' layout", "runs/mine hubert features --level UTT"
    )
    _takes_run(exported)
    exported.add_argument("set", help="name of the feature set")
    exported.add_argument("folder", type=Path)
    exported.add_argument("--level", default="UTT", choices=("UTT", "FRA"))


def _predict(command: Command) -> None:
    predict = command(
        "predict",
        "answer new clips by what a run learned, nothing trained again",
        "runs/mine new-clips --out predictions --transcripts new.csv",
    )
    predict.usage = "mer-dist predict [-h] MODEL [CLIPS] [--out FOLDER] [options]"
    predict.add_argument("model", type=Path, help="run folder or bundle")
    predict.add_argument(
        "clips",
        type=Path,
        nargs="?",
        help="a folder of media files, one file, or a CSV name,video,audio,transcript",
    )
    predict.add_argument("--out", type=Path, default=Path("predictions"), help="default: predictions")
    predict.add_argument("--transcripts", type=Path, help="CSV name,transcript")
    predict.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="SET=FOLDER",
        help="in place of clips: their features, as .npy files",
    )
    predict.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="where the base model of an extractor lies",
    )
    predict.add_argument(
        "--openface", type=Path, help="faces of the clips, of a model that learned from OpenFace's"
    )
    predict.add_argument(
        "--explain", action="store_true", help="also what each feature set alone says, and gate weights"
    )
    predict.add_argument(
        "--prior",
        choices=("none", "estimate"),
        default="none",
        help="estimate: correct for the class prior of all these clips together; an answer then depends on the others",
    )
    predict.add_argument(
        "--workers", type=int, help="processes that decode clips; default: one for each processor, up to 4"
    )
    bundle = command(
        "bundle", "write what predicting needs of a run, to be given to others", "runs/mine my-model"
    )
    _takes_run(bundle)
    bundle.add_argument("folder", type=Path, help="a new folder")
    bundle.add_argument(
        "--merged",
        action="store_true",
        help="fine-tuned extractors as whole models, which need no base model",
    )


def _export(command: Command) -> None:
    export = command(
        "export",
        "write a fine-tuned model as a model folder, LoRA merged",
        "runs/mine baichuan@all models/baichuan-mine",
    )
    _takes_run(export)
    export.add_argument("adapter_name", metavar="ADAPTER", help="adapter, as baichuan@all or clip@fold-0")
    export.add_argument("folder", type=Path, help="a new folder")
    export.add_argument("--step", type=int, help="the checkpoint at this step, not the finished adapter")
    export.add_argument("--adapter", action="store_true", help="the adapter alone, not merged")
    export.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of the merged weights; default: extractors.*.precision",
    )
