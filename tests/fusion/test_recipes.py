"""What was fused and is older than what it is made from: whoever looks at a run is told, and fuse makes that."""

import shutil
from pathlib import Path

import fusion_run
import numpy as np
import pytest
import torch

from mer_dist import cli
from mer_dist.config import config as configuration
from mer_dist.core.errors import UserError
from mer_dist.features import store
from mer_dist.fusion import recipes
from mer_dist.inspect.score import score
from mer_dist.inspect.verify import verify
from mer_dist.interop.npy import import_sets
from mer_dist.report.page import report
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

NAMES = fusion_run.names(30)
PROBES = [f"linear_probes/{name}" for name in ("voice", "face", "line", "@all", "@stacked")]
ROUNDS = ["rounds/00", "rounds/01"]


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> Path:
    """A folder with labels and a run of one round of self-training, fused."""
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("recipes")
    config, _ = fusion_run.make(folder, labeled=18, unlabeled=12, epochs=1)
    run = Run(config.run.folder)
    for name in config.fuse.sets:
        told = store.description(run.features(name))
        store.describe(run.features(name), **told, imported=True)
    fuse(config)
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def folder(fused, tmp_path) -> Path:
    copy = shutil.copytree(fused, tmp_path / "copy")
    told(copy, f"fuse.labels={copy / 'labels.csv'}", f"run.folder={copy / 'run'}")
    return copy


def told(folder: Path, *overrides: str):
    """The run as if it had been told so: its configuration, saved."""
    run = Run(folder / "run")
    config = configuration.load(run.config, overrides)
    configuration.save(config, run.config)
    return config


def stale(folder: Path) -> dict[str, str]:
    """Part -> why."""
    run = Run(folder / "run")
    return {one.part: one.why for one in recipes.stale(configuration.load(run.config), run)}


def relabel(folder: Path, old: str, new: str) -> None:
    path = folder / "labels.csv"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.slow
def test_a_run_that_was_just_fused_is_not_stale_wherever_it_lies(folder, capsys):
    assert stale(folder) == {} and verify(folder / "run") == []
    moved = shutil.move(folder / "run", folder / "moved")
    assert recipes.stale_lines(Run(moved)) == [] and verify(moved) == []
    assert cli.main(["status", str(moved), "fuse"]) == 1 and "stale" not in capsys.readouterr().err


@pytest.mark.slow
def test_other_features_are_told_by_the_import_and_by_all_who_look_at_the_run(
    folder, tmp_path, capsys, caplog
):
    run = Run(folder / "run")
    (tmp_path / "npy").mkdir()
    for row, name in enumerate(NAMES):
        np.save(tmp_path / "npy" / f"{name}.npy", np.full(fusion_run.WIDTH, row + 1.0))
    import_sets(run, ["voice", str(tmp_path / "npy")], ["audio"])
    parts = ["linear_probes/voice", "linear_probes/@all", "linear_probes/@stacked", *ROUNDS, "vote"]
    line = f"stale: {', '.join(parts)}; run fuse (linear_probes/voice: computed from other features voice than those of this run)"
    assert line in caplog.messages
    found = stale(folder)
    assert [*found] == parts
    assert found["rounds/00"] == "stale, computed from other features voice than those of this run"
    assert "linear probes or rounds" in found["vote"]
    assert [text.split(":")[0] for text in verify(run.folder)] == parts
    assert line in report(run.folder).read_text()
    files.write_json(run.status("fuse"), {"code": 0})
    assert cli.main(["status", str(run.folder), "fuse"]) == 0 and line in capsys.readouterr().err
    # The figures are those of what is there, and it is said of what.
    assert len(score(run.folder)) == 8
    assert "rounds/01: stale" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_are_not_scored_with_labels_that_they_have_not_learned(folder, caplog):
    relabel(folder, ",happy", ",other")
    relabel(folder, ",angry", ",happy")
    relabel(folder, ",other", ",angry")
    assert [*stale(folder)] == [*PROBES, *ROUNDS, "vote"]
    assert all("labels" in why or "linear probes or rounds" in why for why in stale(folder).values())
    with pytest.raises(UserError, match="not those that the predictions .* were learned from.*run fuse"):
        score(folder / "run")
    assert len([text for text in verify(folder / "run") if "other folds, labels" in text]) == 6
    # A run of an earlier version, whose marks do not name what it was made from.
    run = Run(folder / "run")
    for part in (run.round(0).folder, run.round(1).folder, run.vote.folder):
        mark = files.read_marker(part)
        files.write_marker(
            part, mark.pop("fingerprint"), **{key: value for key, value in mark.items() if key != "of"}
        )
    assert stale(folder)["rounds/00"].endswith(
        "labels, features or settings than those of this run, or by another version"
    )
    with pytest.raises(UserError, match="not those that the predictions"):
        score(run.folder)


@pytest.mark.slow
def test_a_clip_more_to_be_answered_makes_the_answer_stale_but_can_be_scored(folder, caplog):
    relabel(folder, "name,label\n", "name,label\nanother,\n")
    assert all("other clips to be answered than" in stale(folder)[part] for part in (*PROBES, "rounds/00"))
    assert score(folder / "run") and "vote: stale" in caplog.text


@pytest.mark.slow
def test_a_round_that_is_gone_although_it_voted_is_found(folder):
    shutil.rmtree(folder / "run" / "rounds" / "01")
    assert stale(folder) == {
        "rounds/01": "missing or incomplete, though there is an answer that depends on it"
    }
    assert any("rounds/01: missing" in text for text in verify(folder / "run"))
    # A run that was stopped before its vote lacks it, too, and is not stale.
    shutil.rmtree(folder / "run" / "vote")
    (folder / "run" / "answer.csv").unlink()
    assert stale(folder) == {} and verify(folder / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts", "why"),
    [
        ("fuse.epochs=2", [*ROUNDS, "vote"], "other settings of fuse than"),
        ("run.seed=1", [*ROUNDS, "vote"], "other run.seed than"),
        ("self_train.quota=0.3", ["rounds/01", "vote"], "other settings of self_train than"),
        ("self_train.rounds=0", ["vote"], "other linear probes or rounds than"),
        ("vote.kind=hard", ["vote"], "other settings of vote than"),
        ("folds.seed=3", [*PROBES, *ROUNDS, "vote"], "other folds than"),
        (
            "fuse.sets=[voice,face]",
            ["linear_probes/@all", "linear_probes/@stacked", *ROUNDS, "vote"],
            "other features line than",
        ),
        ("run.threads=2", [], ""),
    ],
)
def test_what_other_settings_make_stale_is_what_depends_on_them(folder, override, parts, why):
    told(folder, override)
    found = stale(folder)
    assert [*found] == parts
    assert all(why in found[part] for part in parts[:1])


@pytest.mark.slow
def test_fuse_makes_again_what_is_stale_and_nothing_else(folder):
    run, config = Run(folder / "run"), told(folder, "vote.kind=hard")
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("*s/**/*.parquet")}
    before |= {path: path.stat().st_mtime_ns for path in run.folder.glob("rounds/**/*")}
    assert len(before) > 8 and [*stale(folder)] == ["vote"]
    fuse(config)
    assert stale(folder) == {} and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_marks_of_another_kind_are_no_marks(folder):
    run = Run(folder / "run")
    for place, facts in (
        (run.linear_probes.folder, {"sets": [1]}),
        (run.round(0).folder, {"of": 3, "oof_waf": "x"}),
    ):
        files.write_marker(place, "x", **facts)
    found = stale(folder)
    assert found["linear_probes/voice"].startswith("missing") and "another version" in found["rounds/00"]
    assert "rounds/01" not in found


@pytest.mark.slow
def test_a_list_of_names_that_is_gone_does_not_hide_what_is_stale_and_another_one_is_told(folder):
    (folder / "names.csv").write_text("name\nclip_0020\n")
    told(folder, f"vote.names={folder / 'names.csv'}")
    assert "names in vote.names" in stale(folder)["vote"]
    (folder / "names.csv").unlink()
    assert stale(folder) == {} and len(score(folder / "run")) == 8
