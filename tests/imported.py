"""What a command imports, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Each of them costs a tenth of a second to ten seconds of a processor.
HEAVY = {
    *("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes", "webdataset"),
    *("sklearn", "scipy", "cv2", "av", "soundfile", "sentencepiece", "submitit", "tensorboard"),
}
PROGRAM = """
import sys
from mer_dist.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("IMPORTED", *sys.modules)
sys.exit(code)
"""


def heavy(*arguments: str | Path, code: int = 0) -> set[str]:
    """Those of :data:`HEAVY` that ``mer-dist`` imports for these arguments; it must end with ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("IMPORTED "))
    return HEAVY & set(line.split())
