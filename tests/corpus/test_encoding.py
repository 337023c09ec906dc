"""Tables that are not UTF-8: read where it is sure how, refused in one line that says what to do."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from mer_dist.config import config
from mer_dist.core.errors import UserError
from mer_dist.corpus import encoding, table

#: Encoding -> a few lines as people write in it.
WRITTEN = {
    "gb18030": ["你好，第0句", "他走了以后，家里就安静了", "hello", "嗯。"],
    "big5": ["這是什麼東西，我不知道", "會議安排在星期三下午"],
    "shift_jis": ["今日はとても楽しかったです", "何を言っているの？"],
    "euc_jp": ["今日はとても楽しかったです", "ありがとう"],
    "euc_kr": ["오늘은 정말 행복해요", "무슨 말을 하는 거야"],
    "cp1252": ["Ça va très bien, merci", "Das ist schön — für uns alle"],
    "cp1251": ["Сегодня очень хороший день", "Что ты сказал"],
    "utf-16-le": ["你好", "hello"],
    "utf-16-be": ["hello", "there"],
}


def written(folder, name: str, lines: list[str], mark: str = ""):
    path = folder / "texts.csv"
    path.write_bytes(
        (mark + "name,text\n" + "".join(f'c{row},"{line}"\n' for row, line in enumerate(lines))).encode(name)
    )
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_a_table_in_another_encoding_is_refused_with_the_likely_one_and_read_when_it_is_told(tmp_path, name):
    lines = WRITTEN[name]
    path = written(tmp_path, name, lines)
    with pytest.raises(UserError) as told:
        table.read(path, ("name", "text"), "utf-8")
    line = str(told.value)
    assert f"set corpus.encoding: {name}, or convert it: iconv -f {name.upper()} -t UTF-8 texts.csv" in line
    assert "\n" not in line and len(line) < 400
    if name[:3] != "utf":
        assert lines[0][:30] in line, "a sample shows whether the guess is right"
    # Where corpus.encoding does not speak of the file, it is no remedy.
    with pytest.raises(UserError) as told:
        table.read(path, ("name", "text"))
    assert "corpus.encoding" not in str(told.value) and "iconv" in str(told.value)
    found = table.read(path, ("name", "text"), name)
    assert [row["text"] for row in found.rows.values()] == lines and found.bad == {}


@pytest.mark.parametrize("name", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("told", [None, "utf-8", "gbk"])
def test_a_mark_at_the_beginning_decides(tmp_path, name, told):
    found = table.read(written(tmp_path, name, ["你好", "再见"], "\ufeff"), ("name", "text"), told)
    assert [row["text"] for row in found.rows.values()] == ["你好", "再见"]


def test_utf_8_is_read_as_such_whatever_is_told(tmp_path):
    """Another encoding would make other letters of it without any error."""
    found = table.read(written(tmp_path, "utf-8", ["你好", "再见"]), ("name", "text"), "gbk")
    assert [row["text"] for row in found.rows.values()] == ["你好", "再见"]


def test_a_few_broken_rows_cost_themselves_and_most_of_them_the_table(tmp_path):
    path = tmp_path / "texts.csv"
    good, bad = "c{},你好\n".encode(), "d{},再见\n".encode("gbk")
    for count, refused in ((1, False), (2, False), (30, False), (31, True)):
        rows = [good.replace(b"{}", b"%d" % row) for row in range(3)]
        path.write_bytes(
            b"name,text\n" + b"".join([*rows, *(bad.replace(b"{}", b"%d" % row) for row in range(count))])
        )
        if refused:
            with pytest.raises(UserError, match="probably GBK"):
                table.read(path, ("name", "text"))
        else:
            found = table.read(path, ("name", "text"))
            assert len(found.rows) == 3 and found.bad.keys() == {f"d{row}" for row in range(count)}
            assert "line 5: not UTF-8; save the table" in found.bad["d0"]


def test_a_header_in_another_encoding_is_refused_for_that_and_not_for_its_columns(tmp_path):
    (tmp_path / "texts.csv").write_bytes("名字,文本\na,你好\n".encode("gbk"))
    with pytest.raises(
        UserError, match="probably GBK, as Chinese Excel saves, by which it reads '名字,文本'"
    ):
        table.read(tmp_path / "texts.csv", ("name", "text"))
    (tmp_path / "texts.csv").write_bytes("name,text\n".encode("utf-16") + b"a")
    with pytest.raises(
        UserError, match="it is not UTF-16, as its first bytes say; is it a table, and complete"
    ):
        table.read(tmp_path / "texts.csv", ("name", "text"))


def test_what_is_no_table_is_called_by_its_kind_and_not_printed(tmp_path):
    files = {
        "labels.npz": "a zip archive",
        "labels.xls": "an Excel workbook",
        "labels.csv.gz": "gzip",
        "labels.npy": "not text",
        "noise.csv": "not text",
    }
    np.savez(tmp_path / "labels.npz", a=np.ones(3))
    np.save(tmp_path / "labels.npy", np.ones(3))
    (tmp_path / "labels.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(b"name,text\n"))
    (tmp_path / "noise.csv").write_bytes(np.random.default_rng(0).bytes(4000))
    for name, words in files.items():
        with pytest.raises(UserError) as told:
            table.read(tmp_path / name, ("name", "text"))
        assert words in str(told.value) and name in str(told.value) and len(str(told.value)) < 300
        assert str(told.value).isprintable()


@pytest.mark.slow
def test_an_encoding_that_python_does_not_know_is_refused_with_examples(tmp_path):
    job = tmp_path / "job.yaml"
    for name in ("gbkk", "base64", "undefined"):
        job.write_text(f"run: {{folder: run}}\ncorpus: {{encoding: {name}}}\n")
        with pytest.raises(UserError, match=f"corpus.encoding is '{name}'.* gb18030, big5"):
            config.load(job)


@pytest.mark.slow
def test_the_published_meld_transcripts_in_gbk_are_known_by_any_few_lines(shared):
    rows = table.read(shared / "data" / "meld" / "transcription.csv", ("name", "chinese")).rows
    texts = [row["chinese"] for row in rows.values()]
    assert {
        encoding.likely("\n".join(texts[start : start + 3]).encode("gb18030")) for start in range(0, 600, 3)
    } == {"gb18030"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("1\n00:00:01,000 --> 00:00:02,000\nHi\n", "it is subtitles (SRT), not a table"),
        ("\ufeffWEBVTT\n\n00:01.000 --> 00:02.000\nHi\n", "it is subtitles (WebVTT)"),
        ('File type = "ooTextFile"\nObject class = "TextGrid"\n', "it is a TextGrid of Praat"),
        ('[{"name": "a", "text": "b"}]', "it is JSON, not a table"),
        ('{"name": "a"}\n{"name": "b"}\n', "it is JSON, one object a line"),
        ('{\n  "a": 1\n}', "it is JSON, not a table"),
        ("<!doctype html>\n<title>404</title>", "it is an HTML page"),
        ('<?xml version="1.0"?>\n<TIME_ORDER/>', "it is XML"),
        ("version https://git-lfs.github.com/spec/v1\n", "it is what Git LFS leaves"),
        ("# exported on Monday\nname,text\na,b\n", "its first line is a comment; take that out"),
        ("a,b\nc,d\n", "its first line lacks the columns name, text; it has: 'a', 'b'"),
    ],
)
def test_a_text_that_is_no_table_is_known_by_how_it_begins(tmp_path, content, kind):
    (tmp_path / "texts.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        table.read(tmp_path / "texts.csv", ("name", "text"))
    assert kind in str(error.value)


def test_a_header_that_begins_as_another_format_does_is_a_header(tmp_path):
    (tmp_path / "texts.csv").write_text("#,name,text\n1,a,b\n")
    assert table.read(tmp_path / "texts.csv", ("name", "text")).rows["a"]["text"] == "b"
