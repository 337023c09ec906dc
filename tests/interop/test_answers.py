"""The answers of an outside labeller: what is understood, what is left out and told, what is refused in a line."""

from __future__ import annotations

import fusion_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_dist.cli import main
from mer_dist.core.errors import UserError
from mer_dist.interop.answers import import_answers
from mer_dist.storage import parquet
from mer_dist.storage.run_folder import Run

LABELS = fusion_run.LABELS
NAMES = fusion_run.names(6)


@pytest.fixture
def run(tmp_path) -> Run:
    """Three labelled clips and three to be answered."""
    fusion_run.write_labels(tmp_path, np.array([0, 1, 2, 0, 1, 2]), 3)
    return Run(fusion_run.configure(tmp_path).run.folder)


def read(run: Run, name: str = "llm") -> dict[str, list[float]]:
    content = parquet.read(run.teacher(name)).to_pydict()
    return {
        clip: [round(content[f"p_{label}"][row], 3) for label in LABELS]
        for row, clip in enumerate(content["name"])
    }


def table(tmp_path, content: str):
    path = tmp_path / "said.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_labels_with_and_without_confidence_in_any_letters_for_any_part_of_the_clips(run, tmp_path, caplog):
    caplog.set_level("INFO")
    path = table(
        tmp_path,
        f"name,Label,confidence\n{NAMES[0]},Neutral,0.6\n{NAMES[4]}.mp4,ANGRY,\n{NAMES[2]},happy,1\n",
    )
    import_answers(run, "llm", path)
    assert read(run) == {NAMES[0]: [0.6, 0.2, 0.2], NAMES[2]: [0.0, 0.0, 1.0], NAMES[4]: [0.05, 0.9, 0.05]}
    assert "answers for 2 of 3 labelled and 1 of 3 unlabelled clips" in caplog.text
    assert "WAF 100.00 % on these labelled clips; whether it has seen them" in caplog.text
    assert "with fewer than 20 labelled clips it has no say" in caplog.text
    assert "vote.teachers: [llm]" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_probabilities_of_each_label_in_any_order(run, tmp_path, kind):
    columns = {"name": NAMES[:2], "p_happy": [0.7, 0.1], "p_neutral": [0.2, 0.1], "p_angry": [0.1, 0.81]}
    path = tmp_path / f"said.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    import_answers(run, "llm", path)
    assert read(run) == {NAMES[0]: [0.2, 0.1, 0.7], NAMES[1]: [0.099, 0.802, 0.099]}


def test_rows_that_cannot_be_used_are_left_out_and_told(run, tmp_path, caplog):
    path = table(
        tmp_path,
        f"name,label,confidence\n{NAMES[0]},neutral,0.6\n{NAMES[1]},bored,0.9\n{NAMES[2]},happy,87\n"
        f"{NAMES[3]},happy,high\nnobody,happy,0.5\n",
    )
    import_answers(run, "llm", path)
    assert [*read(run)] == [NAMES[0]]
    assert (
        "3 of 5 rows cannot be used; the first: said.csv line 3: label 'bored' is not in corpus.labels"
        in caplog.text
    )
    assert "1 rows are of no clip of this run and are left out: nobody" in caplog.text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("name\nclip_0000\n", "needs a column label, or discrete"),
        ("name,label\nclip_0000,bored\n", "no row can be used; said.csv line 2: label 'bored'"),
        (
            "name,label\nclip_0000,happy\nclip_0000,angry\n",
            "occurs twice: said.csv line 2 and said.csv line 3",
        ),
        ("name,label\nother,happy\n", "covers none of the 6 clips"),
        ("name,p_happy,p_angry\nclip_0000,0.5,0.5\n", "lacks those of neutral"),
        ("name,p_happy,p_bored\nclip_0000,0.5,0.5\n", "column p_bored: label 'bored'"),
        ("name,p_happy,p_angry,p_neutral\nclip_0000,0.5,0.5,0.5\n", "its probabilities sum to 1.5"),
        ("name,p_happy,p_angry,p_neutral\nclip_0000,1.5,-0.5,0\n", "some are negative"),
        ("name,p_happy,p_angry,p_neutral\nclip_0000,x,0,0\n", "'x' is no number"),
        ("name,label\n", "no row can be used; it has none"),
        ("name,label,prediction\nclip_0000,happy,angry\n", "the truth must not pass for an answer"),
        ("name,label,score\nclip_0000,happy,0.7\n", "column 'score' is not read: call it confidence"),
        ("name,label,Confidence (%)\nclip_0000,happy,70\n", "column 'confidence (%)' is not read"),
        ("name,label,confidence\nclip_0000,happy,0.1\n", "is below chance among 3 labels"),
        (
            "name,label,p_happy,p_angry,p_neutral\nclip_0000,angry,0.8,0.1,0.1\n",
            "its label is angry, and the most probable one happy",
        ),
    ],
)
def test_what_is_of_no_use_is_refused_in_a_line_and_leaves_what_was_there(run, tmp_path, content, why):
    import_answers(run, "llm", table(tmp_path, f"name,label\n{NAMES[0]},happy\n"))
    before = run.teacher("llm").read_bytes()
    with pytest.raises(UserError) as error:
        import_answers(run, "llm", table(tmp_path, content))
    assert why in str(error.value) and "\n" not in str(error.value)
    assert run.teacher("llm").read_bytes() == before


def test_a_run_without_labels_a_bad_name_and_a_broken_parquet_file_are_refused(run, tmp_path):
    path = table(tmp_path, f"name,label\n{NAMES[0]},happy\n")
    with pytest.raises(UserError, match="no labels yet; run shard or fuse first"):
        import_answers(Run(tmp_path / "nothing"), "llm", path)
    with pytest.raises(UserError, match="a name is letters"):
        import_answers(run, "../llm", path)
    broken = tmp_path / "said.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"said\.parquet: not readable"):
        import_answers(run, "llm", broken)
    pq.write_table(pa.table({"clip": ["a"]}), broken)
    with pytest.raises(UserError, match="lacks the column name; it has: clip"):
        import_answers(run, "llm", broken)


def test_the_command(run, tmp_path):
    path = table(tmp_path, f"name,discrete\n{NAMES[0]},happy\n")
    assert main(["import-answers", str(run.folder), "llm", str(path)]) == 0 and run.teacher("llm").exists()
    assert main(["import-answers", str(run.folder), "llm", str(tmp_path / "gone.csv")]) == 2
