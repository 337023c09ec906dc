"""The lowest versions that setup.cfg allows, torch's apart, in an environment beside the one of the tests."""

from __future__ import annotations

import configparser
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT, skip

pytestmark = pytest.mark.long
#: What reads models, trains adapters, writes shards and reads configurations, by these packages, quickly.
TESTS = ("tests/models", "tests/shards", "tests/config/test_config.py", "-m", "not slow and not processes")


def lowest() -> list[str]:
    """``name==version`` of every package with a lower bound but torch, of which a build may be 3 GB."""
    asked = configparser.ConfigParser()
    asked.read(ROOT / "setup.cfg")
    lines = [*asked["options"]["install_requires"].split(), *asked["options.extras_require"]["train"].split()]
    return [line.replace(">=", "==") for line in lines if ">=" in line and not line.startswith("torch")]


def test_the_lowest_versions_that_are_allowed_work(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "lowest"], check=True)
    python = tmp_path / "lowest" / "bin" / "python"
    (site,) = (tmp_path / "lowest" / "lib").glob("python*/site-packages")
    # All that has no bound is found where the tests find it, after what is installed here.
    (site / "zz-tested.pth").write_text(sysconfig.get_path("purelib"))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    torch = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    done = subprocess.run([*pip, f"torch=={torch}", *lowest()], check=False, capture_output=True, text=True)
    if done.returncode:
        skip(f"the lowest versions cannot be installed: {done.stderr[-300:]}")
    command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-4000:]
