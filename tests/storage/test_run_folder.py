"""What lies where in a run folder: people's scripts read these names, so they are spelled here once more."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.storage.run_folder import AdapterFolder, FeatureFolder, Run, ShardFolder

RUN = Run("run")
SHARDS, SET = ShardFolder(RUN.shards), FeatureFolder(RUN.features(FeatureSetId.parse("clip@fold-0")))
WHERE = {
    "config.yaml": RUN.config,
    "quarantine.parquet": RUN.quarantine,
    "folds.json": RUN.folds,
    "shards/index.parquet": SHARDS.index,
    "shards/unstored.json": SHARDS.unstored,
    "shards/twins.json": SHARDS.twins,
    "shards/annotations.parquet": SHARDS.annotations,
    "shards/asked.json": SHARDS.asked,
    "shards/stats.json": SHARDS.stats,
    "twins.json": RUN.twins,
    "shards/00007.tar": SHARDS.tar(7),
    "shards/00007.parquet": SHARDS.record(7),
    "adapters/clip/fold-0/history.json": AdapterFolder(RUN.adapter("clip", "fold-0")).history,
    "checkpoints/clip/all": RUN.checkpoints("clip", "all"),
    "features/clip@fold-0/set.json": SET.description,
    "features/clip@fold-0/00012.safetensors": SET.shard(12),
    "linear_probes/clip@tuned.parquet": RUN.linear_probes.predictions("clip@tuned"),
    "linear_probes/clip@tuned.safetensors": RUN.linear_probes.arrays("clip@tuned"),
    "rounds/01/predictions.parquet": RUN.round(1).predictions,
    "rounds/01/fold_predictions.safetensors": RUN.round(1).fold_predictions,
    "rounds/01/models.safetensors": RUN.round(1).models,
    "rounds/01/curves.json": RUN.round(1).curves,
    "rounds/01/pseudo_labels.parquet": RUN.round(1).pseudo_label_log,
    "vote/predictions.parquet": RUN.vote.predictions,
    "vote/prior.json": RUN.vote.prior,
    "vote/answer.csv": RUN.vote.answer,
    "answer.csv": RUN.answer,
    "scores.json": RUN.scores,
    "report.html": RUN.report,
    "status/fuse.json": RUN.status("fuse"),
    "status/lock": RUN.lock,
    "status/lock.slurm": RUN.slurm_lock,
    "slurm/jobs.json": RUN.slurm_jobs,
    "slurm/tasks/extract-7_1.json": RUN.slurm_note("extract", "7_1"),
    "slurm/7_0_log.out": RUN.slurm_log("7", 1),
    "slurm/7_*_0_log.out": RUN.slurm_log("7", 2),
    "logs/extract.3.log": RUN.log("extract", 3),
    "logs/timings.extract.3.jsonl": RUN.timings("extract", 3),
}


@pytest.mark.parametrize("name", WHERE)
def test_every_file_has_the_name_that_scripts_read(name):
    assert WHERE[name] == Path("run") / name and RUN.relative(WHERE[name]) == name


def test_rounds_come_by_number_and_what_is_none_is_passed_over(tmp_path):
    run = Run(tmp_path)
    assert run.rounds() == []
    for number in (0, 2, 10, 11, 100):
        run.round(number).folder.mkdir(parents=True)
    for other in ("01.bak", ".03.1.tmp", "notes"):
        (run.rounds_folder / other).mkdir()
    assert [one.number for one in run.rounds()] == [0, 2, 10, 11, 100]
    assert run.rounds()[1] == run.round(2)


def test_folders_list_what_is_theirs(tmp_path):
    run = Run(tmp_path)
    shards, features = ShardFolder(run.shards), FeatureFolder(run.features("clip"))
    paths = [shards.record(1), shards.record(0), shards.tar(0), shards.index, features.shard(1)]
    paths += [features.shard(0), features.description, run.linear_probes.predictions("b")]
    paths += [run.linear_probes.predictions("a"), run.linear_probes.arrays("a"), run.timings("fuse", 0)]
    paths += [AdapterFolder(run.adapter("clip", part)).history for part in ("all", "fold-0", ".all.tmp")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert (shards.all_records(), shards.all_tars()) == (
        [shards.record(0), shards.record(1)],
        [shards.tar(0)],
    )
    assert features.shards() == [features.shard(0), features.shard(1)]
    assert run.feature_sets() == [features.folder] and run.all_timings() == [run.timings("fuse", 0)]
    assert run.linear_probes.all_predictions() == [run.linear_probes.predictions(name) for name in ("a", "b")]
    assert run.linear_probes.files() == [*run.linear_probes.all_predictions(), run.linear_probes.arrays("a")]
    assert [(one.extractor, one.variant) for one in run.adapters()] == [("clip", "all"), ("clip", "fold-0")]


def spelled(source: str) -> list[int]:
    """Lines of code that name a file or folder of a run by itself: whole strings, or a part of a path."""
    tops = {name.partition("/")[0] for name in WHERE if "/" in name}
    files = {Path(name).name for name in WHERE if Path(name).suffix and "00" not in name and "7_" not in name}
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            part = node.right
            names = tops | files
        elif isinstance(node, ast.Assign | ast.Call):
            part = next((own for own in ast.iter_child_nodes(node) if isinstance(own, ast.Constant)), None)
            names = files
        else:
            continue
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            is_glob = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("glob", "rglob")
            globbed = is_glob and part.value.startswith(("[0-9]*", *(f"{top}/" for top in tops)))
            if part.value in names or globbed:
                lines.append(node.lineno)
    return sorted(lines)


@pytest.mark.slow
def test_no_other_module_spells_a_name_of_a_run_folder():
    own = ROOT / "mer_dist" / "storage" / "run_folder.py"
    found = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "mer_dist").rglob("*.py"))
        if path != own and (lines := spelled(path.read_text("utf-8")))
    }
    assert found == {}
    assert spelled(own.read_text("utf-8"))
    planted = [
        'run.folder / "rounds"',
        'run.vote.folder / "prior.json"',
        'FILE = "set.json"',
        'run.shards.glob("[0-9]*.parquet")',
        'run.folder.glob("adapters/*/*")',
    ]
    assert spelled("\n".join(planted)) == [1, 2, 3, 4, 5]


def test_what_a_program_for_synchronising_left_is_no_part_of_the_run_and_is_named(tmp_path):
    run = Run(tmp_path)
    shards, features = ShardFolder(run.shards), FeatureFolder(run.features("clip@fold-0"))
    own = [*(path(0) for path in (shards.tar, shards.record, features.shard)), *shards.results]
    own += [features.description, run.linear_probes.predictions("clip"), run.linear_probes.arrays("@all")]
    own += [*run.round(0).files(), *run.vote.files()]
    own += [folder / "complete.json" for folder in {path.parent for path in own}]
    copies = ["shards/00000 2.tar", "shards/00000 (1).parquet", "features/clip 2/set.json"]
    copies += [
        "features/clip@fold-0/00000 2.safetensors",
        "linear_probes/clip (1).parquet",
        "vote/prior 2.json",
    ]
    copies += ["rounds/00 2/predictions.parquet", "rounds/00/models-Konflikt.safetensors"]
    hidden = ["features/clip@fold-0/._00000.safetensors", "linear_probes/._clip.parquet", "rounds/.DS_Store"]
    for path in (*own, *(tmp_path / name for name in (*copies, *hidden))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    named = {run.relative(path) for path in run.strays()}
    assert named == {*copies} - {"features/clip 2/set.json", "rounds/00 2/predictions.parquet"} | {
        "features/clip 2",
        "rounds/00 2",
    }
    assert run.feature_sets() == [features.folder] and run.rounds() == [run.round(0)]
    assert shards.all_records() == [shards.record(0)] and features.shards() == [features.shard(0)]
    assert run.linear_probes.all_predictions() == [run.linear_probes.predictions("clip")]
