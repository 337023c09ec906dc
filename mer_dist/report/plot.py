"""Elements of all figures: scales, ticks, text, and the frame of a line panel.

Figures are handwritten SVG: colours are variables of the page's style, so one drawing works in
light and dark mode, and text stays text, so the reader's own fonts show any label.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mer_dist.report.markup import Html, join, tag

#: Drawing widths in pixels on a desktop and on a phone.
WIDE, NARROW = 876, 350
COLOURS = 6


@dataclass(frozen=True)
class Scale:
    """Maps ``low..high`` to the pixels ``start..stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.stop - self.start)


def span(values: list[float], room: float = 0.06) -> tuple[float, float]:
    """The range of ``values`` with some margin, never empty."""
    low, high = min(values), max(values)
    edge = (high - low) * room or abs(high) * room or 1.0
    return low - edge, high + edge


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """At most about ``count`` round values within ``low..high``."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(position * step, 10) for position in range(first, last + 1)]


def svg(width: float, height: float, *children: Any, label: str) -> Html:
    """A drawing that shrinks with the page; screen readers read ``label`` instead."""
    return tag(
        "svg",
        tag("title", label),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
    )


def both_widths(draw: Callable[[int], Html]) -> Html:
    """The same figure drawn for a desktop and for a phone; the style shows one."""
    return join(tag("div", draw(WIDE), class_="wide"), tag("div", draw(NARROW), class_="narrow"))


def text(x: float, y: float, value: Any, class_: str = "", anchor: str = "start") -> Html:
    return tag(
        "text",
        value,
        x=float(x),
        y=float(y),
        class_=class_ or None,
        text_anchor=None if anchor == "start" else anchor,
    )


def fitted(
    x: float, y: float, value: str, room: float, class_: str = "", anchor: str = "start", size: float = 13
) -> Html:
    """Text cut to ``room`` pixels; a tooltip shows the complete text."""
    kept, used = "", 0.0
    for character in value:
        used += size * (1.0 if unicodedata.east_asian_width(character) in "WF" else 0.54)
        if used > room:
            short = text(x, y, kept[:-1] + "…", class_, anchor)
            return tag("g", tag("title", value), short)
        kept += character
    return text(x, y, value, class_, anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: list[tuple[float, float]], class_: str) -> Html:
    steps = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=class_)


@dataclass(kw_only=True)
class Line:
    """One curve of a panel: ``values[i]`` belongs to epoch ``i + 1``; None is a gap."""

    name: str
    values: list[float | None]
    colour: int = 0
    #: ``strong``, ``faint`` or ``dashed``.
    look: str = "strong"
    #: Epoch to mark with a dot.
    best: int | None = None


def panel(title: str, lines: list[Line], page: int, percent: bool = False) -> Html:
    """Curves over epochs in one small frame, two to a wide page; empty if no line has a value."""
    width, height = (NARROW, 220) if page == NARROW else ((page - 36) // 2, 240)
    values = [value for line in lines for value in line.values if value is not None]
    if not values:
        return Html("")
    longest = max(len(line.values) for line in lines)
    x = Scale(1, max(longest, 2), 46, width - 12)
    y = Scale(*span(values), height - 34, 30)
    frame = [text(0, 14, title, "name")]
    for value in ticks(y.low, y.high, 4):
        shown = f"{100 * value:.4g}" if percent else f"{value:.4g}"
        frame += [
            line(46, y(value), width - 12, y(value), "grid"),
            text(40, y(value) + 4, shown, "tick", "end"),
        ]
    for value in ticks(1, x.high, 5, whole=True):
        frame.append(text(x(value), height - 16, f"{value:g}", "tick", "middle"))
    frame.append(text(width - 12, height - 2, "epoch", "tick", "end"))
    drawn = [_curve(curve, x, y, percent) for curve in lines]
    return svg(width, height, frame, drawn, label=title)


def _curve(curve: Line, x: Scale, y: Scale, percent: bool) -> Html:
    points = [(epoch, value) for epoch, value in enumerate(curve.values, start=1) if value is not None]
    if not points:
        return Html("")
    pixels = [(x(epoch), y(value)) for epoch, value in points]
    marked = [epoch for epoch, _ in points if epoch == curve.best or len(points) == 1]
    dots = [
        tag("circle", cx=x(epoch), cy=y(value), r=3.5, class_="dot")
        for epoch, value in points
        if epoch in marked
    ]
    last = points[-1][1]
    note = f"{curve.name}: {100 * last:.2f} %" if percent else f"{curve.name}: {last:.4g}"
    return tag(
        "g", tag("title", note), path(pixels, "curve"), dots, class_=f"c{curve.colour % COLOURS} {curve.look}"
    )
