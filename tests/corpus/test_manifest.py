"""A corpus through one CSV, and how rows of people's CSV files are read."""

import pytest
from media_files import write_csv

from mer_dist.core.errors import UserError
from mer_dist.core.log import setup
from mer_dist.core.records import EMOTIONS
from mer_dist.corpus import manifest, table

HEADER = ["name", "video", "audio", "transcript", "label", "split"]


def test_a_manifest_gives_clips_with_paths_beside_it_and_the_split_that_follows_from_the_label(tmp_path):
    path = write_csv(
        tmp_path / "all.csv",
        [
            HEADER,
            ["b.mp4", "v/b.mp4", "", "nullify", "happy", ""],
            ["a", "", "s/a.wav", "   ", "", ""],
            ["c", "v/c.mp4", "", "x", "sad", "unlabeled"],
        ],
    )
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert problems == []
    b, a, c = clips
    assert (b.name, b.video, b.audio, b.transcript, b.label, b.split) == (
        "b",
        tmp_path / "v/b.mp4",
        None,
        "nullify",
        "happy",
        "labeled",
    )
    assert (a.name, a.video, a.audio, a.transcript, a.label, a.split) == (
        "a",
        None,
        tmp_path / "s/a.wav",
        None,
        None,
        "unlabeled",
    )
    # The label of a clip that is declared unlabelled must not reach any stage.
    assert (c.transcript, c.label) == ("x", None)


def test_bad_rows_of_a_manifest_cost_only_themselves_and_are_named(tmp_path):
    path = tmp_path / "all.csv"
    path.write_bytes(
        "\ufeff".encode()
        + b'''name,video,audio,transcript,label,split
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
'''
    )
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert [(clip.name, clip.transcript) for clip in clips] == [
        ("good", 'says, "yes"'),
        ("last", "two\nlines"),
    ]
    reasons = {problem.name: problem.reason for problem in problems}
    assert {problem.lost for problem in problems} == {"clip"}
    assert reasons.keys() == {"short", "long", "mood", "part", "nolabel", "bytes", "quote"}
    assert "line 3: 2 fields instead of 6" in reasons["short"]
    assert "line 4: 7 fields instead of 6" in reasons["long"]
    assert "'bored' is not in corpus.labels" in reasons["mood"]
    assert "'train'" in reasons["part"]
    assert "line 8: not UTF-8; save the table in that encoding" in reasons["bytes"]
    assert "line 9: not readable as CSV" in reasons["quote"]


def test_a_name_that_occurs_twice_is_refused_with_both_lines(tmp_path):
    path = write_csv(
        tmp_path / "all.csv",
        [HEADER, ["a", "", "", "x", "", ""], ["b", "", "", "x", "", ""], ["a.mp4", "", "", "x", "", ""]],
    )
    with pytest.raises(UserError, match="'a' occurs twice: all.csv line 2 and all.csv line 4"):
        manifest.clips(path, list(EMOTIONS))


@pytest.mark.parametrize(
    "name", ["a/b", "../a", ".a", "..", "a\x07b", "a\u202eb", "", " \u00a0", "x" * 201, "a\\b"]
)
def test_a_name_that_is_unsafe_in_a_tar_is_refused_with_its_line(tmp_path, name):
    path = write_csv(tmp_path / "all.csv", [HEADER, [name, "", "", "x", "", ""]])
    with pytest.raises(UserError, match="all.csv line 2"):
        manifest.clips(path, list(EMOTIONS))


def test_a_header_without_a_column_is_refused_with_the_columns_there_are(tmp_path):
    path = write_csv(tmp_path / "all.csv", [["clip", "video"], ["a", "b"]])
    with pytest.raises(UserError, match="lacks the columns name; it has: 'clip', 'video'"):
        manifest.clips(path, list(EMOTIONS))
    path = write_csv(tmp_path / "all.csv", [["name", "label"], ["a", "sad"]])
    with pytest.raises(UserError, match="of the columns video, audio, transcript; it has: 'name', 'label'"):
        manifest.clips(path, list(EMOTIONS))
    with pytest.raises(UserError, match="nothing.csv: cannot be read"):
        manifest.clips(tmp_path / "nothing.csv", list(EMOTIONS))


def test_the_published_meld_transcripts_are_read_whole(shared):
    rows = table.read(shared / "data" / "meld" / "transcription.csv", ("name", "chinese"))
    assert len(rows.rows) == 13_708 and rows.bad == {}
    assert rows.rows["train_dia0_utt1"]["chinese"] == "你一定忙得不可开交。"


def test_columns_in_which_nothing_would_stand_may_be_absent(tmp_path):
    path = write_csv(
        tmp_path / "all.csv", [[" Name ", "TRANSCRIPT", "note"], ["a", "hello", "x"], ["b", "", "y"]]
    )
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert problems == []
    assert [(clip.name, clip.video, clip.transcript, clip.label, clip.split) for clip in clips] == [
        ("a", None, "hello", None, "unlabeled"),
        ("b", None, None, None, "unlabeled"),
    ]


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("name,video,text", "transcript"),
        ("name,video,lable", "label"),
        ("name,transcript,emotion", "label"),
        ("name,transcript,Video Path,vidoe", "video"),
        ("name,video,splits", "split"),
    ],
)
def test_a_column_under_another_name_is_asked_for_and_not_passed_over(tmp_path, header, meant):
    (tmp_path / "all.csv").write_text(f"{header}\na{',x' * header.count(',')}\n")
    with pytest.raises(UserError, match=f"it has no column {meant}, but one '[a-z]+'; call it {meant}"):
        manifest.clips(tmp_path / "all.csv", list(EMOTIONS))


def test_a_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "all.csv").write_text("name,video,label,Label\na,v.mp4,sad,happy\n")
    with pytest.raises(UserError, match="the column 'label' twice"):
        manifest.clips(tmp_path / "all.csv", list(EMOTIONS))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("before", ["", "\n", "sep={}\n", '"sep={}"\r\n'])
def test_other_delimiters_are_known_by_the_header(tmp_path, delimiter, before):
    rows = [
        HEADER,
        ["a", "v.mp4", "", "yes, of course", "sad", ""],
        ["", "", "", "", "", ""],
        ["b", "", "", f'"says {delimiter} ""no"""', "", "unlabeled"],
    ]
    text = before.format(delimiter) + "".join(delimiter.join(row) + "\r\n" for row in rows)
    (tmp_path / "all.csv").write_bytes(text.encode())
    clips, problems = manifest.clips(tmp_path / "all.csv", list(EMOTIONS))
    assert problems == []
    assert [(clip.name, clip.transcript, clip.label) for clip in clips] == [
        ("a", "yes, of course", "sad"),
        ("b", f'says {delimiter} "no"', None),
    ]


def test_a_header_over_two_lines_and_a_semicolon_in_a_comma_table_are_read_as_they_are(tmp_path):
    (tmp_path / "all.csv").write_text('name,"note;\nor more",transcript\na,x,"one; two"\n')
    ((clip,), problems) = manifest.clips(tmp_path / "all.csv", list(EMOTIONS))
    assert clip.transcript == "one; two" and problems == []


def test_labels_and_splits_are_understood_where_they_are_clear_and_hinted_at_where_not(tmp_path, capsys):
    setup("test")
    cells = {
        "a": ("Angry", ""),
        "b": (" ANGRY ", "Labelled"),
        "c": ("ａｎｇｒｙ", ""),
        "d": ("", "UNLABELED"),
        "e": ("Ab", ""),
        "f": ("nan", "labeled"),
        "g": ("angy", ""),
        "h": ("开心", ""),
        "i": ("angry", "train"),
        "j": ("angry", "test"),
        "k": ("", "labeled"),
        "l": ("3", ""),
    }
    path = write_csv(
        tmp_path / "all.csv",
        [HEADER, *([name, "", "", "x", label, split] for name, (label, split) in cells.items())],
    )
    clips, problems = manifest.clips(path, ["angry", "AB", "ab"])
    assert {clip.name: clip.label for clip in clips} == {"a": "angry", "b": "angry", "c": "angry", "d": None}
    assert "3 labels in other letters were understood: 'Angry' as 'angry'" in capsys.readouterr().err
    reasons = {problem.name: problem.reason for problem in problems}
    assert reasons.keys() == set("efghijkl")
    for name, words in {
        "e": "line 6: label 'Ab' is not in corpus.labels: angry, AB, ab; is 'AB' or 'ab' meant?",
        "f": "label 'nan' is not in corpus.labels: angry, AB, ab; leave label and split empty",
        "g": "is 'angry' meant?",
        "h": "label '开心' is not in corpus.labels: angry, AB, ab; correct the cell",
        "i": "split 'train' is neither labeled nor unlabeled; write labeled",
        "j": "write unlabeled",
        "k": "leave label and split empty",
        "l": "numbers can be labels, too",
    }.items():
        assert words in reasons[name], reasons[name]


def test_paths_of_other_systems_are_found_where_a_file_is_and_stay_as_they_stand_where_none_is(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = [
        "clips/a.mp4",
        "clips/my clip.mp4",
        "clips/100%.mp4",
        "clips/b%20.mp4",
        "home/h.mp4",
        "clips/A.MP4",
        "clips/cafe\u0301.mp4",
        "clips/back\\slash.mp4",
        "clips/x.Mp4",
    ]
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cells = {
        "clips/a.mp4": "clips/a.mp4",
        "clips\\a.mp4": "clips/a.mp4",
        "..\\{}\\clips\\a.mp4": "../{}/clips/a.mp4",
        "clips/my%20clip.mp4": "clips/my clip.mp4",
        "clips/100%.mp4": "clips/100%.mp4",
        "clips/b%20.mp4": "clips/b%20.mp4",
        "~/h.mp4": "home/h.mp4",
        "clips/X.MP4": "clips/x.Mp4",
        "clips/caf\u00e9.mp4": "clips/cafe\u0301.mp4",
        "clips\\back\\slash.mp4": "clips\\back\\slash.mp4",
        "clips/back\\slash.mp4": "clips/back\\slash.mp4",
        "clips/a.Mp4": "clips/a.Mp4",
        "C:\\clips\\a.mp4": "C:\\clips\\a.mp4",
        f"{tmp_path}/clips/a.mp4": "clips/a.mp4",
        f"file://{tmp_path}/clips/my%20clip.mp4": "clips/my clip.mp4",
        "gone/a.mp4": "gone/a.mp4",
    }
    rows = [[f"c{row:02d}", cell.format(tmp_path.name), "", "", "", ""] for row, cell in enumerate(cells)]
    clips, problems = manifest.clips(write_csv(tmp_path / "all.csv", [HEADER, *rows]), list(EMOTIONS))
    found = [clip.video for clip in clips]
    assert problems == []
    assert found == [tmp_path / place.format(tmp_path.name) for place in cells.values()]


def test_names_of_media_files_with_dots_and_hyphens_are_kept(tmp_path):
    path = write_csv(
        tmp_path / "all.csv",
        [
            HEADER,
            *(
                [name, "", "", "x", "", ""]
                for name in ("ep01.s03.mp4", "-9YyBTjo1zo.WEBM", "a.b.wav", "v1.0", "c.", "dia12.264")
            ),
        ],
    )
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert problems == [] and [clip.name for clip in clips] == [
        "-9YyBTjo1zo",
        "a.b",
        "c.",
        "dia12.264",
        "ep01.s03",
        "v1.0",
    ]


def test_names_that_are_spelled_in_two_ways_are_one_name(tmp_path):
    path = write_csv(tmp_path / "all.csv", [HEADER, ["cafe\u0301", "", "", "x", "", ""]])
    assert [clip.name for clip in manifest.clips(path, list(EMOTIONS))[0]] == ["caf\u00e9"]
    path = write_csv(
        tmp_path / "all.csv",
        [HEADER, ["cafe\u0301", "", "", "x", "", ""], ["caf\u00e9.mp4", "", "", "x", "", ""]],
    )
    with pytest.raises(UserError, match="'caf\u00e9' occurs twice: all.csv line 2 and all.csv line 3"):
        manifest.clips(path, list(EMOTIONS))


@pytest.mark.parametrize(
    "columns",
    [
        ("start", "end"),
        ("Start_Time (sec)", "End_Time (sec)"),
        ("onset", "offset"),
        ("xmin", "xmax"),
        ("Begin Time - ss.msec", "End Time - ss.msec"),
        ("Begin Time - hh:mm:ss.ms", "End Time - hh:mm:ss.ms"),
        ("begin_ms", "end_ms"),
        ("from", "to"),
    ],
)
def test_rows_that_are_parts_of_one_film_are_not_stored_whole(tmp_path, columns):
    header = [*HEADER, *columns]

    def listed(*rows):
        return manifest.clips(write_csv(tmp_path / "all.csv", [header, *rows]), list(EMOTIONS))

    film = [[f"u{n}", "film.mp4", "", "x", "happy", "", str(n), str(n + 1)] for n in range(3)]
    other = ["v", "other.mp4", "", "x", "sad", "", "0", "9"]
    with pytest.raises(
        UserError, match=r"every clip is a part of a file; the first: all.csv line 2: .*ffmpeg"
    ):
        listed(*film, other)
    clips, problems = listed(*film, other, ["w", "own.mp4", "", "x", "sad", "", "", ""])
    assert [clip.name for clip in clips] == ["w"]
    assert [(problem.name, problem.lost) for problem in problems] == [
        (n, "clip") for n in ("u0", "u1", "u2", "v")
    ]
    shown = ", ".join(f"{column.casefold()} {time}" for column, time in zip(columns, (1, 2), strict=True))
    assert f"all.csv line 3: it is a part of film.mp4 by its columns ({shown})" in problems[1].reason


def test_times_beside_files_of_their_own_say_where_those_were_cut_out(tmp_path):
    """As in MELD; two names for one file are still two names, and a file that twice has other times is none."""
    header = [*HEADER, "StartTime", "EndTime"]
    rows = [[f"u{n}", f"{n}.mp4", "", "x", "happy", "", f"00:0{n}", f"00:0{n + 1}"] for n in range(6)]
    twice = ["again", "0.mp4", "", "x", "happy", "", "00:00", "00:01"]
    path = write_csv(tmp_path / "all.csv", [header, *rows, twice])
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert len(clips) == 7 and problems == []
    path = write_csv(tmp_path / "all.csv", [header, *rows, [*twice[:-1], "00:02"]])
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert len(clips) == 5 and {problem.name for problem in problems} == {"again", "u0"}


FILM_TIMES = {
    "German": (("Nr", "von", "bis"), [("1", "0,5", "2,5"), ("2", "2,5", "4,0"), ("3", "6", "7,25")]),
    "Chinese": (("开始", "结束"), [("00:58.5", "01:00"), ("01:00", "1:02:00"), ("1:02:00", "1:02:01,5")]),
    "units": (("a", "b"), [("9 ms", "12 ms"), ("120 ms", "150 ms"), ("30 ms", "100 ms")]),
    "the end first": (("stopp", "go"), [("2", "1"), ("3", "2"), ("10", "9")]),
}


@pytest.mark.parametrize("kind", FILM_TIMES)
def test_times_of_one_film_are_known_by_their_values_under_any_name(tmp_path, kind):
    columns, times = FILM_TIMES[kind]
    rows = [[f"u{n}", "film.mp4", "", "x", "happy", "", *own] for n, own in enumerate(times)]
    empty = ["w", "own.mp4", "", "x", "sad", "", *[""] * len(columns)]
    clips, problems = manifest.clips(
        write_csv(tmp_path / "all.csv", [[*HEADER, *columns], *rows, empty]), list(EMOTIONS)
    )
    assert [clip.name for clip in clips] == ["w"]
    assert [problem.name for problem in problems] == ["u0", "u1", "u2"]
    begin, end = columns[-2:] if kind != "the end first" else columns[::-1]
    values = dict(zip(columns, times[0], strict=True))
    assert f"its columns ({begin} {values[begin]}, {end} {values[end]})" in problems[0].reason


@pytest.mark.parametrize(
    "numbers",
    [
        [("1", "2"), ("1.5", "3"), ("4", "5")],  # as two ratings
        [("1", "2"), ("2", "2"), ("4", "5")],
        [("1", "2"), ("3", "many"), ("4", "5")],
        [("1", "2"), ("3", ""), ("4", "5")],
        [("1", "2"), ("1", "2"), ("1", "2")],
    ],
)
def test_other_numbers_beside_names_of_one_file_are_no_times(tmp_path, numbers):
    rows = [[f"u{n}", "film.mp4", "", "x", "happy", "", *own] for n, own in enumerate(numbers)]
    path = write_csv(tmp_path / "all.csv", [[*HEADER, "valence", "arousal"], *rows])
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert len(clips) == 3 and problems == []
    # Of two rows any numbers may follow each other, and files of their own have any numbers.
    few = [[f"u{n}", "film.mp4", "", "x", "happy", "", str(2 * n), str(2 * n + 1)] for n in range(2)]
    own = [[f"v{n}", f"{n}.mp4", "", "x", "happy", "", str(n), str(n + 1)] for n in range(5)]
    path = write_csv(tmp_path / "all.csv", [[*HEADER, "valence", "arousal"], *few, *own])
    assert len(manifest.clips(path, list(EMOTIONS))[0]) == 7


@pytest.mark.parametrize("tail", ["last,a.mp4,", 'last,a.mp4,,"so it'])
def test_a_table_that_is_cut_off_is_told_in_its_last_row_alone(tmp_path, tail):
    path = tmp_path / "all.csv"
    path.write_text(f"{','.join(HEADER)}\nshort,a.mp4\ngood,a.mp4,,x,happy,\n{tail}")
    clips, problems = manifest.clips(path, list(EMOTIONS))
    assert [clip.name for clip in clips] == ["good"]
    reasons = {problem.name: problem.reason for problem in problems}
    assert reasons["last"].endswith("the file may be cut off here; compare it with its source")
    assert reasons["short"].endswith("2 fields instead of 6")


MARK = "\ufeff"


@pytest.mark.parametrize(
    ("first", "again", "row"),
    [
        ("", "name,transcript,label", "c2"),
        (MARK, MARK + "name,transcript,label", "c2"),
        ("", MARK + '"Name", transcript,LABEL', '"c2"'),
        (MARK, MARK + "name,transcript,label", MARK + "c2"),
        (MARK, "name,transcript,label\n" + MARK + "name,transcript,label", MARK + '"c2"'),
    ],
)
def test_the_header_of_a_second_table_in_one_file_is_no_clip_with_a_mark_or_without(
    tmp_path, caplog, first, again, row
):
    path = tmp_path / "all.csv"
    path.write_text(f"{first}name,transcript,label\nc1,hi,calm\n{again}\n{row},ho,tense\n", encoding="utf-8")
    clips, problems = manifest.clips(path, ["calm", "tense"])
    assert [(clip.name, clip.transcript, clip.label) for clip in clips] == [
        ("c1", "hi", "calm"),
        ("c2", "ho", "tense"),
    ]
    assert problems == []
    count = len(again.splitlines())
    assert f"the header is repeated in {count} lines, the first of them 3" in caplog.text


def test_a_mark_before_a_row_and_one_of_utf_16_are_no_part_of_a_name(tmp_path, caplog):
    path = tmp_path / "all.csv"
    path.write_text(f"name,transcript,label\n{MARK}c1,hi,calm\n", encoding="utf-8")
    table = "name,transcript,label\nc{},hi,calm\n"
    (tmp_path / "wide.csv").write_bytes(table.format(1).encode("utf-16") + table.format(2).encode("utf-16"))
    assert [clip.name for clip in manifest.clips(path, ["calm"])[0]] == ["c1"]
    assert "header" not in caplog.text
    assert [clip.name for clip in manifest.clips(tmp_path / "wide.csv", ["calm"])[0]] == ["c1", "c2"]


def test_a_second_header_with_the_columns_in_another_order_is_refused(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text(
        f"name,transcript,label\nc1,hi,calm\n{MARK}name,label,transcript\nc2,calm,ho\n", encoding="utf-8"
    )
    with pytest.raises(
        UserError, match="line 3 is a second header, .* another order .*: name,label,transcript"
    ):
        manifest.clips(path, ["calm"])


def test_names_as_a_spreadsheet_keeps_them_text_are_read_without_that_and_told(tmp_path, caplog):
    path = tmp_path / "all.csv"
    path.write_text('name,transcript\n"=""001""",a\n\'002,b\n="003",c\n\'tis,d\n=\'x,e\n', "utf-8")
    caplog.set_level("INFO")
    assert [*table.read(path, ("name",)).rows] == ["001", "002", "003", "'tis", "='x"]
    assert '3 names are written as a spreadsheet\'s text, as ="001"' in caplog.text
