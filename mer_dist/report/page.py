"""report.html: one self-contained page with the stages and results of a run.

No script, no external resource: the page can be mailed, archived and opened anywhere. Only with ``report.sound: link``
the sound of its clips lies in a folder beside it.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from mer_dist.core.records import LABELED, UNLABELED
from mer_dist.report import clip_cards, sections
from mer_dist.report.blocks import coarse, interval, percent
from mer_dist.report.collect import collect
from mer_dist.report.markup import Html, join, tag
from mer_dist.report.run_data import RunData, ShownClips
from mer_dist.report.style import STYLE
from mer_dist.storage.files import atomic_folder, write_text
from mer_dist.storage.run_folder import Run

_NAVIGATION = (
    ("results", "Results"),
    ("confusion", "Confusion"),
    ("clips", "Clips"),
    ("corpus", "Corpus"),
    ("quarantine", "Quarantine"),
    ("prior", "Label prior"),
    ("teachers", "Outside labellers"),
    ("learning", "Learning curves"),
    ("times", "Times"),
    ("provenance", "Configuration"),
)


def report(run_folder: Path, clips: int | None = None, sound: str | None = None) -> Path:
    """Write ``report.html`` of a run that may have stopped anywhere, and return its path.

    Args:
        clips, sound: in place of ``report.clips`` and ``report.sound``.

    Raises:
        UserError: there is no such folder.
    """
    run = Run(run_folder)
    run_data = collect(run.folder, clips, sound)
    _write_sound(run, run_data.clips)
    write_text(run.report, page(run_data))
    return run.report


def _write_sound(run: Run, shown: ShownClips | None) -> None:
    """The sound that the page links; none of an earlier page stays."""
    if shown is None or not shown.sound_folder:
        shutil.rmtree(run.report_sound, ignore_errors=True)
        return
    with atomic_folder(run.report_sound) as folder:
        for place, clip in enumerate(shown.all()):
            if clip.media and clip.media.sound:
                (folder / clip_cards.sound_name(place)).write_bytes(clip.media.sound)


def page(run_data: RunData) -> str:
    """The complete page as text."""
    linked = run_data.clips is not None and run_data.clips.sound_folder
    # A page that is opened as a file has no origin, so to some browsers 'self' is none of the files beside it.
    sound = "'self' file:" if linked else "data:"
    body = tag(
        "body",
        _header(run_data),
        tag(
            "main",
            _tiles(run_data),
            _notes(run_data),
            sections.results(run_data),
            sections.confusions(run_data),
            clip_cards.clips(run_data),
            sections.corpus(run_data),
            sections.quarantined(run_data),
            sections.priors(run_data),
            sections.teachers(run_data),
            sections.learning(run_data),
            sections.times(run_data),
            sections.provenance(run_data),
        ),
        tag("footer", f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by mer-dist report."),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # Whatever the clip names contain, the page loads and runs nothing.
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src {sound}",
        ),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run_data.name} – mer_dist report"),
        tag("style", Html(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _header(run_data: RunData) -> Html:
    absent = set() if run_data.teachers or run_data.consensus else {"teachers"}
    links = [tag("a", title, href=f"#{name}") for name, title in _NAVIGATION if name not in absent]
    return tag(
        "header",
        tag("p", "mer_dist report", class_="over"),
        tag("h1", run_data.name),
        _headline(run_data),
        tag("nav", links),
    )


def _headline(run_data: RunData) -> Html:
    row = next((row for row in reversed(run_data.scores) if row.headline is not None), None)
    if row is None:
        text = "No result yet: this run has not reached its first round of fusion."
        return tag(
            "div", tag("strong", "–", id="headline", class_="none"), tag("span", text), class_="headline"
        )
    if row.test is None:
        where, edges, also = "out of fold on the labelled clips", row.oof_interval, None
    else:
        where, edges = "on the unlabelled clips, against the truth", row.test_interval
        also = f" Out of fold: {percent(row.oof)}." if row.oof is not None else None
    bracket = f" (95 % interval {interval(edges)})" if edges else ""
    return tag(
        "div",
        tag("strong", percent(row.headline), id="headline"),
        tag("span", tag("b", "WAF"), f" {where}{bracket}: ", tag("b", row.title), ".", also),
        class_="headline",
    )


def _tiles(run_data: RunData) -> Html:
    def tile(value: str, text: str, class_: str = "tile") -> Html:
        return tag("div", tag("b", value), tag("span", text), class_=class_)

    tiles = []
    if run_data.corpus is not None:
        tiles += [
            tile(f"{run_data.corpus.clips(LABELED):,}", "labelled clips"),
            tile(f"{run_data.corpus.clips(UNLABELED):,}", "unlabelled clips"),
            tile(coarse(run_data.corpus.seconds), "of material"),
        ]
    lost = len({problem.name for problem in run_data.problems})
    look = "tile warn" if lost else "tile"
    tiles.append(tile(f"{lost:,}", "clips with a part in quarantine", look))
    if run_data.answers is not None:
        tiles.append(tile(f"{run_data.answers:,}", "answers in answer.csv"))
    spent = [row.seconds for row in run_data.timings if row.seconds is not None]
    if spent:
        tiles.append(tile(coarse(sum(spent)), "in finished stages"))
    return tag("div", tiles, class_="tiles")


def _notes(run_data: RunData) -> Html:
    if not run_data.notes:
        return join()
    rows = tag("ul", [tag("li", note) for note in run_data.notes])
    return tag("div", "Not everything in this run folder could be used:", rows, class_="notes")
