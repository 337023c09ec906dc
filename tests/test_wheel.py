"""The built wheel, installed without the checkout: it holds what people are sent to, and does a job."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import media_files
import numpy as np
import processes
import pytest
from conftest import ROOT

from mer_dist.processes import env
from mer_dist.stages import config_files
from mer_dist.storage.files import write_text

#: Of the repository, what a build reads.
FOLDERS = ("mer_dist", "configs", "launch", "slurm")
FILES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "constraints.txt")
VERSION = "0.1.0+of.this.test"
LABELED, UNLABELED = 24, 6
JOB = """
run: {folder: run}
corpus: {path: corpus}
shard: {workers: 1, clips: 20, frames: 2, image_size: 16, faces: none}
folds: {count: 2}
fuse: {width: 8, heads: 2, seeds: 1, epochs: 1, sets: [voice, line]}
self_train: {rounds: 0}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since a build leaves its own files; the copy's version is no other's."""
    folder = tmp_path_factory.mktemp("build")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / "source" / name)
    own = folder / "source" / "mer_dist" / "__init__.py"
    text = own.read_text("utf-8")
    assert '__version__ = "0.1.0"' in text
    own.write_text(text.replace('__version__ = "0.1.0"', f'__version__ = "{VERSION}"'), "utf-8")
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--quiet"]
    pip(folder, "wheel", *offline, "--wheel-dir", folder / "dist", folder / "source")
    (built,) = (folder / "dist").glob("*.whl")
    return built


def pip(folder: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., str]:
    """Calls a program of an environment that has the wheel, and of this one only what it asks for; the
    answer is what the program printed. It starts in the folder ``work``, empty at first."""
    folder = tmp_path_factory.mktemp("installed")
    place = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    # Before the packages of this environment are seen, of which mer-dist may be one.
    pip(folder, "--python", place, "install", "--no-deps", "--no-index", "--no-compile", "--quiet", wheel)
    (packages,) = place.glob("lib/python*/site-packages")
    # A line in a .pth adds the folder alone, not what .pth files in it would add, as the checkout.
    write_text(packages / "shared.pth", sysconfig.get_path("purelib") + "\n")
    work = folder / "work"
    work.mkdir()
    variables = {key: value for key, value in env.for_children(1).items() if not key.startswith("PYTHON")}

    def call(program: str, *arguments: str | Path, code: int = 0) -> str:
        command = [place / "bin" / program, *map(str, arguments)]
        done = processes.run(["env", "-C", work, *command], variables, 300)
        assert done.returncode == code, done.stderr
        return done.stdout

    call.work, call.packages = work, packages
    return call


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_file_that_people_are_sent_to(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("mer_dist/")}
        (metadata,) = (archive.read(name) for name in archive.namelist() if name.endswith("/METADATA"))
    modules = {
        path.relative_to(ROOT).as_posix(): path
        for path in (ROOT / "mer_dist").rglob("*.py*")
        if path.suffix != ".pyc"
    }
    beside = {f"mer_dist/share/{name}": ROOT / name for name in config_files.names()}
    assert held.keys() == modules.keys() | beside.keys() | {"mer_dist/py.typed"}
    assert all(held[name] == path.read_bytes() for name, path in beside.items())
    assert f"\nVersion: {VERSION}\n" in metadata.decode() and b"Classifier: Typing :: Typed" in metadata


@pytest.mark.slow
def test_an_installed_wheel_finds_the_files_that_come_along(installed):
    assert installed("mer-dist", "--version").strip() == VERSION
    assert installed("mer-dist", "config", "list").rstrip("\n") == config_files.listing()
    told = installed("mer-dist", "config", "copy", "baichuan-lora-1node.yaml", "copied")
    copied = installed.work / "copied"
    for name in ("configs/mer2024/baichuan-lora-1node.yaml", "launch/workstation.yaml"):
        assert f"copied/{name}: written" in told
        assert (copied / name).read_bytes() == (ROOT / name).read_bytes()
    again = installed("mer-dist", "config", "copy", "launch", "copied")
    assert "copied/launch/workstation.yaml: there already" in again


@pytest.mark.slow
def test_an_installed_wheel_does_a_whole_job_without_the_checkout(installed):
    work = installed.work
    media_files.write_corpus(work / "corpus", LABELED, UNLABELED)
    write_text(work / "job.yaml", JOB)
    random = np.random.default_rng(0)
    (work / "vectors").mkdir()
    for path in work.glob("corpus/video-*/*.mp4"):
        np.save(work / "vectors" / f"{path.stem}.npy", random.normal(size=6).astype(np.float32))
    installed("mer-dist", "shard", "job.yaml")
    for name, modality in (("voice", "audio"), ("line", "text")):
        installed("mer-dist", "import-features", "run", name, "vectors", "--modality", modality)
    installed("mer-dist", "fuse", "job.yaml")
    installed("mer-dist", "verify", "run")
    answers = (work / "run" / "answer.csv").read_text("utf-8").splitlines()
    assert answers[0] == "name,discrete" and len(answers) == 1 + UNLABELED
    # Python leaves what it has compiled beside the code that ran, and the installation compiled none.
    ran = {
        f"{path.parents[1].name}/{path.name.partition('.')[0]}"
        for path in installed.packages.glob("mer_dist/*/__pycache__/*.pyc")
    }
    assert ran >= {
        "stages/shard",
        "interop/npy",
        "stages/fuse",
        "fusion/self_training",
        "fusion/vote",
        "inspect/verify",
    }
