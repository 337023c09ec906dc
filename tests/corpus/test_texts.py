"""What stands in the place of a transcript: words for nothing, characters that show nothing, other things."""

import logging
import time

import pytest

from mer_dist.corpus import manifest, mer2024, texts
from mer_dist.features.join import read_labels


def read(cell):
    return texts.Texts("t.csv").read({"name": "c1", "text": cell}, "text")


@pytest.mark.parametrize(
    "cell",
    [
        "nan",
        " NULL ",
        "None",
        "#N/A",
        "#NAME?",
        "<NA>",
        "\\N",
        "--",
        "\u200b",
        "\ufeff \u00a0",
        "\0",
        "\u3164",
        "",
        *(
            "#ERROR!",
            "#VALEUR!",
            "#WERT!",
            " #BEZUG! ",
            "#NV",
            "#N/D",
            "#ЗНАЧ!",
            "#値!",
            "#¿NOMBRE?",
            "#ZÉRÓOSZTÓ!",
        ),
        *("#ZAHL!", "#NU\u0301M!", "Err:502", "Fehler:508", "[]", "{}"),
    ],
)
def test_words_for_nothing_and_characters_that_show_nothing_are_no_text(cell):
    assert read(cell) == (None, ())


@pytest.mark.parametrize(
    ("cell", "text", "kinds"),
    [
        ("a\0b", "ab", (texts.CONTROL,)),
        ("don\x92t \x96 well\x85", "don’t – well…", (texts.WINDOWS,)),
        ("\x93Oh\x94\x07", "“Oh”", (texts.CONTROL, texts.WINDOWS)),
        ("a\x81b", "ab", (texts.CONTROL,)),
        ("don\xe2\x80\x99t", "donâ€™t", (texts.MISREAD,)),
        ("one\x0btwo\x1b[0m", "one two[0m", (texts.CONTROL,)),
        ("a\ufffdb", "a\ufffdb", (texts.LOST,)),
        ("?????????", "?????????", (texts.UNKNOWN,)),
        ("???, ?????!", "???, ?????!", (texts.UNKNOWN,)),
        ("\\u4f60\\u597d", "\\u4f60\\u597d", (texts.ESCAPED,)),
        ("??", "??", ()),
        ("what???", "what???", ()),
        ("texts/a one.TXT", "texts/a one.TXT", (texts.PATH,)),
        ("1\n00:00:01,000 --> 00:00:03,000\nHi", "1\n00:00:01,000 --> 00:00:03,000\nHi", (texts.SUBTITLES,)),
        ("[00:12.50]Hi", "[00:12.50]Hi", (texts.SUBTITLES,)),
        ("Tom &amp; Jerry", "Tom &amp; Jerry", (texts.MARKUP,)),
        ("<i>no</i>", "<i>no</i>", (texts.MARKUP,)),
        (r"{\an8}no", r"{\an8}no", (texts.MARKUP,)),
        *(
            (cell, cell, (texts.RECOGNISED,))
            for cell in ("<|zh|><|HAPPY|><|Speech|>今天", "<|0.00|> hi<|2.00|>", "hi [_TT_100]", "[CLS] hi")
        ),
        *(
            (cell, cell, (texts.NOTE,))
            for cell in ("[BLANK_AUDIO]", "(inaudible)", "[Music]", "♪♪", "（笑）", "*sighs*", "【笑】")
        ),
        *(
            (cell, cell, (texts.CODE,))
            for cell in (
                ".",
                "-99",
                "999",
                "missing",
                "no data",
                "xxx",
                "***",
                "TRUE",
                "inf",
                "...",
                "3,5",
                "。",
            )
        ),
        *(
            (cell, cell, (texts.WRITTEN,))
            for cell in (
                *(
                    "hello_x000D_\nworld",
                    "a\\nb",
                    "b'what a day'",
                    '="hello"',
                    "what%20a%20day",
                    "what+a+day",
                ),
                *("it\\'s fine", "%E4%BD%A0%E5%A5%BD"),
            )
        ),
        *((cell, cell, (texts.QUOTED,)) for cell in (' "what a day"', "'hello'")),
        *(
            (cell, cell, (texts.SPEAKER,))
            for cell in ("ANNA: hi there", "[SPEAKER_00]: hello", "SPEAKER 1: no")
        ),
        *(
            (cell, cell, (texts.GARBLED,))
            for cell in (*("浣犲ソ锛屼綘鍦ㄥ摢閲岋紵", "锟斤拷锟斤拷", "ÄãºÃ£¬ÄãÔÚÄÄÀï", "Ïðèâåò, êàê äåëà"),)
        ),
        *(
            (cell, cell, ())
            for cell in (
                *(
                    "你一定忙得不可开交。",
                    "Déjà vu à l’été, né à Orléans",
                    "Þú ert að lesa",
                    "Été",
                    "Øyvind så på",
                    "哇哦哦哦哦哦哦....",
                ),
                *(
                    "100% sure",
                    "I said: go away",
                    "1+1=2 right",
                    "C+ grade",
                    "(laughs) no way",
                    "♪ la la la ♪",
                    "I got 99",
                ),
                *(
                    "rock 'n' roll",
                    "'Tis fine, isn't it",
                    'She said "no"',
                    "嗯",
                    "中國人民銀行很多錢",
                    "Привет",
                ),
            )
        ),
        ("\u1112\u1161\u11abcafe\u0301", "한café", ()),
        *(
            (cell, cell, (texts.STRUCTURE,))
            for cell in (
                '{"text": " hello", "segments": [{"id": 0}]}',
                "[{'key': 'a', 'text': 'hello'}]",
                '{\n "text": "cut off behi',
                '["hello", "there"]',
            )
        ),
        *(
            (cell, cell, ())
            for cell in (
                *("#metoo!", "#Zero!", "#WERT! is what it says", "#NV is a state", "#1", "err: 502 of them"),
                *("{sighs} no: never", '"no": he said', "a | b <| c |> d > e", "[hello", "(laughs) {x}"),
            )
        ),
        (
            "None of us. I <3 you & him; nan\tsaid so\nat 12:30",
            "None of us. I <3 you & him; nan\tsaid so\nat 12:30",
            (),
        ),
        ("می‌خواهم 👩‍🚀", "می‌خواهم 👩‍🚀", ()),
    ],
)
def test_speech_is_not_rewritten_and_what_is_none_is_remarked(cell, text, kinds):
    assert read(cell) == (text, kinds)


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        (texts.CHAT, "*PAR: &-uh I went [/] went home &=laughs ."),
        (texts.CHAT, "so &+fr from there"),
        (texts.CHAT, "the dog [//] cat"),
        (texts.CHAT, "and then +..."),
        (texts.TIMED, "you 0.00 0.28 i 0.30 0.5"),
        (texts.TIMED, "0.00 0.28 you 0.30 0.58 i 0.60 0.88 did"),
        (texts.TIMED, "really(0.90) expect(0.91) this(1.00)"),
        (texts.TIMED, "你 0 2800000 好 3000000 5800000 吗 6000000 8800000"),
        (texts.PIECES, "re@@ ally to@@ day"),
        (texts.PIECES, "play ##ing now"),
        (texts.PIECES, "▁the ▁cat"),
        (texts.PIECES, "\u2581how\u2581are"),
        (texts.PIECES, "theĠcatĠsat"),
        (texts.PIECES, "I Ġam Ġat Ġhome now"),
        (texts.IDS, "101 2023 3012"),
        (texts.IDS, "101, 1000, 2572, 2061, 3000, 102"),
        (texts.TAGGED, "did/NN you/PRP really/RB ?/."),
        (texts.TAGGED, "did_VBD you_PRP really_RB"),
        (texts.TAGGED, "你/r 好/a 吗/y"),
        (texts.TAGGED, "Das/PDS ist/VAFIN gut/ADJD ./$."),
        (texts.ENCODED, "ZXhwZWN0IGhvbWUgbGF0ZSBsYXRlIG5ldmVyIHRvZGF5"),
        (texts.ENCODED, "5L2g5LiA5a6a5b6I5b+Z"),
        (texts.ENCODED, "cfcd208495d565ef66e7dff9f98764da"),
        (texts.ENCODED, "123e4567-e89b-12d3-a456-426614174000"),
    ],
)
def test_what_programs_of_linguists_and_tokenizers_write_is_remarked_and_kept(kind, cell):
    assert read(cell) == (cell, (kind,))


@pytest.mark.parametrize(
    "cell",
    [
        "R&D and Q&A; salt & pepper, AT&T &c.",
        "*sigh* well: 5 * 3, he/she, and/or, 24/7 at 80 km/h, input/output",
        "version 2.0 or 3.5, from 1.20 1.30 and 1.40",
        "it was 10 20 30 years ago",
        "call 555 123 4567 or 0171 555 1234",
        "0171 555 1234",
        "one 1 2 three, 4 5 6 7",
        "1 2 3 4 5 6",
        "in 1990, 1991 and 1992",
        "mail me@home, #metoo ## and @@ wow",
        "Ġorġ u Ġanni, MAĠĠOR",
        "antidisestablishmentarianism",
        "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz",
        "Donaudampfschifffahrtsgesellschaft",
        "Herzlichenglückwunsch",
        "wasichdirsagenwollte",
        "你一定忙得不可开交，2023年3012人",
        "小李打来电话，他们已经走了，就在那个路口，吃完饭以后，真是岂有此理。",
        "他/她 说 1.5 倍 2.5 倍",
        "Er sagt: 'Das kostet 3,50 oder 4,20 Euro' – na und/oder?",
        "Am 3. 4. 2020 um 12.30 Uhr, von 9.00 bis 10.00",
    ],
)
def test_ordinary_text_with_numbers_slashes_and_long_words_is_not_remarked(cell):
    assert read(cell) == (cell, ())


def test_both_kinds_of_corpus_tell_each_kind_once_with_a_count_and_an_example(tmp_path, caplog):
    rows = "".join(f"c{row},{cell},\n" for row, cell in enumerate(["nan", "NULL", "a.srt", "b.srt", "hello"]))
    (tmp_path / "all.csv").write_text(f"name,transcript,label\n{rows}")
    clips, problems = manifest.clips(tmp_path / "all.csv", ["calm", "tense"])
    assert problems == []
    assert [clip.transcript for clip in clips] == [None, None, "a.srt", "b.srt", "hello"]
    assert [clip.remarks for clip in clips] == [(), (), (texts.PATH,), (texts.PATH,), ()]
    assert f"all.csv: 2 cells: {texts.EMPTY_MARK}; as 'nan' of c0" in caplog.messages
    assert f"all.csv: 2 cells: {texts.PATH}; as 'a.srt' of c2" in caplog.messages

    for name in ("l1", "l2"):
        (tmp_path / "video-labeled").mkdir(exist_ok=True)
        (tmp_path / "video-labeled" / f"{name}.mp4").touch()
    (tmp_path / "label-disdim.csv").write_text("name,discrete\nl1,calm\nl2,tense\n")
    (tmp_path / "label-transcription.csv").write_text("name,chinese\nl1,nan\nl2,<b>hi</b>\nghost,x\n")
    clips, problems = mer2024.clips(tmp_path, ["calm", "tense"])
    # As an empty field: a clip without a word, and nothing that was lost.
    assert [(clip.transcript, clip.remarks) for clip in clips] == [(None, ()), ("<b>hi</b>", (texts.MARKUP,))]
    assert problems == []
    assert "label-transcription.csv: 1 rows belong to no clip of this folder: ghost" in caplog.messages


def test_a_word_for_nothing_in_place_of_a_label_is_an_empty_label_unless_it_is_one(tmp_path, caplog):
    (tmp_path / "all.csv").write_text("name,transcript,label\na,x,calm\nb,x,nan\nc,x,None\n")
    with caplog.at_level(logging.INFO):
        clips, problems = manifest.clips(tmp_path / "all.csv", ["calm", "tense"])
        assert read_labels(tmp_path / "all.csv", ["calm", "tense"]) == (
            {"a": "calm", "b": None, "c": None},
            [],
        )
    assert problems == []
    assert {clip.name: (clip.label, clip.split) for clip in clips} == {
        "a": ("calm", "labeled"),
        "b": (None, "unlabeled"),
        "c": (None, "unlabeled"),
    }
    assert (
        caplog.text.count("all.csv: 2 labels are words for an empty cell and count as empty: 'nan', 'None'")
        == 2
    )
    assert read_labels(tmp_path / "all.csv", ["calm", "none"])[0] == {"a": "calm", "b": None, "c": "none"}


def misread(text):
    """The text as a program shows it that takes its UTF-8 for cp1252."""
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in b"\x81\x8d\x8f\x90\x9d" else chr(byte)
        for byte in text.encode()
    )


@pytest.mark.parametrize(
    "text",
    [
        "don’t",
        "é",
        "été",
        "Größe",
        "STRAẞE, Spaß",
        "“so”",
        "señor",
        "mañana",
        "trẻ em",
        "你好吗",
        "これは",
        "привет",
        "😀",
    ],
)
def test_utf8_that_was_decoded_as_cp1252_is_remarked(text):
    assert texts.MISREAD in read(misread(text))[1]
    assert texts.MISREAD in read(text.encode().decode("latin-1"))[1]
    assert read(text) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        "Âge, âme, PÂTÉ; il a dit\u00a0: «\u00a0été\u00a0»",
        "parlé\u00a0» et voilà…",
        "CAFÉ…",
        "CAFÉ”",
        "NESCAFÉ®",
        "Spaß…",
        "“Spaß”",
        "Größe – Öl, ÄRGER",
        "Ân cần, Ã là chữ hoa",
        "MANHÃ… IRMÃ”",
        "SPÄÄ”",
        "Úžasné",
        "5 € â 3 m², ¿qué? ¡Ñandú!",
        "Ã",
        "don’t",
    ],
)
def test_letters_of_other_languages_are_not_taken_for_misread_ones(text):
    assert read(text) == (text, ())


def test_an_error_of_a_spreadsheet_in_place_of_a_label_is_an_empty_label(tmp_path):
    (tmp_path / "all.csv").write_text("name,transcript,label\na,x,calm\nb,x,#VALEUR!\n", encoding="utf-8")
    assert read_labels(tmp_path / "all.csv", ["calm", "tense"]) == ({"a": "calm", "b": None}, [])


def test_a_long_cell_is_looked_at_in_a_moment():
    started = time.process_time()
    for cell in (
        " " * 100_000 + "x",
        "[" + " " * 100_000 + "x",
        "['" * 50_000,
        "<|" * 50_000,
        "{\\" * 50_000,
        '{"' + "a " * 50_000,
        "a 1.0 2.0" * 20_000,
        "a" * 100_000 + "!",
        "a(0.1" * 20_000,
        "Ġa " * 30_000 + "1",
        "1 " * 50_000 + "x",
        "*A" * 50_000,
    ):
        assert read(cell)[0] == cell
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("count", "told"), [(12, True), (9, False)])
def test_a_transcript_that_many_clips_have_is_told(count, told, caplog):
    found = texts.Texts("t.csv")
    for row in range(100):
        found.read({"name": f"c{row}", "text": "nothing said" if row < count else f"line {row}"}, "text")
    found.tell()
    assert (f"t.csv: {count} of 100 transcripts are 'nothing said'" in caplog.text) == told
