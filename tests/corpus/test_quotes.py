"""Rows between a quote and the one that closes it: read as rows, or as text where they are text."""

import logging

import pytest

from mer_dist.core.errors import UserError
from mer_dist.corpus import manifest, mer2024, table
from mer_dist.features.join import read_labels
from mer_dist.fusion.recipes import wanted_names

ROWS = "".join(f"c{row:02d},text number {row},{('calm', 'tense')[row % 2]}\n" for row in range(6))
SWALLOWED = 'q1,"I told him,calm\nc10,more,tense\nu11,free,\nq2,go away",tense\n'


def test_rows_that_a_quote_swallowed_are_read_and_the_two_that_hold_it_are_named(tmp_path):
    (tmp_path / "all.csv").write_text(f"name,transcript,label\n{ROWS}{SWALLOWED}z1,last,calm\n")
    clips, problems = manifest.clips(tmp_path / "all.csv", ["calm", "tense"])
    found = {clip.name: (clip.transcript, clip.label) for clip in clips}
    assert len(found) == 9 and "q1" not in found and "q2" not in found
    assert (found["c10"], found["u11"], found["z1"]) == (("more", "tense"), ("free", None), ("last", "calm"))
    reasons = {problem.name: problem.reason for problem in problems}
    assert reasons.keys() == {"q1", "q2"}
    assert reasons["q1"].startswith(
        "all.csv line 8: a quote that is opened here is closed only after other rows (lines 8 to 11)"
    )
    assert reasons["q2"].startswith(
        "all.csv line 11: a quote that is closed here was opened in a row before (lines 8 to 11)"
    )


@pytest.mark.parametrize(
    ("head", "rows", "bad", "kept"),
    [
        # Two columns and names of letters alone: the label tells.
        (
            "name,label",
            'ann,calm\nbob,tense\ncid,"calm\ndan,calm\neva,tense"\n',
            {"cid", "eva"},
            "ann bob dan",
        ),
        # The name stands behind the text.
        (
            "text,name,label",
            'a b,c1,calm\n"so I,c2,calm\nc d,c3,tense\ngo away",c4,tense\n',
            {"c2", "c4"},
            "c1 c3",
        ),
        # It closes in the very next row, which ends in another field than it began.
        (
            "name,label,text",
            'c1,calm,a\nc2,calm,"so\nc3,tense,then, he"\nc4,tense,d\n',
            {"c2", "c3"},
            "c1 c4",
        ),
        # The first row opens it, the last one closes it, and no other is whole.
        ("name,text,label", 'c1,"a,calm\nc2,b,calm\nc3,c",tense\n', {"c1", "c3"}, "c2"),
        # Twice, with another delimiter.
        (
            "name;text;label",
            'c1;"a;calm\nc2;b";calm\nc3;c;tense\nc4;"d;calm\nc5;e;calm\nc6;f";tense\n',
            {"c1", "c2", "c4", "c6"},
            "c3 c5",
        ),
    ],
)
def test_swallowed_rows_are_known_in_every_kind_of_table(tmp_path, head, rows, bad, kept):
    (tmp_path / "t.csv").write_text(f"{head}\n{rows}")
    found = table.read(tmp_path / "t.csv", ("name", *head.replace(";", ",").split(",")))
    assert " ".join(found.rows) == kept
    assert set(found.bad) == bad


@pytest.mark.parametrize(
    ("head", "row", "text"),
    [
        (
            "name,text,label",
            'c9,"Well, yes, of course,\nand no, never, ever",calm',
            "Well, yes, of course,\nand no, never, ever",
        ),
        ("name,chinese", 'c9,"Yes, I know\nNo, you don\'t\n2, 3"', "Yes, I know\nNo, you don't\n2, 3"),
        ("text,name,label", '"one\n\ntwo",c9,calm', "one\n\ntwo"),
        ("name,text,label", 'c9,"1,2,3\n4,5,6\n",calm', "1,2,3\n4,5,6\n"),
        ("name,text,label", 'c9,"c8\nc7 said ""go"", then left",calm', 'c8\nc7 said "go", then left'),
    ],
)
def test_a_transcript_of_several_lines_goes_through_without_a_word(tmp_path, caplog, head, row, text):
    column = "chinese" if "chinese" in head else "text"
    plain = {"name": "c1", "label": "calm", column: "a word"}
    first = ",".join(plain[name] for name in head.split(","))
    (tmp_path / "t.csv").write_text(f"{head}\n{first}\n{row}\n{first.replace('c1', 'c2')}\n")
    with caplog.at_level(logging.INFO):
        found = table.read(tmp_path / "t.csv", ("name",))
    assert found.rows["c9"][column] == text
    assert len(found.rows) == 3 and not found.bad and not caplog.messages


def test_turns_of_speakers_are_no_rows(tmp_path, caplog):
    (tmp_path / "t.csv").write_text('name,text\nc01,hello\nc02,"A1,hello\nB2,hi"\nc03,x\n')
    assert table.read(tmp_path / "t.csv", ("name",)).rows["c02"]["text"] == "A1,hello\nB2,hi"
    assert "the quote in line 3 is closed in line 4" in caplog.text


def test_lines_that_may_be_rows_or_not_stay_text_and_are_told_with_both_ends_of_the_quote(tmp_path, caplog):
    (tmp_path / "t.csv").write_text('name,text\nann,hello\nbob,"yes\nwell,no\nso"\n')
    found = table.read(tmp_path / "t.csv", ("name",))
    assert found.rows["bob"]["text"] == "yes\nwell,no\nso"
    assert (
        "t.csv: the quote in line 3 is closed in line 5" in caplog.text
        and "line 4 looks like a row" in caplog.text
    )
    # A name that the corpus knows leaves no doubt.
    found = table.read(tmp_path / "t.csv", ("name",), known={"ann", "bob", "well"})
    assert found.rows.keys() == {"ann", "well"} and found.bad.keys() == {"bob", "t.csv:5"}


def test_labels_transcripts_and_names_to_answer_lose_no_row_to_a_quote(tmp_path):
    (tmp_path / "labels.csv").write_text(f"name,text,label\n{ROWS}{SWALLOWED}")
    found, problems = read_labels(tmp_path / "labels.csv", ["calm", "tense"])
    assert len(found) == 8 and found["c10"] == "tense" and found["u11"] is None
    assert [problem.name for problem in problems] == ["q1", "q2"]

    for name in ("l1", "l2", "l3", "l4"):
        (tmp_path / "video-labeled").mkdir(exist_ok=True)
        (tmp_path / "video-labeled" / f"{name}.mp4").touch()
    (tmp_path / "label-disdim.csv").write_text(
        "name,discrete\n" + "".join(f"l{n},calm\n" for n in range(1, 5))
    )
    (tmp_path / "label-transcription.csv").write_text('name,chinese\nl1,a\nl2,"b\nl3,c\nl4,d"\nghost,x\n')
    clips, problems = mer2024.clips(tmp_path, ["calm", "tense"])
    assert {clip.name: clip.transcript for clip in clips} == {"l1": "a", "l2": None, "l3": "c", "l4": None}
    assert {(problem.name, problem.lost) for problem in problems} == {("l2", "text"), ("l4", "text")}
    assert "after other rows (lines 3 to 5)" in problems[0].reason

    (tmp_path / "wanted.csv").write_text('name\nu01\n"u02\nu03\nu04"\n')
    with pytest.raises(
        UserError,
        match=r"line 3: a quote that is opened here is closed only after other rows \(lines 3 to 5\)",
    ):
        wanted_names(str(tmp_path / "wanted.csv"))
