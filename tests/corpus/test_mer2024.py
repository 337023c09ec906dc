"""The MER2024 folder: what is listed, what is put aside, what is refused."""

import pytest
from media_files import write_csv

from mer_dist.core.errors import UserError
from mer_dist.core.records import EMOTIONS, Problem
from mer_dist.corpus import mer2024

LABELS = list(EMOTIONS)


@pytest.fixture
def folder(tmp_path):
    """Four labelled files, two unlabelled ones; listing looks at no byte of them."""
    for name in ("l1", "l2", "l3", "l4"):
        (tmp_path / "video-labeled").mkdir(exist_ok=True)
        (tmp_path / "video-labeled" / f"{name}.mp4").touch()
    for part, name in (("video-unlabeled", "u1"), ("video-unlabeled-with-test2noise", "u2")):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{name}.mp4").touch()
    write_csv(
        tmp_path / "label-disdim.csv",
        [
            ["name", "discrete", "valence"],
            ["l1", "happy", "1"],
            ["l2.mp4", "sad", "-1"],
            ["l3", "neutral", "0"],
            ["l4", "worried", ""],
        ],
    )
    write_csv(
        tmp_path / "label-transcription.csv",
        [
            ["name", "chinese", "english"],
            ["l1", "你好", "hello"],
            ["l2", "null 和", ""],
            ["l3", " ", "x"],
            ["u1", "再见", "bye"],
        ],
    )
    return tmp_path


def without_text(problems: list[Problem]) -> list[Problem]:
    """Not those of transcripts: the folder's table lacks rows."""
    return [problem for problem in problems if problem.lost != "text"]


def test_clips_are_listed_by_split_and_name_with_label_and_literal_transcript(folder):
    clips, problems = mer2024.clips(folder, LABELS)
    # An empty field, as of l3, is a clip without a word; a clip that the table forgets has lost its text.
    assert {(row.name, row.lost): row.reason for row in problems} == dict.fromkeys(
        (("l4", "text"), ("u2", "text")), "label-transcription.csv has no row for it"
    )
    assert [(clip.name, clip.split, clip.label, clip.transcript) for clip in clips] == [
        ("l1", "labeled", "happy", "你好"),
        ("l2", "labeled", "sad", "null 和"),
        ("l3", "labeled", "neutral", None),
        ("l4", "labeled", "worried", None),
        ("u1", "unlabeled", None, "再见"),
        ("u2", "unlabeled", None, None),
    ]
    assert clips[0].video == folder / "video-labeled" / "l1.mp4" and clips[0].audio is None


def test_what_does_not_fit_together_goes_to_quarantine_with_file_and_line(folder):
    (folder / "label-disdim.csv").write_text(
        "name,discrete,valence\nl1,happy,1\nl2,bored,0\nl3,sad\nghost,sad,0\nu1,angry,0\n"
    )
    (folder / "label-transcription.csv").write_text(
        "name,chinese\nl1,你好\nu1,one,too many\nnobody,x\n", encoding="utf-8"
    )
    clips, problems = mer2024.clips(folder, LABELS)
    assert [clip.name for clip in clips] == ["l1", "u1", "u2"]
    assert clips[1].label is None
    assert {(row.name, row.lost): row.reason for row in problems} == {
        ("l2", "clip"): "label-disdim.csv line 3: label 'bored' is not in corpus.labels: "
        "neutral, angry, happy, sad, worried, surprise; correct the cell, or add the label "
        "there",
        ("l3", "clip"): "label-disdim.csv line 4: 2 fields instead of 3",
        ("l4", "clip"): "it is in video-labeled, but label-disdim.csv has no row for it",
        (
            "ghost",
            "clip",
        ): "label-disdim.csv line 5: video-labeled has no file ghost.mp4, nor another video of that name",
        ("u1", "label"): "label-disdim.csv line 6: not used, because the clip is in video-unlabeled",
        ("u1", "text"): "label-transcription.csv line 3: 3 fields instead of 2; put a field that holds "
        "a delimiter between quotes",
        ("u2", "text"): "label-transcription.csv has no row for it",
    }


@pytest.mark.parametrize("content", [None, "name,chinese\n"])
def test_without_any_transcript_no_clip_has_lost_its_own_and_a_warning_says_so(folder, content, caplog):
    (folder / "label-transcription.csv").unlink()
    if content:
        (folder / "label-transcription.csv").write_text(content)
    clips, problems = mer2024.clips(folder, LABELS)
    assert problems == [] and {clip.transcript for clip in clips} == {None}
    assert "every clip lacks its transcript" in caplog.text


def test_a_clip_in_two_folders_is_refused_with_both_places(folder):
    (folder / "video-unlabeled" / "l1.mp4").touch()
    with pytest.raises(UserError, match="'l1' occurs twice: video-labeled/l1.mp4 and video-unlabeled/l1.mp4"):
        mer2024.clips(folder, LABELS)


@pytest.mark.parametrize("name", [".a", "a\\b", "a\nb"])
def test_a_file_name_that_is_unsafe_in_a_tar_is_refused_with_its_place(folder, name):
    (folder / "video-labeled" / f"{name}.mp4").touch()
    with pytest.raises(UserError, match=r"clip names must be safe and unique: .*video-labeled/"):
        mer2024.clips(folder, LABELS)


def test_two_labels_for_one_clip_are_refused_with_both_lines(folder):
    with open(folder / "label-disdim.csv", "a") as file:
        file.write("l1,sad,0\n")
    with pytest.raises(UserError, match="label-disdim.csv line 2 and label-disdim.csv line 6"):
        mer2024.clips(folder, LABELS)


def test_a_folder_that_is_no_mer2024_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder video-labeled"):
        mer2024.clips(tmp_path, LABELS)
    (tmp_path / "video-labeled").mkdir()
    with pytest.raises(UserError, match="no video files"):
        mer2024.clips(tmp_path, LABELS)


def test_a_link_that_leads_nowhere_is_still_a_clip(folder):
    (folder / "video-unlabeled" / "u3.mp4").symlink_to(folder / "gone.mp4")
    assert [clip.name for clip in mer2024.clips(folder, LABELS)[0]][-1] == "u3"


def test_names_with_dots_and_hyphens_meet_their_rows(folder):
    for name in ("ep01.s03", "-9YyBTjo1zo"):
        (folder / "video-labeled" / f"{name}.mp4").touch()
    with open(folder / "label-disdim.csv", "a") as file:
        file.write("ep01.s03,happy,0\n-9YyBTjo1zo.mp4,sad,0\n")
    with open(folder / "label-transcription.csv", "a", encoding="utf-8") as file:
        file.write("ep01.s03.mp4,你,\n-9YyBTjo1zo,我,\n")
    clips, problems = mer2024.clips(folder, LABELS)
    assert without_text(problems) == [] and [(clip.name, clip.label) for clip in clips][:2] == [
        ("-9YyBTjo1zo", "sad"),
        ("ep01.s03", "happy"),
    ]
    assert [clip.transcript for clip in clips][:2] == ["我", "你"]


def test_a_name_that_the_disk_spells_otherwise_than_the_table_is_the_same_name(folder):
    (folder / "video-labeled" / "cafe\u0301.mp4").touch()
    with open(folder / "label-disdim.csv", "a", encoding="utf-8") as file:
        file.write("caf\u00e9,angry,0\n")
    with open(folder / "label-transcription.csv", "a", encoding="utf-8") as file:
        file.write("caf\u00e9,,\n")
    clips, problems = mer2024.clips(folder, LABELS)
    assert without_text(problems) == [] and ("caf\u00e9", "angry") in [
        (clip.name, clip.label) for clip in clips
    ]
    assert next(clip for clip in clips if clip.name == "caf\u00e9").video.name == "cafe\u0301.mp4"
    (folder / "video-unlabeled" / "caf\u00e9.mp4").touch()
    with pytest.raises(UserError, match="twice: video-labeled/cafe\u0301.mp4 and video-unlabeled/caf\u00e9"):
        mer2024.clips(folder, LABELS)


def test_labels_in_capitals_are_understood_and_tables_of_another_encoding_are_read_when_told(folder):
    (folder / "label-disdim.csv").write_text(
        "Name;Discrete;valence\nl1;Happy;1\nl2; SAD ;0\nl3;NA;0\nl4;hapy;0\n"
    )
    (folder / "label-transcription.csv").write_bytes(
        "name,chinese\nl1,你好\nl2,\nu1,再见\nu2,\n".encode("gbk")
    )
    with pytest.raises(UserError, match="label-transcription.csv: it is not UTF-8, but probably GBK"):
        mer2024.clips(folder, LABELS)
    clips, problems = mer2024.clips(folder, LABELS, "gbk")
    assert [(clip.name, clip.label, clip.transcript) for clip in clips] == [
        ("l1", "happy", "你好"),
        ("l2", "sad", None),
        ("u1", None, "再见"),
        ("u2", None, None),
    ]
    reasons = {problem.name: problem.reason for problem in problems}
    assert reasons.keys() == {"l3", "l4"}
    assert "line 4: label 'NA'" in reasons["l3"] and "has no label" in reasons["l3"]
    assert "is 'happy' meant?" in reasons["l4"]


def test_a_clip_may_lie_in_any_container_and_takes_its_name_without_it(folder):
    for name in ("v1.webm", "v2.MKV", "v3.mov", "v4.avi", "v5.m2ts"):
        (folder / "video-unlabeled" / name).touch()
    (folder / "video-labeled" / "l1.mp4").rename(folder / "video-labeled" / "l1.mkv")
    clips, problems = mer2024.clips(folder, LABELS)
    assert without_text(problems) == []
    assert [clip.name for clip in clips if clip.split == "unlabeled"] == [
        "u1",
        "u2",
        "v1",
        "v2",
        "v3",
        "v4",
        "v5",
    ]
    assert (clips[0].name, clips[0].label, clips[0].video.name) == ("l1", "happy", "l1.mkv")


@pytest.mark.parametrize("other", ["u1.webm", "u1.MP4"])
def test_two_files_of_one_stem_are_one_error_that_names_both(folder, other):
    (folder / "video-unlabeled" / other).touch()
    with pytest.raises(UserError) as error:
        mer2024.clips(folder, LABELS)
    first, second = sorted(["u1.mp4", other])
    assert f"'u1' occurs twice: video-unlabeled/{first} and video-unlabeled/{second}" in str(error.value)


def test_what_is_no_clip_is_told_with_its_kind_and_number(folder, caplog):
    part = folder / "video-unlabeled"
    for name in ("u1.wav", "u9.wav", "notes", "._u1.mp4"):
        (part / name).touch()
    (part / "more").mkdir()
    (part / "more.mp4").mkdir()
    (folder / "video_test").mkdir()
    clips, _ = mer2024.clips(folder, LABELS)
    assert [clip.name for clip in clips if clip.split == "unlabeled"] == ["u1", "u2"]
    assert (
        "video-unlabeled: 6 entries do not count as clips (.mp4 1, .wav 2, folder 2, no suffix 1)"
        in caplog.text
    )
    assert "folders not read: video_test" in caplog.text


def test_a_folder_without_unlabelled_clips_says_that_nothing_will_be_answered(folder, caplog):
    for part in ("video-unlabeled", "video-unlabeled-with-test2noise"):
        (folder / part).rename(folder / part.replace("unlabeled", "unlabelled"))
    assert len(mer2024.clips(folder, LABELS)[0]) == 4
    assert "video-unlabeled* (0 found); folders not read: video-unlabelled, " in caplog.text


@pytest.mark.parametrize("ending", ["MOD", "tod", "lrv", "insv", "dav", "wtv", "gif", "nut"])
def test_what_cameras_and_recorders_write_is_taken_for_a_clip(folder, ending):
    (folder / "video-labeled" / "l1.mp4").rename(folder / "video-labeled" / f"l1.{ending}")
    found, _ = mer2024.clips(folder, LABELS)
    assert [clip.video.name for clip in found if clip.name == "l1"] == [f"l1.{ending}"]


def test_other_endings_are_answered_with_those_that_are_taken(folder, caplog):
    (folder / "video-labeled" / "l1.mp4").rename(folder / "video-labeled" / "l1.clip")
    mer2024.clips(folder, LABELS)
    assert "whose name ends in one of .264 .265 .3g2 .3gp .asf .avi" in caplog.text
