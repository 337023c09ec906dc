"""What tests start and end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from processes import alive, run

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    told = tmp_path / "child"
    with pytest.raises(subprocess.TimeoutExpired):
        run([sys.executable, "-c", PARENT, told], os.environ, 3)
    child = int(told.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and alive(psutil.Process(child)):
        assert time.monotonic() < deadline, "it goes on beside the next test"
        time.sleep(0.05)


def test_what_a_command_says_and_ends_with_is_told():
    done = run([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], os.environ, 60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
