"""Transcripts that tell the label of their clip, as ``[angry] …``, where those to be answered tell none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mer_dist.core.records import Clip

#: Labelled transcripts with their own label below which nothing is said, in number and as a part of all. Who is happy
#: says so in one line of twenty at most.
FEWEST, MANY = 10, 0.3
#: Part of the rate among labelled transcripts from which on unlabelled ones hold labels, too: then it is how people
#: speak, or a tag that the clips to be answered have as well.
ALIKE = 0.5


def told(clips: Sequence[Clip], labels: Sequence[str]) -> str:
    """One line on labelled transcripts that hold their own label as a word; empty if they are few, or if unlabelled
    ones hold labels nearly as often."""
    form = {label: _form(label) for label in labels}
    any_label = re.compile("|".join(one.pattern for one in form.values()))
    texts = [(clip, clip.transcript.casefold()) for clip in clips if clip.transcript is not None]
    labeled = [(clip, text) for clip, text in texts if clip.label in form]
    own = [clip for clip, text in labeled if form[str(clip.label)].search(text)]
    if len(own) < max(FEWEST, MANY * len(labeled)):
        return ""
    others = [bool(any_label.search(text)) for clip, text in texts if clip.label is None]
    if others and sum(others) / len(others) > ALIKE * len(own) / len(labeled):
        return ""
    return (
        f"{len(own)} of {len(labeled)} labelled transcripts hold their own label as a word, as "
        f"{str(own[0].transcript)[:80]!r} of {own[0].name} ({own[0].label}), and {sum(others)} of {len(others)} unlabelled "
        "ones any label: if it is a tag, take it out, or the models learn to read it and the scores out of fold are of that"
    )


def _form(label: str) -> re.Pattern[str]:
    """A word of the label, also with an ending (calmly). Letters of other scripts may stand beside it, and its own may
    be of one that does not part words."""
    word = re.escape(label.casefold())
    return re.compile(f"(?<![a-z0-9]){word}[a-z]{{0,3}}(?![a-z0-9])" if label.isascii() else word)
