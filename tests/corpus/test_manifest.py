"""A corpus through one CSV, and how rows of people's CSV files are read."""

import pytest
from media_files import write_csv

from mer_dist.corpus import manifest, table
from mer_dist.errors import UserError
from mer_dist.records import EMOTIONS

HEADER = ["name", "video", "audio", "transcript", "label", "split"]


def test_a_manifest_gives_clips_with_paths_beside_it_and_the_split_that_follows_from_the_label(tmp_path):
    path = write_csv(tmp_path / "all.csv", [
        HEADER,
        ["b.mp4", "v/b.mp4", "", "null", "happy", ""],
        ["a", "", "s/a.wav", "   ", "", ""],
        ["c", "v/c.mp4", "", "NA", "sad", "unlabeled"],
    ])
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert problems == []
    b, a, c = clips
    assert (b.name, b.video, b.audio, b.transcript, b.label, b.split) == (
        "b", tmp_path / "v/b.mp4", None, "null", "happy", "labeled")
    assert (a.name, a.video, a.audio, a.transcript, a.label, a.split) == (
        "a", None, tmp_path / "s/a.wav", None, None, "unlabeled")
    # The label of a clip that is declared unlabelled must not reach any stage.
    assert (c.transcript, c.label) == ("NA", None)


def test_bad_rows_of_a_manifest_cost_only_themselves_and_are_named(tmp_path):
    path = tmp_path / "all.csv"
    path.write_bytes("\ufeff".encode() + b'''name,video,audio,transcript,label,split
good,a.mp4,,"says, ""yes""",happy,
short,a.mp4
long,a.mp4,,one, two,happy,
mood,a.mp4,,x,bored,
part,a.mp4,,x,happy,train
nolabel,a.mp4,,x,,labeled
bytes,a.mp4,,\xff\xfe,happy,
quote,a.mp4,,"never closed,happy,
last,a.mp4,,"two
lines",sad,labeled
''')
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert [(clip.name, clip.transcript) for clip in clips] == [
        ("good", 'says, "yes"'), ("last", "two\nlines")]
    reasons = {problem.name: problem.reason for problem in problems}
    assert {problem.lost for problem in problems} == {"clip"}
    assert reasons.keys() == {"short", "long", "mood", "part", "nolabel", "bytes", "quote"}
    assert "line 3: 2 fields instead of 6" in reasons["short"]
    assert "line 4: 7 fields instead of 6" in reasons["long"]
    assert "'bored' is not in corpus.labels" in reasons["mood"]
    assert "'train'" in reasons["part"]
    assert "line 8: not UTF-8" in reasons["bytes"]
    assert "line 9: not readable as CSV" in reasons["quote"]


def test_a_name_that_occurs_twice_is_refused_with_both_lines(tmp_path):
    path = write_csv(tmp_path / "all.csv", [
        HEADER, ["a", "", "", "x", "", ""], ["b", "", "", "x", "", ""], ["a.mp4", "", "", "x", "", ""]])
    with pytest.raises(UserError, match="'a' occurs twice: all.csv line 2 and all.csv line 4"):
        manifest.clips(path, list(EMOTIONS))


@pytest.mark.parametrize("name", [
    "a/b", "../a", ".a", "-a", "a.b", "a\x07b", "a\u202eb", "", " \u00a0", "x" * 201, "a\\b",
])
def test_a_name_that_is_unsafe_in_a_tar_is_refused_with_its_line(tmp_path, name):
    path = write_csv(tmp_path / "all.csv", [HEADER, [name, "", "", "x", "", ""]])
    with pytest.raises(UserError, match="all.csv line 2"):
        manifest.clips(path, list(EMOTIONS))


def test_a_header_without_a_column_is_refused_with_the_columns_there_are(tmp_path):
    path = write_csv(tmp_path / "all.csv", [["name", "video"], ["a", "b"]])
    with pytest.raises(UserError, match="lacks the columns audio, transcript, label, split"):
        manifest.clips(path, list(EMOTIONS))
    with pytest.raises(UserError, match="nothing.csv: cannot be read"):
        manifest.clips(tmp_path / "nothing.csv", list(EMOTIONS))


def test_the_published_meld_transcripts_are_read_whole(shared):
    rows = table.read(shared / "data" / "meld" / "transcription.csv", ("name", "chinese"))
    assert len(rows.rows) == 13_708 and rows.bad == {}
    assert rows.rows["train_dia0_utt1"]["chinese"] == "你一定忙得不可开交。"
