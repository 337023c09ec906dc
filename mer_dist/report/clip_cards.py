"""The section of clips to look at and to listen to: a card for each, without a script."""

from __future__ import annotations

import base64

from mer_dist.report.blocks import absent, cell, explained, plural, section
from mer_dist.report.clip_choice import ERRORS, MODALITIES, TEACHERS, UNCERTAIN
from mer_dist.report.clip_media import GAP, PICTURES, SIDE
from mer_dist.report.markup import Html, join, tag
from mer_dist.report.run_data import Media, RunData, ShownClip, ShownClips
from mer_dist.report.terms import CLIP_TERMS

#: Labels that a card lists; of more, the most probable ones.
LISTED_LABELS = 8
#: Kind -> its heading, how its clips are called, and how they are ordered.
_KINDS = {
    ERRORS: (
        "The most confident errors",
        ("labelled clip with another answer, out of fold", "labelled clips with another answer, out of fold"),
        "the most probable answers first",
    ),
    UNCERTAIN: (
        "The least certain answers",
        ("unlabelled clip", "unlabelled clips"),
        "the highest entropy of the probabilities first",
    ),
    MODALITIES: (
        "Modalities that disagree",
        (
            "clip to which the modalities alone give different labels",
            "clips to which the modalities alone give different labels",
        ),
        "the highest Jensen–Shannon divergence of their probabilities first",
    ),
    TEACHERS: (
        "Teacher against model",
        (
            "clip to which a teacher gives another label than the answer",
            "clips to which a teacher gives another label than the answer",
        ),
        "the highest product of both probabilities first",
    ),
}


def sound_name(place: int) -> str:
    """File name of the sound of the clip at this place of the page."""
    return f"{place:02d}.flac"


def clips(run_data: RunData) -> Html:
    title, data = "Clips", run_data.clips
    if data is None:
        return section("clips", title, "", absent("No round of fusion yet, or report.clips is 0."))
    shown = data.all()
    if not shown:
        return section("clips", title, "", absent("No clip is answered wrongly, and none is unlabelled."))
    there = sum(clip.media is not None for clip in shown)
    caption = (
        "The bars are probabilities in percent: by logistic regression on one modality alone (the mean, where "
        "a modality has several feature sets), "
        f"and of the answer by “{data.title}”. Labelled clips are predicted out of fold. No clip stands here "
        "twice."
    )
    if there:
        caption += (
            " Pictures, sound and transcript are those that the models got."
            f" This page holds {plural(there, 'clip')} of the corpus, and whoever gets it gets them; "
            "mer-dist report RUN with --clips 0 leaves them out."
        )
    if there < len(shown):
        caption += (
            f" Not in the shards, and so without pictures and sound: {len(shown) - there:,} of the "
            f"{plural(len(shown), 'clip')} below."
        )
    parts, place = [], 0
    for kind, (count, own) in data.groups.items():
        if own:
            parts.append(_group(data, kind, count, own, place))
        place += len(own)
    return section("clips", title, caption, explained(CLIP_TERMS), parts)


def _group(data: ShownClips, kind: str, count: int, own: list[ShownClip], place: int) -> Html:
    """
    Args:
        place: of the first of these clips on the page.
    """
    heading, (one, many), order = _KINDS[kind]
    caption = f"{len(own):,} of {plural(count, one, many)}, {order}."
    folder = data.sound_folder
    cards = [
        _card(data, clip, f"{folder}/{sound_name(number)}" if folder else None)
        for number, clip in enumerate(own, start=place)
    ]
    return tag(
        "details",
        tag("summary", tag("b", heading), " ", tag("span", caption, class_="quiet")),
        tag("div", cards, class_="clips"),
        open="open" if not place else None,
        class_="kind",
    )


def _card(data: ShownClips, clip: ShownClip, sound: str | None) -> Html:
    label = join("label ", tag("b", clip.label)) if clip.label else "no known label"
    sure = clip.probability[data.labels.index(clip.answer)]
    said = [label, ", answer ", tag("b", clip.answer), f" ({100 * sure:.0f} %)"]
    if clip.teacher:
        name, probability = clip.teacher
        other = data.labels[probability.index(max(probability))]
        said += [f", {name}: ", tag("b", other), f" ({100 * max(probability):.0f} %)"]
    return tag(
        "article",
        tag("h4", clip.name),
        tag("p", said),
        *_media(clip, sound),
        _probabilities(data, clip),
        class_="clip",
    )


def _media(clip: ShownClip, linked: str | None) -> list[Html]:
    media = clip.media
    if media is None:
        return []
    found = []
    if media.strip:
        found.append(
            tag(
                "img",
                src=_data("image/jpeg", media.strip),
                width=(SIDE + GAP) * media.pictures - GAP,
                height=SIDE,
                alt=f"{plural(media.pictures, 'picture')} of {clip.name}",
                style=f"width:{100 * media.pictures / PICTURES:.0f}%",
            )
        )
    if media.sound:
        source = linked or _data("audio/flac", media.sound)
        found.append(tag("audio", controls="controls", preload="none", src=source))
    if media.transcript:
        found.append(tag("blockquote", media.transcript, dir="auto"))
    found.append(tag("p", _remark(media), class_="quiet"))
    return found


def _remark(media: Media) -> str:
    parts = [f"{media.seconds:.1f} s"] if media.seconds else []
    parts += [f"no {modality}" for modality in media.missing]
    if media.beginning:
        parts.append(f"sound: the first {media.beginning:.0f} s; with report.sound: link all of it")
    return ", ".join(parts)


def _data(kind: str, content: bytes) -> Html:
    return Html(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _probabilities(data: ShownClips, clip: ShownClip) -> Html:
    """A row for each label, a column for each modality, the answer and the teacher."""
    columns: list[tuple[str, list[float] | None]] = [*clip.by_modality.items(), ("answer", clip.probability)]
    if clip.teacher:
        columns.append(clip.teacher)
    highest = [max(own[row] for _, own in columns if own) for row in range(len(data.labels))]
    listed = {*sorted(range(len(highest)), key=lambda row: -highest[row])[:LISTED_LABELS]}
    listed |= {data.labels.index(name) for name in (clip.label, clip.answer) if name}
    rows = []
    for row in sorted(listed):
        name = data.labels[row]
        cells = [_bar(own[row]) if own else cell("–", "quiet") for _, own in columns]
        marks = "label" * (name == clip.label), "answer" * (name == clip.answer)
        mark = tag("span", " ", ", ".join(filter(None, marks)), class_="quiet") if any(marks) else None
        rows.append(tag("tr", tag("th", tag("b", name) if mark else name, mark, scope="row"), cells))
    head = tag("tr", tag("th"), [tag("th", name, scope="col") for name, _ in columns])
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="table")


def _bar(probability: float) -> Html:
    percent = f"{100 * probability:.0f}"
    return tag("td", percent, class_="p", style=f"--p:{percent}%")
