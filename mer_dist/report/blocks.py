"""The parts that every section of the page is made of, and numbers as they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mer_dist.report.markup import Html, tag


def section(name: str, title: str, caption: str, *content: Any) -> Html:
    lead = tag("p", caption, class_="caption") if caption else None
    return tag("section", tag("h2", title), lead, *content, id=name)


def absent(text: str) -> Html:
    return tag("p", text, class_="absent")


def cell(value: Any, class_: str | None = None) -> Html:
    return tag("td", value, class_=class_)


def table(head: list[str], rows: Iterable[Html], numbers: range = range(0)) -> Html:
    """``numbers``: the columns of numbers, which are right-aligned."""
    titles = [
        tag("th", title, class_="n" if column in numbers else None) for column, title in enumerate(head)
    ]
    whole = tag("table", tag("thead", tag("tr", titles)), tag("tbody", list(rows)))
    return tag("div", whole, class_="table")


def explained(terms: Iterable[tuple[str, str]]) -> Html:
    """What words of the section mean: (term, meaning)."""
    lines = [tag("p", tag("b", term), f": {meaning}", class_="caption") for term, meaning in terms]
    return tag("details", tag("summary", "terms"), lines)


def key(names: Iterable[tuple[str, str]]) -> Html:
    """A legend of (style class, name)."""
    items = [
        tag("li", tag("i", class_=class_.partition(" ")[2] or None), name, class_=class_.partition(" ")[0])
        for class_, name in names
    ]
    return tag("ul", items, class_="key")


def percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{percent(value[0], 1)}–{percent(value[1], 1)}"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def coarse(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
