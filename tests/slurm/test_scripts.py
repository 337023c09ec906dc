"""What reaches a cluster: options, batch scripts, and a process of a step as a rank. No Slurm is needed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mer_dist import cli
from mer_dist.config.config import load
from mer_dist.config.section import with_values
from mer_dist.config.slurm import STAGES, TAKEN, SlurmConfig, seconds
from mer_dist.core.errors import DONE, FAILED, QUARANTINED, REQUEUE, UserError
from mer_dist.processes.env import process_info, under_deepspeed
from mer_dist.slurm import jobs, rank
from mer_dist.storage.run_folder import Run

FULL = """
run: {folder: runs/mine}
extractors:
  clip: {family: clip, path: models/clip, finetune: {}}
slurm:
  partition: gpu
  cpu_partition: cpu
  account: team-7
  qos: normal
  nodes: 2
  gpus_per_node: 8
  cpus_per_task: 12
  memory: 400G
  time: "24:00:00"
  times: {fuse: "01:00:00"}
  warning: 600
  extract_tasks: 16
  extract_at_once: 4
  options: {constraint: a100, exclusive: ""}
"""
HOSTILE = (
    "gpu; touch /tmp/owned",
    "$(touch /tmp/owned)",
    "`touch /tmp/owned`",
    "gpu\ntouch /tmp/owned",
    "a b",
    "--wrap=reboot",
    "-x",
    "'",
    '"',
    "a&b",
    "a|b",
    "a>b",
    "*",
    "${HOME}x",
    "a\\b",
    "gpü",
    "#",
    "!x",
    "%j",
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(FULL, encoding="utf-8")
    return lambda *overrides: load(path, overrides)


def lines(script: str) -> list[str]:
    return script.splitlines()


@pytest.mark.parametrize(
    "key",
    [
        "partition",
        "cpu_partition",
        "account",
        "qos",
        "container",
        "python",
        "memory",
        "time",
        "times",
        "container_mounts",
        "options",
    ],
)
def test_a_value_of_which_a_shell_could_make_something_is_refused(key):
    for value in HOSTILE:
        inside = {"times": {"fuse": value}, "container_mounts": [value], "options": {"constraint": value}}
        with pytest.raises(UserError, match=f"slurm.{key}"):
            SlurmConfig(**{key: inside.get(key, value)})


def test_an_option_that_is_a_command_or_belongs_to_the_graph_is_refused(tmp_path):
    for name in (*TAKEN, "a b", "x;y", "X", "-x", "x=1", "x\ny", ""):
        with pytest.raises(UserError, match="slurm.options"):
            SlurmConfig(options={name: "1"})
    path = tmp_path / "hostile.yaml"
    path.write_text("run: {folder: r}\nslurm: {options: {wrap: reboot}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="slurm.options.wrap"):
        load(path)


TIMES = [
    ("7", 420),
    ("7:30", 450),
    ("01:02:03", 3723),
    ("2-3", 183_600),
    ("2-03:04", 183_840),
    ("2-03:04:05", 183_845),
    ("0", 0),
]


@pytest.mark.parametrize(("limit", "expected"), TIMES)
def test_times_are_read_as_slurm_reads_them(limit, expected):
    assert seconds(limit) == expected
    if expected:
        # Slurm may send the warning a minute early.
        kept = SlurmConfig(time=limit, warning=expected - 61)
        assert (kept.time, kept.warning) == (limit, expected - 61)
        with pytest.raises(UserError, match=f"slurm.time is '{limit}'.* slurm.warning is {expected - 60} s"):
            SlurmConfig(time=limit, warning=expected - 60)


@pytest.mark.slow
def test_a_warning_that_leaves_a_stage_no_time_is_refused_by_both_keys(config, tmp_path):
    with pytest.raises(UserError, match="slurm.times.fuse is '00:05:00'.* slurm.warning is 600 s") as refused:
        config("slurm.times={fuse: '00:05:00'}")
    assert "\n" not in str(refused.value)
    assert cli.main(["slurm", str(tmp_path / "job.yaml"), "slurm.warning=3600", "--dry-run"]) == 2
    # No limit is asked for, or none of this length holds for any stage.
    SlurmConfig(warning=3600)
    SlurmConfig(warning=3600, time="0")
    SlurmConfig(warning=3600, time="10", times=dict.fromkeys(STAGES, "1-0"))


FOLDERS = ("runs/a'b", "runs/a\nreboot", "runs/%j", "runs/$HOME", "runs/`x`", "runs/a;b")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_run_folder_that_a_script_cannot_name_is_refused(config, folder):
    settings = config()
    with pytest.raises(UserError, match="run.folder"):
        jobs.scripts(with_values(settings, **{"run.folder": folder}))


def test_a_folder_with_spaces_stays_one_word(config):
    script = jobs.scripts(config("run.folder=runs/my run"))["finetune"]
    (stopped,) = [line for line in lines(script) if "MER_DIST_STOPPED=" in line]
    folder = Run(Path("runs/my run")).slurm.absolute()
    assert shlex.split(stopped)[1] == f"MER_DIST_STOPPED={folder}/stopped-$SLURM_JOB_ID"


@pytest.mark.slow
def test_every_stage_asks_for_what_it_needs(config):
    asked = {stage: jobs.options(config(), stage) for stage in STAGES}
    assert {stage: own.get("gpus-per-node") for stage, own in asked.items()} == {
        "shard": None,
        "finetune": "8",
        "extract": "1",
        "fuse": "1",
        "report": None,
    }
    assert {stage: own["partition"] for stage, own in asked.items()} == {
        "shard": "cpu",
        "finetune": "gpu",
        "extract": "gpu",
        "fuse": "gpu",
        "report": "cpu",
    }
    assert (asked["finetune"]["nodes"], asked["finetune"]["ntasks-per-node"]) == ("2", "8")
    assert (asked["extract"]["nodes"], asked["extract"]["array"]) == ("1", "0-15%4")
    assert (asked["fuse"]["time"], asked["finetune"]["time"]) == ("01:00:00", "24:00:00")
    for own in asked.values():
        assert own["signal"] == "USR2@600" and own["requeue"] == "" and own["constraint"] == "a100"


def test_the_graph_in_scripts_is_in_order_and_only_the_extraction_is_an_array(config):
    scripts = jobs.scripts(config())
    assert list(scripts) == list(STAGES)
    for stage, before in zip(STAGES[1:], STAGES, strict=False):
        assert f"#SBATCH --dependency='afterok:<{before}>'" in lines(scripts[stage])
    assert [stage for stage in STAGES if "--array=" in scripts[stage]] == ["extract"]
    for option in (
        "array=0-15%4",
        "requeue",
        "signal=USR2@600",
        "exclusive",
        "time=24:00:00",
        "mem=400G",
        "kill-on-invalid-dep=yes",
    ):
        assert f"#SBATCH --{option}" in lines(scripts["extract"])
    (srun,) = [line for line in lines(scripts["finetune"]) if line.startswith("srun")]
    assert "--kill-on-bad-exit=1 --cpus-per-task=12 " in srun


@pytest.mark.slow
def test_what_is_not_set_is_not_asked_for(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("run: {folder: r}\nshard: {workers: 3}\n", encoding="utf-8")
    script = jobs.scripts(load(path))["fuse"]
    names = {line.split("=")[0].split()[1] for line in lines(script) if line.startswith("#SBATCH")}
    assert names == {
        "--job-name",
        "--nodes",
        "--ntasks-per-node",
        "--open-mode",
        "--output",
        "--requeue",
        "--signal",
    }
    assert "cpus-per-task" not in jobs.options(load(path), "fuse")
    assert jobs.options(load(path), "shard")["cpus-per-task"] == "3"


def test_stages_without_work_are_not_submitted(config, tmp_path):
    assert jobs.stages(config("extractors.clip.finetune=null")) == ["shard", "extract", "fuse", "report"]
    imported = tmp_path / "imported.yaml"
    imported.write_text("run: {folder: r}\nfuse: {sets: [a]}\n", encoding="utf-8")
    assert jobs.stages(load(imported)) == ["fuse", "report"]


def test_a_container_goes_to_srun_or_around_the_interpreter(config):
    image = ("slurm.container=docker://team/mer:1", "slurm.python=python3", "slurm.container_mounts=[/data]")
    (srun,) = [line for line in lines(jobs.scripts(config(*image))["extract"]) if line.startswith("srun")]
    words = shlex.split(srun)
    assert "--container-image=docker://team/mer:1" in words and "--container-mounts=/data" in words
    assert words[words.index("-u") - 1] == "python3"
    other = jobs.scripts(config(*image, "slurm.container_by=apptainer"))["extract"]
    (srun,) = [line for line in lines(other) if line.startswith("srun")]
    assert " apptainer exec --nv --bind /data docker://team/mer:1 python3 -u -m submitit" in srun


FILES = ("stage", "run")
#: value of slurm.container_by, the words between srun's own options and the stage
CONTAINERS = [
    (
        "pyxis",
        [
            "--kill-on-bad-exit=1",
            "--container-image=docker://team/mer:1",
            "--container-workdir={cwd}",
            "--container-mounts=/data,/runs:/r",
            "python3",
            "-m",
            "mer_dist",
        ],
    ),
    (
        "apptainer",
        [
            "--kill-on-bad-exit=1",
            "apptainer",
            "exec",
            "--nv",
            "--bind",
            "/data",
            "--bind",
            "/runs:/r",
            "docker://team/mer:1",
            "python3",
            "-m",
            "mer_dist",
        ],
    ),
]


def sruns(folder: Path, name: str, *arguments: str) -> tuple[int, list[list[str]]]:
    """Run an sbatch file where srun only writes down what it is given: the file's exit code, and that."""
    programs = {
        "srun": f"printf '%s\\n' \"$@\" '' >> '{folder}/given'",
        "mer-dist": f'exec {shlex.quote(sys.executable)} -m mer_dist "$@"',
    }
    for program, text in programs.items():
        (folder / program).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / program).chmod(0o755)
    variables = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "8",
        "SLURM_CPUS_PER_TASK": "12",
    }
    done = subprocess.run(
        ["bash", ROOT / "slurm" / f"{name}.sbatch", *(["fuse"] * (name == "stage")), *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    given = folder / "given"
    calls = given.read_text("utf-8").split("\n\n")[:-1] if given.exists() else []
    return done.returncode, [call.splitlines() for call in calls]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("by", "expected"), CONTAINERS)
def test_the_sbatch_files_take_the_container_from_the_configuration(config, tmp_path, by, expected, name):
    config()
    folder = tmp_path / "sub mitted"
    folder.mkdir()
    image = (
        "slurm.container=docker://team/mer:1",
        "slurm.python=python3",
        f"slurm.container_by={by}",
        "slurm.container_mounts=[/data, '/runs:/r']",
    )
    code, calls = sruns(folder, name, "../job.yaml", *image)
    assert code == 0 and len(calls) == (len(STAGES) if name == "run" else 1)
    words = [word.format(cwd=folder) for word in expected]
    for call, stage in zip(calls, STAGES if name == "run" else ["fuse"], strict=True):
        own = ["--nodes=1", f"--ntasks={8 if stage in ('finetune', 'extract') else 1}"] * (name == "run")
        assert call == [*own, "--cpus-per-task=12", *words, "slurm-task", stage, "../job.yaml", *image]


@pytest.mark.slow
def test_an_sbatch_file_whose_configuration_is_refused_starts_nothing(config, tmp_path):
    config()
    assert sruns(tmp_path, "stage", "job.yaml", "slurm.container=a b") == (2, [])
    code, (call,) = sruns(tmp_path, "stage", "job.yaml")
    assert code == 0 and call[1:5] == ["--kill-on-bad-exit=1", sys.executable, "-m", "mer_dist"]


@pytest.mark.parametrize("name", FILES)
def test_the_sbatch_files_and_the_graph_end_a_job_in_the_same_way(name):
    text = (ROOT / "slurm" / f"{name}.sbatch").read_text("utf-8")
    assert "\n".join(jobs.BEFORE) in text and text.endswith("\n".join(jobs.AFTER) + "\n")
    assert subprocess.run(["bash", "-n", ROOT / "slurm" / f"{name}.sbatch"], check=False).returncode == 0


@pytest.mark.slow
def test_options_come_as_one_line_that_a_shell_leaves_alone(config, capsys, tmp_path):
    config()
    assert cli.main(["slurm-options", "extract", str(tmp_path / "job.yaml")]) == DONE
    line = capsys.readouterr().out.strip()
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' $(printf '%s' {shlex.quote(line)})"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout.split("\n")[:-1] == line.split(" ")
    assert "--array=0-15%4" in line and "--partition=gpu" in line


@pytest.mark.slow
def test_a_dry_run_prints_every_script_and_leaves_no_folder(config, capsys, tmp_path, monkeypatch):
    config()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["slurm", str(tmp_path / "job.yaml"), "--dry-run"]) == DONE
    assert capsys.readouterr().out.count("#!/bin/bash") == len(STAGES)
    assert not (tmp_path / "runs").exists()
    assert cli.main(["slurm", str(tmp_path / "job.yaml")]) == 2, "no srun: one line, not a traceback"


@pytest.fixture
def of_slurm(monkeypatch):
    def tell(**variables):
        for name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
            "DS_ACCELERATOR",
            "ACCELERATE_USE_DEEPSPEED",
            *rank.DEEPSPEED.values(),
            rank.STOPPED,
        ):
            # Set first, so that what the code under test sets is undone afterwards.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return tell


def test_a_process_of_a_step_is_the_rank_that_slurm_gave_it(of_slurm):
    step = {"SLURM_JOB_ID": 41, "SLURM_PROCID": 9, "SLURM_NTASKS": 16, "SLURM_LOCALID": 1}
    of_slurm(**step, SLURM_LAUNCH_NODE_IPADDR="10.0.0.7")
    step = rank.become_rank(4, "")
    here = process_info()
    assert (here.rank, here.world, here.local_rank, here.launched) == (9, 16, 1, True)
    assert (step.job, step.restarts, step.speaks) == ("41", 0, False)
    assert os.environ["MASTER_ADDR"] == "10.0.0.7"
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"


def test_a_task_of_an_array_is_a_rank_by_its_own_number_even_when_few_are_submitted_again(of_slurm):
    step = {"SLURM_JOB_ID": 50, "SLURM_PROCID": 0, "SLURM_NTASKS": 1, "SLURM_LOCALID": 0}
    array = {**step, "SLURM_ARRAY_JOB_ID": 47}
    of_slurm(**array, SLURM_ARRAY_TASK_ID=3, SLURM_ARRAY_TASK_COUNT=1, SLURM_RESTART_COUNT=2)
    step = rank.become_rank(16, "")
    assert (process_info().rank, process_info().world, process_info().local_rank) == (3, 16, 0)
    assert (step.job, step.restarts, step.speaks) == ("47_3", 2, True)
    of_slurm(**array, SLURM_ARRAY_TASK_ID=16)
    with pytest.raises(UserError, match="extract_tasks is 16"):
        rank.become_rank(16, "")


def test_one_process_alone_trains_without_a_process_group(of_slurm):
    of_slurm(SLURM_JOB_ID=1, SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0, RANK=5, WORLD_SIZE=8)
    rank.become_rank(4, "")
    assert not process_info().launched


def test_outside_of_a_step_a_task_is_refused(of_slurm, monkeypatch):
    of_slurm()
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UserError, match="srun"):
        rank.become_rank(4, "")


def test_the_port_changes_with_every_job_and_every_restart():
    ports = {rank.port(job, restarts) for job in range(100, 120) for restarts in range(10)}
    assert len(ports) == 200 and min(ports) >= 20000 and max(ports) < 32768


def test_the_deepspeed_settings_of_an_accelerate_file_hold_under_slurm_too(of_slurm, tmp_path):
    of_slurm(SLURM_JOB_ID=1, SLURM_PROCID=0, SLURM_NTASKS=2, SLURM_LOCALID=0)
    file = tmp_path / "accelerate.yaml"
    settings = "zero_stage: 2, zero3_init_flag: false, deepspeed_multinode_launcher: standard"
    file.write_text(f"deepspeed_config: {{{settings}}}")
    rank.become_rank(4, str(file))
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    file.write_text("distributed_type: MULTI_GPU")
    rank.become_rank(4, str(file))
    assert not under_deepspeed()
    for layout, stage in (("zero2", "2"), ("auto", "3")):
        rank.become_rank(4, "", layout)
        assert under_deepspeed() and os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    rank.become_rank(4, "", "ddp")
    assert not under_deepspeed()
    file.write_text("deepspeed_config: {zero_stage: 2, gradient_clipping: 3}")
    with pytest.raises(UserError, match="gradient_clipping"):
        rank.become_rank(4, str(file))


ENDS = [(DONE, 0), (QUARANTINED, 0), (REQUEUE, 0), (FAILED, 1), (2, 2)]


@pytest.mark.parametrize(("code", "exit_code"), ENDS)
def test_a_failure_alone_ends_a_step_badly_and_a_stop_tells_the_script(of_slurm, tmp_path, code, exit_code):
    note = tmp_path / "stopped"
    of_slurm(MER_DIST_STOPPED=note)
    step = rank.Step("7", 1, 0, True)
    assert jobs.ended(Run(tmp_path), "fuse", step, code) == exit_code
    assert note.exists() == (code == REQUEUE)


#: state of the job, whether ranks left word that they stopped, srun's code, what is asked of Slurm, code
BY_STATE = [
    ("RUNNING", True, 0, ["requeue 7_3"], 75),
    ("COMPLETING", True, 0, [], 75),
    ("RUNNING", False, 0, [], 0),
    ("RUNNING", True, 137, [], 137),
]


@pytest.mark.parametrize(("state", "stopped", "code", "asked", "ends"), BY_STATE)
def test_a_job_queues_itself_again_if_all_ranks_stopped_and_nobody_ended_it(
    tmp_path, state, stopped, code, asked, ends
):
    for name, text in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    note = tmp_path / "note"
    if stopped:
        note.touch()
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "MER_DIST_STOPPED": str(note),
        "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    script = "\n".join([f"(exit {code})", "code=$?", *jobs.AFTER])
    done = subprocess.run(["bash", "-c", script], env=variables, check=False)
    told = tmp_path / "asked"
    assert (told.read_text().splitlines() if told.exists() else []) == asked
    assert done.returncode == ends


def test_word_that_an_earlier_start_left_is_forgotten(tmp_path):
    note = tmp_path / "note"
    note.touch()
    variables = {"PATH": "/usr/bin:/bin", "MER_DIST_STOPPED": str(note)}
    subprocess.run(["bash", "-c", "\n".join(jobs.BEFORE)], env=variables, check=True)
    assert not note.exists()


def test_a_run_that_was_never_submitted_has_no_status(tmp_path, capsys):
    assert cli.main(["slurm-status", str(tmp_path)]) == 2


@pytest.mark.slow
def test_the_login_node_needs_no_torch_to_print_scripts(config, tmp_path):
    config()
    program = (
        "import sys; from mer_dist import cli; "
        f"cli.main(['slurm', {str(tmp_path / 'job.yaml')!r}, '--dry-run']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
