"""Labels and numbers that look right and are written with another sign."""

from __future__ import annotations

import pytest

from mer_dist.corpus.cells import Labels
from mer_dist.interop.answers import _number


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("\u22121", "it looks like '-1' and has U+2212 (minus sign)"),
        ("\u20131", "it looks like '-1' and has U+2013 (en dash)"),
        ("s\u0430d", "it looks like 'sad' and has U+0430 (cyrillic small letter a)"),
        ("sad\u200b", "it looks like 'sad' and has U+200B (zero width space)"),
        (
            "don't",
            "it looks like 'don’t' and has other signs, and the label U+2019 (right single quotation mark)",
        ),
    ],
)
def test_a_label_that_only_looks_like_one_is_told_with_its_sign(cell, why):
    found, told = Labels(["-1", "1", "sad", "don’t"], "t.csv").read(cell)
    assert found is None and told.endswith(why)


def test_a_label_that_looks_like_none_is_told_as_before():
    labels = Labels(["-1", "1", "sad"], "t.csv")
    assert labels.read("sadd")[1].endswith("is 'sad' meant?")
    assert labels.read("2")[1].endswith("numbers can be labels, too: name them there, between quotes")
    assert labels.read(" SAD ") == ("sad", "")


def test_a_number_with_another_minus_is_told_with_its_sign():
    assert _number("\u22120.5")[1] == "'−0.5' is no number: it has U+2212 (minus sign)"
    assert _number("high")[1] == "'high' is no number" and _number("-0.5") == (-0.5, "")
