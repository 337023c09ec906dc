"""Transcripts that tell the label of their clip."""

from __future__ import annotations

import pytest

from mer_dist import corpus
from mer_dist.config.sections import CorpusConfig
from mer_dist.core.records import Clip
from mer_dist.corpus.label_words import told

LABELS = ["happy", "sad", "calm", "高兴"]


def clip(number: int, text: str | None, label: str | None) -> Clip:
    split = "labeled" if label else "unlabeled"
    return Clip(name=f"c{number:03}", video=None, audio=None, transcript=text, label=label, split=split)


def clips(form: str, asked: str = "this is a line") -> list[Clip]:
    """40 labelled transcripts of a form with their label, and 60 unlabelled ones."""
    own = [clip(row, form.format(LABELS[row % 4]), LABELS[row % 4]) for row in range(40)]
    return own + [clip(100 + row, asked, None) for row in range(60)]


@pytest.mark.parametrize(
    "form",
    [
        "[{}] this is a line",
        "({}) a line",
        "{}: a line",
        "a line #{}",
        "{}小李打来电话",
        "emotion={}; a line",
        "A {}LY",
    ],
)
def test_a_label_in_the_transcripts_of_labelled_clips_alone_is_told(form):
    line = told(clips(form), LABELS)
    assert line.startswith(
        f"40 of 40 labelled transcripts hold their own label as a word, as {form.format('happy')!r}"
    )
    assert "of c000 (happy), and 0 of 60 unlabelled ones any label" in line
    assert told(clips(form)[:40], LABELS).startswith("40 of 40")


def test_ordinary_speech_and_tags_that_all_clips_have_are_not_told():
    assert told(clips("[{}] a line", "[happy] a line"), LABELS) == ""
    said = ["I am happy", "so sad", "stay calm", "unhappy saddles", "no", "never", "我很高兴", "why"]
    spoken = [clip(row, said[row % 8], LABELS[row % 3]) for row in range(400)]
    assert told([*spoken, *(clip(900 + row, said[row % 8], None) for row in range(80))], LABELS) == ""
    assert told(spoken, LABELS) == ""
    # Nine clips say nothing, whatever they say.
    assert told(clips("[{}] a line")[:9], LABELS) == "" and told([], LABELS) == ""
    assert told([clip(1, None, "sad")], LABELS) == ""


def test_a_tagged_corpus_is_told_when_it_is_listed(tmp_path, caplog):
    rows = [f"c{row:02},[{LABELS[row % 2]}] line {row},{LABELS[row % 2]}" for row in range(20)]
    (tmp_path / "all.csv").write_text("\n".join(["name,transcript,label", *rows, "d,line,", ""]))
    corpus.clips(CorpusConfig(format="manifest", path=str(tmp_path / "all.csv"), labels=LABELS[:2]))
    assert (
        "all.csv: 20 of 20 labelled transcripts hold their own label as a word, as '[happy] line 0'"
        in caplog.text
    )
