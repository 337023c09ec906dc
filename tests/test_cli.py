"""The command as a user calls it: exit codes and the line that says what is wrong."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fusion_run
import numpy as np
import pytest

from mer_dist import cli
from mer_dist.arguments import of_each_command, parser
from mer_dist.cli import main
from mer_dist.config.config import Config, save
from mer_dist.config.sections import CorpusConfig, RunConfig
from mer_dist.processes import ancestry, env, together
from mer_dist.slurm import jobs
from mer_dist.storage import exit_status, files
from mer_dist.storage.lock import held
from mer_dist.storage.run_folder import Run


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mer_dist", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=env.for_children(1),
        check=False,
    )


@pytest.mark.slow
def test_an_unknown_key_ends_with_2_and_names_file_key_and_valid_ones(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("run: {folder: x}\ncorpus: {path: y}\nfuse: {epocs: 3}\n")
    done = call("fuse", str(path))
    assert done.returncode == 2
    assert all(word in done.stderr for word in (str(path), "fuse.epocs", "epochs"))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "override", ["run.threads=0123", "extract.frame_level=no", "extract.frame_level=2", "fuse"]
)
def test_a_silent_coercion_is_refused(tmp_path, override, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{folder: {tmp_path}/run}}\ncorpus: {{path: y}}\n")
    assert main(["shard", str(path), override]) == 2
    assert override.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "extract", "fuse"])
def test_a_stage_whose_input_is_missing_names_the_stage_to_run_first(tmp_path, stage):
    path = tmp_path / "job.yaml"
    path.write_text(
        f"run: {{folder: {tmp_path}/run}}\ncorpus: {{path: y}}\n"
        "extractors: {clip: {family: clip, path: m, finetune: {}}}\n"
    )
    done = call(stage, str(path))
    assert done.returncode == 2
    assert "run shard first" in done.stderr and "Traceback" not in done.stderr


def test_the_log_of_a_stage_is_kept_as_plain_lines_and_as_json_lines(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{folder: {tmp_path}/run}}\ncorpus: {{path: {tmp_path}/nowhere}}\n")
    assert main(["shard", str(path)]) == 2
    assert "nowhere" in (tmp_path / "run/logs/shard.0.log").read_text()
    assert '"stage": "shard"' in (tmp_path / "run/logs/shard.0.jsonl").read_text()


@pytest.mark.slow
def test_every_command_explains_itself():
    top = call("--help")
    assert top.returncode == 0
    for name in ("shard", "finetune", "extract", "fuse", "run", "verify", "report"):
        assert name in top.stdout
        assert call(name, "--help").returncode == 0


PARSERS = of_each_command(parser())


def test_every_command_does_something():
    assert cli.ACTS.keys() == {words for words in PARSERS if " " not in words}


@pytest.mark.parametrize("words", PARSERS)
def test_the_help_of_every_command_ends_with_an_example_that_its_parser_takes(words):
    last = PARSERS[words].format_help().splitlines()[-1]
    start, _, example = last.partition("mer-dist ")
    assert start == "example: " and f"{example} ".startswith(f"{words} ")
    parsed = parser().parse_args(shlex.split(example))
    assert parsed.command == words.split()[0]


@pytest.mark.slow
def test_a_refused_fuse_leaves_the_configuration_of_the_run_as_it_was(tmp_path):
    made, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    before = Run(made.run.folder).config.read_bytes()
    assert main(["fuse", str(tmp_path / "job.yaml"), "fuse.sets=[voice, nowhere]"]) == 2
    assert Run(made.run.folder).config.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("left", ["shards", "features/voice", "adapters/clip/fold-0"])
def test_a_run_of_an_earlier_version_is_refused_in_one_line_and_stays_as_it_is(tmp_path, capsys, left):
    made, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    run, job = Path(made.run.folder), str(tmp_path / "job.yaml")
    (run / left).mkdir(parents=True, exist_ok=True)
    (run / left / "made.json").write_text('{"made_from": "0123"}')
    before = {path: files.size_and_mtime(path) for path in run.rglob("*")}
    for arguments in (
        ["fuse", job],
        ["run", job],
        ["slurm", job],
        ["verify", str(run)],
        ["report", str(run)],
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{left}/made.json" in line and "set run.folder to a new folder" in line
    assert {path: files.size_and_mtime(path) for path in run.rglob("*")} == before


@pytest.mark.parametrize("launched", [False, True])
def test_a_second_command_in_a_run_folder_is_refused(tmp_path, monkeypatch, capsys, launched):
    """Also if a launcher or Slurm has started it, where each rank looks; it leaves no code in the place of
    the one that is at work."""
    made, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    stage, run = "extract" if launched else "fuse", Run(made.run.folder)
    if launched:
        monkeypatch.setattr(together, "PATIENCE", 0.1)
        monkeypatch.setattr(cli, "end_with_launcher", lambda: None)
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with held(run.lock, "extract"):
        assert main([stage, str(tmp_path / "job.yaml")]) == 2
    assert "mer-dist extract" in capsys.readouterr().err
    assert not run.linear_probes.folder.exists() and exit_status.read(run.status(stage)) is None


@pytest.mark.slow
def test_a_job_may_be_at_work_while_the_later_ones_are_submitted_and_no_second_submission(
    tmp_path, monkeypatch, capsys
):
    made, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    run, arguments = Run(made.run.folder), ["slurm", str(tmp_path / "job.yaml")]

    def submit(*_) -> list:
        with held(run.lock, "shard"):
            assert main(arguments) == 2
        assert "mer-dist shard" in capsys.readouterr().err
        assert main(arguments) == 2
        assert "mer-dist slurm" in capsys.readouterr().err
        return []

    monkeypatch.setattr(jobs, "submit", submit)
    assert main(arguments) == 0
    with held(run.lock, "fuse"):
        assert main(arguments) == 2


@pytest.mark.parametrize(("rank", "world"), [("4", "4"), ("x", "4"), ("0", ""), ("-1", "2")])
def test_variables_that_are_no_place_among_ranks_are_one_line(tmp_path, monkeypatch, capsys, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main(["extract", str(tmp_path / "job.yaml")]) == 2
    told = capsys.readouterr().err
    assert f"RANK={rank} WORLD_SIZE={world}" in told and "unset RANK" in told and "Traceback" not in told


def test_a_stage_of_one_process_is_not_started_on_several(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ancestry, "started_by", lambda: ancestry.Starter("torchrun"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fuse", str(tmp_path / "job.yaml")]) == 2
    assert "torchrun started 2 of them" in capsys.readouterr().err


def test_overrides_may_follow_an_option_and_nothing_else_may(tmp_path, capsys):
    job = tmp_path / "job.yaml"
    job.write_text("corpus: {path: nowhere}\n", encoding="utf-8")
    assert main(["plan", str(job), "--json", "run.processes=none"]) == 2
    assert "run.processes" in capsys.readouterr().err
    for wrong in (["plan", str(job), "--jsn"], ["explain", "run", "name", "more"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_an_import_takes_the_lock_of_the_run_folder_and_gives_it_back(tmp_path, capsys):
    run, folder = Run(tmp_path / "run"), tmp_path / "npy"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones(3))
    arguments = ["import-features", str(run.folder), "face", str(folder), "--modality", "video"]
    with held(run.lock, "fuse"):
        assert main(arguments) == 2
    assert "mer-dist fuse" in capsys.readouterr().err
    assert not run.features("face").exists()
    assert main(arguments) == 0
    assert "mer-dist import-features" in run.lock.read_text() and run.features("face").exists()


def test_an_import_that_masked_what_is_unusable_and_told_it_ends_with_0(tmp_path, capsys):
    run, bad, good = tmp_path / "run", tmp_path / "bad", tmp_path / "good"
    for folder in (bad, good):
        folder.mkdir()
        np.save(folder / "a.npy", np.ones(3))
    (bad / "b.npy").write_bytes(b"no array")
    np.save(bad / "c.npy", np.zeros(3))
    np.save(bad / "d.npy", np.zeros(3))
    for name in ("e", "f"):
        np.save(bad / f"{name}.npy", np.ones(3))
    assert main(["import-features", str(run), "face", str(bad), "--modality", "video"]) == 0
    told = capsys.readouterr().err
    assert "face: 3 clips cannot be used and are masked" in told and "mer-dist quarantine " in told
    assert "2 x video: features face: all zeros" in told
    assert "1 x video: features face: this is no .npy file: it begins with 'no array'" in told
    assert main(["import-features", str(run), "line", str(good), "--modality", "text"]) == 0
    assert main(["import-features", str(run), "line", str(tmp_path / "gone"), "--modality", "text"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["RUN", "-x07"],
        ["RUN", "-x07", "--json"],
        ["--json", "RUN", "-x07"],
        ["RUN", "--", "-x07"],
        ["RUN", "-1"],
        ["RUN", "--x07"],
        ["RUN", "cafe\u0301.mp4"],
    ],
)
def test_explain_takes_a_name_that_begins_with_a_hyphen(monkeypatch, capsys, words):
    asked = []
    monkeypatch.setattr(
        "mer_dist.inspect.explain.explain", lambda run, name: asked.append((str(run), name)) or {}
    )
    monkeypatch.setattr("mer_dist.inspect.explain.text", lambda told: "told")
    assert main(["explain", *words]) == 0
    (name,) = {*words} - {"RUN", "--", "--json"}
    assert asked == [("RUN", {"cafe\u0301.mp4": "caf\u00e9"}.get(name, name))]
    assert capsys.readouterr().out == ("{}\n" if "--json" in words else "told\n")


def test_a_tilde_that_the_shell_left_is_the_home_and_a_folder_that_is_no_run_has_no_status(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.ones(3))
    assert main(["import-features", "~/run", "face", str(tmp_path), "--modality", "video"]) == 0
    assert Run(tmp_path / "home" / "run").features("face").exists() and not (tmp_path / "~").exists()
    for folder in ("nope", str(tmp_path)):
        assert main(["status", folder, "fuse"]) == 2
        assert f"{folder}: no run there; it has no config.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_no_command_works_on_the_original_when_a_copy_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mer_dist.processes.preempt.install", lambda: None)
    np.save(tmp_path / "a.npy", np.ones(3))
    assert main(["import-features", "q1", "face", str(tmp_path), "--modality", "video"]) == 0
    config = Config(run=RunConfig(folder="q1"), corpus=CorpusConfig(path="clips"))
    save(config, Run("q1").config)
    shutil.copytree("q1", "q2")
    before = {path: path.read_bytes() for path in Path("q1").rglob("*") if path.is_file()}
    capsys.readouterr()
    stages = ("shard", "finetune", "extract", "fuse", "run", "plan", "doctor", "slurm --dry-run")
    for words in (*stages, "slurm-options fuse", "slurm-srun", "slurm-task fuse"):
        assert main([*words.split(), "q2/config.yaml", "fuse.epochs=1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "names run.folder 'q1'" in line and "write run.folder=q2" in line
    assert before == {path: path.read_bytes() for path in Path("q1").rglob("*") if path.is_file()}


def test_an_import_of_which_most_is_unusable_ends_with_3(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones(3))
    for name in "bcd":
        np.save(tmp_path / f"{name}.npy", np.full(3, np.nan))
    assert main(["import-features", str(tmp_path / "run"), "face", str(tmp_path), "--modality", "video"]) == 3
    assert "face: most of its clips, 3 of 4, cannot be used" in capsys.readouterr().err
