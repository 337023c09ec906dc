"""The examples run as they are, and the notebook shows what its cells print."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import notebook
import pytest
import small_job
from conftest import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"


def said(*words) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], check=False, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


def test_features_in_arrays():
    text = said(EXAMPLES / "features.py")
    assert "all sets (logistic regression)" in text and "prior-aware vote" in text
    assert float(re.search(r"new clips: ([\d.]+) % right", text)[1]) > 70
    assert "the first: {'calm': " in text


def masked(text: str) -> str:
    """Without numbers, whose last digits differ from machine to machine."""
    return re.sub(r"[\d.]+", "#", text)


def test_the_notebook_has_the_output_of_every_cell():
    """A light part of the next test: what was run and saved."""
    cells = json.loads((EXAMPLES / "features.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        compile("".join(cell["source"]), "features.ipynb", "exec")
    assert any(cell["outputs"] for cell in code)


@pytest.mark.long
def test_the_notebook_was_run_and_shows_what_its_cells_print():
    content = json.loads((EXAMPLES / "features.ipynb").read_text("utf-8"))
    shown = [
        "".join(text for output in cell["outputs"] for text in output["text"])
        for cell in content["cells"]
        if cell["cell_type"] == "code"
    ]
    found = notebook.outputs(content)
    assert [masked(text) for text in shown] == [masked(text) for text in found] and any(found)
    numbers = [[float(one) for one in re.findall(r"\d+\.\d+", "".join(texts))] for texts in (shown, found)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2.0)


def test_a_whole_job_and_then_new_clips(tmp_path):
    job = small_job.make(tmp_path)
    text = said(EXAMPLES / "job.py", job, "vote.prior=none", "extract.frame_level=false")
    assert "out of fold: WAF " in text and f"{small_job.UNLABELED} answers" in text
    assert "features clip@tuned: (34, " in text and "left out" not in text
    clips = sorted(tmp_path.glob("corpus/video-unlabeled*/*.mp4"))[:2]
    text = said(EXAMPLES / "predict.py", tmp_path / "run", *clips)
    assert f"{clips[1].stem}: " in text and "missing: text" in text and "  hubert alone: " in text
