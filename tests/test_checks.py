"""The checks are the same wherever they run, in pinned versions, and nothing of the package is left out."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from conftest import ROOT, skip
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKS = ["ruff check .", "ruff format --check .", "mypy"]
SITE = "mkdocs build --strict"
TOOLS = ("ruff", "mypy")
RECORDING = '#!/usr/bin/env bash\necho "{name}${{*:+ $*}}" >> "$LOG"\n[ "{name}" != "$FAILS" ]\n'


@pytest.fixture
def check(tmp_path):
    """Runs launch/check.sh with tools that only note their call; gives exit code and calls."""
    for folder in (".ci", "launch", "slurm"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "bin").mkdir()
    setup = 'cd "$(dirname "${BASH_SOURCE[0]}")/.."\nexport PATH="$PWD/bin:$PATH"\n'
    (tmp_path / "launch" / "setup.sh").write_text(setup)
    (tmp_path / "launch" / "test.sh").write_text(RECORDING.format(name="tests"))
    for name in (*TOOLS, "mkdocs"):
        tool = tmp_path / "bin" / name
        tool.write_text(RECORDING.format(name=name))
        tool.chmod(0o755)

    def check(*arguments: str, fails: str = "none") -> tuple[int, list[str]]:
        log = tmp_path / "log"
        log.write_text("")
        told = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LOG": str(log), "FAILS": fails}
        command = ["bash", tmp_path / "launch" / "check.sh", *arguments]
        code = subprocess.run(command, env=told, capture_output=True, check=False).returncode
        return code, log.read_text().splitlines()

    return check


def test_the_checks_come_before_the_tests_which_get_the_arguments_or_are_left_out(check):
    assert check("-k", "shard") == (0, [*CHECKS, SITE, "tests -k shard"])
    assert check() == (0, [*CHECKS, SITE, "tests"])
    assert check("--no-tests") == (0, [*CHECKS, SITE])


@pytest.mark.parametrize(
    ("fails", "calls"), [("ruff", CHECKS[:1]), ("mypy", CHECKS), ("mkdocs", [*CHECKS, SITE])]
)
def test_a_check_that_fails_is_the_end_and_shows_in_the_exit_code(check, fails, calls):
    code, found = check(fails=fails)
    assert code != 0 and found == calls
    code, found = check(fails="tests")
    assert code != 0 and found[-1] == "tests"


def test_a_script_that_bash_cannot_read_is_found(check, tmp_path):
    for script in (".ci/run", "launch/demo.sh", "slurm/run.sbatch", "slurm/local-cluster.sh"):
        path = tmp_path / script
        before = path.read_text()
        path.write_text(before + "\nif true; then\n")
        code, calls = check()
        assert code != 0 and calls == CHECKS
        path.write_text(before)
    assert check("--no-tests")[0] == 0


def test_before_a_commit_the_same_commands_run_from_the_same_environment():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"  # nothing is fetched
    assert {(hook["language"], hook["pass_filenames"]) for hook in repo["hooks"]} == {("system", False)}
    *entries, syntax = (hook["entry"] for hook in repo["hooks"])
    assert entries == [f".venv/bin/{command}" for command in CHECKS]
    scripts = re.findall(r"for script in (.*?);", (ROOT / "launch" / "check.sh").read_text() + syntax)
    assert len(scripts) == 2 and scripts[0] == scripts[1]


def test_ci_runs_the_checks_and_every_shell_script_is_among_what_is_checked():
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert last == "bash launch/check.sh"
    checked = {
        ROOT / ".ci/run",
        *ROOT.glob("launch/*.sh"),
        *ROOT.glob("slurm/*.sh"),
        *ROOT.glob("slurm/*.sbatch"),
    }
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        skip("this is no git checkout")
    paths = [ROOT / name for name in files.stdout.split("\0") if name and (ROOT / name).is_file()]
    with_bash = {path for path in paths if path.read_bytes()[:32].startswith(b"#!/usr/bin/env bash")}
    assert with_bash <= checked


def test_the_tools_and_what_they_need_are_installed_in_pinned_versions():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", "\n".join(lines), re.MULTILINE))
    needed = [*TOOLS, "mkdocs-material"]
    for name in needed:
        assert pinned[name] == metadata.version(name)
        asked = map(Requirement, metadata.requires(name) or [])
        needed += [
            canonicalize_name(one.name)
            for one in asked
            if (one.marker is None or one.marker.evaluate({"extra": ""}))
            and canonicalize_name(one.name) not in needed
        ]
    assert len(needed) > len(TOOLS) + 1
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.extras_require"]["check"].split() == [*TOOLS]
    assert setup["options.extras_require"]["docs"] == "mkdocs-material"
    assert "'.[train,test,check,docs]'" in (ROOT / "launch" / "setup.sh").read_text()
    explained = [line for line in lines if line.startswith(tuple(f"{name}==" for name in needed[:3]))]
    assert all("# " in line for line in explained)


def test_no_module_of_the_package_is_left_out_of_the_types():
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["files"] == ["mer_dist"] and mypy["check_untyped_defs"]
    overrides = mypy.pop("overrides")
    modules = [name for entry in overrides for name in entry["module"]]
    assert modules and not any(name.startswith(("mer_dist", "*")) for name in modules)
    for settings in (mypy, *overrides):
        assert not {"ignore_errors", "disable_error_code", "exclude"} & settings.keys()


def test_an_error_of_types_or_lint_is_passed_over_by_its_code_alone():
    for path in [*(ROOT / "mer_dist").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"#\s*mypy:", text), path
        for line in text.splitlines():
            for kind in re.findall(r"#\s*type:\s*ignore.*", line):
                assert re.fullmatch(r"# type: ignore\[[a-z-]+\]  # .+", kind), f"{path}: {line}"
            assert not re.search(r"#\s*noqa(?!: [A-Z]+\d)", line), f"{path}: {line}"


def test_a_stale_noqa_is_found():
    stale = "import os  # noqa: F401\n\nprint(os)\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename"]
    told = subprocess.run(
        [*command, ROOT / "mer_dist" / "x.py", "-"], input=stale, capture_output=True, text=True, check=False
    )
    assert told.returncode == 1 and "RUF100" in told.stdout
