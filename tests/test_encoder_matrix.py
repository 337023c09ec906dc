"""Every ``model_type`` through ``shard``, ``finetune`` and ``extract`` as docs/encoders.md says in its table: two processes
under ZeRO-3 learn what one process learns, and what cannot be done is refused."""

from __future__ import annotations

import re
from pathlib import Path

import any_encoder
import media_files
import numpy as np
import pytest
from small_job import mer_dist

from mer_dist.features import store
from mer_dist.models.family import FAMILIES
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

pytestmark = [pytest.mark.slow, pytest.mark.processes]
#: Of a training by each method.
METHODS = {"LoRA": "method: lora", "full": "method: full", "NF4": "method: lora"}
MAKERS = {
    "text": (any_encoder.text, any_encoder.TEXT),
    "audio": (any_encoder.audio, [*any_encoder.AUDIO, *any_encoder.SPECTROGRAM]),
    "image": (any_encoder.image, any_encoder.IMAGE),
    "video": (any_encoder.video, any_encoder.VIDEO),
}
JOB = """
run: {{folder: {folder}/run, processes: {processes}}}
corpus: {{path: {folder}/corpus}}
shard: {{workers: 1, clips: 9, frames: 5, image_size: 32, faces: none}}
folds: {{count: 2}}
extract: {{frozen: false}}
extractors:
{extractors}
"""
ONE = "  {name}: {{family: {family}, path: {path}, quantize: {quantize}, finetune: {{{method}, cross_fit: false, {rest}}}}}"
# Sixteen clips: two batches of two passes each, whether one process takes both or two take one each. Dropout follows the
# pass.
REST = (
    "epochs: 1, batch: 8, micro_batch: 4, precision: fp32, learning_rate: 1e-3, lora: {rank: 2, dropout: 0.0}"
)


def table() -> dict[str, dict[str, str]]:
    """model_type -> column -> cell, of the table in docs/encoders.md."""
    text = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    columns, found = rows[0], {}
    for row in rows[2:]:
        for model_type in row[1].split(", "):
            found[model_type] = dict(zip(columns, row, strict=True))
    return found


def of_case(case: str) -> str:
    """The ``model_type`` of a case of :mod:`any_encoder`."""
    return any_encoder.AUDIO[case][0] if case in any_encoder.AUDIO else case


def test_the_table_has_every_type_of_every_family_and_no_other():
    cells = table()
    for family, (_, cases) in MAKERS.items():
        types = {name for name, row in cells.items() if row["family"] == f"`{family}`"}
        assert types == {*FAMILIES[family].model_types} == {of_case(case) for case in cases}
    assert {row[column] for row in cells.values() for column in METHODS} <= {"yes", "no"}


@pytest.mark.long
@pytest.mark.parametrize("column", METHODS)
@pytest.mark.parametrize("family", MAKERS)
def test_two_processes_under_zero_3_learn_what_one_learns_and_only_what_the_table_says_is_possible(
    tmp_path, family, column
):
    make, cases = MAKERS[family]
    able = [case for case in cases if table()[of_case(case)][column] == "yes"]
    features: dict[int, dict[str, np.ndarray]] = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        media_files.write_corpus(folder / "corpus", 16, 4)
        extractors = "\n".join(
            ONE.format(
                name=re.sub(r"\W", "_", case),
                family=family,
                path=make(folder / re.sub(r"\W", "_", case), case),
                quantize="nf4" if column == "NF4" else "none",
                method=METHODS[column],
                rest=REST,
            )
            for case in able
        )
        job = folder / "job.yaml"
        files.write_text(job, JOB.format(folder=folder, processes=processes, extractors=extractors))
        for stage in ("shard", "finetune", "extract"):
            done = mer_dist(stage, job, processes=1 if stage == "shard" else processes)
            assert done.returncode == 0, done.stderr[-4000:]
        names = [re.sub(r"\W", "_", case) for case in able]
        run = Run(folder / "run")
        features[processes] = {name: store.load(run.features(f"{name}@all")).utterance for name in names}
    planned = mer_dist("plan", job)
    assert planned.returncode == 0 and all(name in planned.stdout for name in names), planned.stderr[-2000:]
    for name, one in features[1].items():
        two = features[2][name]
        assert np.isfinite(one).all() and one.std() > 0, name
        assert np.linalg.norm(two - one) < 1e-3 * np.linalg.norm(one), name
