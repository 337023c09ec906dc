"""Each figure of the page: plain data in, SVG out."""

from __future__ import annotations

from mer_dist.report.markup import Html, tag
from mer_dist.report.plot import NARROW, Line, Scale, both_widths, fitted, line, panel, span, svg, text, ticks
from mer_dist.report.run_data import Adapter, Confusion, Prior, Round, Score


def scores(rows: list[Score]) -> Html:
    """WAF of every row of the result table with its bootstrap interval: a dot plot."""
    return both_widths(lambda width: _scores(rows, width))


def _scores(rows: list[Score], width: int) -> Html:
    narrow = width == NARROW
    left, right, step = (8, 46, 50) if narrow else (292, 62, 36)
    top, bottom = 10, 12 + step * len(rows)
    values = [value for row in rows for value in row.values()]
    low, high = span([100 * value for value in values]) if values else (0.0, 100.0)
    x = Scale(max(low, 0.0), min(high, 100.5), left, width - right)
    drawn = []
    for value in ticks(x.low, x.high, 5 if narrow else 7):
        drawn += [
            line(x(value), top, x(value), bottom, "grid"),
            text(x(value), bottom + 18, f"{value:g}", "tick", "middle"),
        ]
    for position, row in enumerate(rows):
        y = top + step * (position + (0.68 if narrow else 0.5))
        weight = "name strong" if position == len(rows) - 1 else "name"
        if narrow:
            drawn.append(fitted(0, y - 18, row.title, width - right, weight))
        else:
            drawn.append(fitted(left - 18, y + 4, row.title, left - 26, weight, "end"))
        both = row.oof is not None and row.test is not None
        for colour, waf, interval, shift in (
            (0, row.oof, row.oof_interval, -5 if both else 0),
            (1, row.test, row.test_interval, 5 if both else 0),
        ):
            if waf is not None:
                drawn.append(_dot(x, y + shift, waf, interval, colour, row.title))
        headline = row.headline
        if headline is not None:
            drawn.append(text(width, y + 5, f"{100 * headline:.2f}", f"{weight} value", "end"))
    return svg(width, bottom + 26, drawn, label="WAF of each row of the result table")


def _dot(
    x: Scale, y: float, value: float, interval: tuple[float, float] | None, colour: int, title: str
) -> Html:
    note = f"{title}: {100 * value:.2f}"
    bar = None
    if interval is not None:
        low, high = (100 * edge for edge in interval)
        note += f" [{low:.2f}, {high:.2f}]"
        bar = line(x(low), y, x(high), y, "interval")
    dot = tag("circle", cx=x(100 * value), cy=float(y), r=4.5, class_="dot")
    return tag("g", tag("title", note), bar, dot, class_=f"c{colour}")


def confusion(table: Confusion) -> Html:
    """Rows are the truth; a cell shows its percentage of the row, with the count below."""
    return both_widths(lambda width: _confusion(table, min(width, 556)))


def _confusion(table: Confusion, width: int) -> Html:
    count = len(table.labels)
    left, top = (74, 56) if width == NARROW else (120, 56)
    side = min((width - left) / count, 84.0)
    drawn = [
        text(left + side * count / 2, 14, "answer →", "tick", "middle"),
        text(0, top - 8, "truth ↓", "tick"),
    ]
    for column, label in enumerate(table.labels):
        middle = left + side * (column + 0.5)
        drawn.append(fitted(middle, top - 8, label, side - 4, "tick", "middle", size=11.5))
    for row, label in enumerate(table.labels):
        y = top + side * row
        drawn.append(fitted(left - 10, y + side / 2 + 4, label, left - 12, "name", "end"))
        total = sum(table.counts[row])
        for column, hits in enumerate(table.counts[row]):
            drawn.append(_cell(left + side * column, y, side, hits, total))
    return svg(width, top + side * count + 4, drawn, label="Confusion matrix")


def _cell(x: float, y: float, side: float, hits: int, total: int) -> Html:
    share = hits / total if total else 0.0
    contrast = "cell on" if share > 0.5 else "cell"
    inside = []
    if hits and side >= 26:
        size = "" if side >= 44 else " small"
        inside.append(text(x + side / 2, y + side / 2 + 1, f"{100 * share:.0f} %", contrast + size, "middle"))
        inside.append(text(x + side / 2, y + side / 2 + 15, hits, contrast + " count" + size, "middle"))
    return tag(
        "g",
        tag("title", f"{hits} of {total}"),
        tag("rect", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=4.0, class_="empty"),
        tag(
            "rect",
            x=x + 1,
            y=y + 1,
            width=side - 2,
            height=side - 2,
            rx=4.0,
            class_="heat",
            fill_opacity=f"{share:.3f}",
        ),
        inside,
    )


def prior(data: Prior) -> Html:
    """Label proportions: of labelled clips, estimated, used, and in the answers."""
    return both_widths(lambda width: _prior(data, width))


def _prior(data: Prior, width: int) -> Html:
    narrow = width == NARROW
    left, bar, gap = (86, 9, 14) if narrow else (130, 11, 18)
    block = bar * len(data.series) + gap
    shown = [share for _, shares in data.series for share in shares]
    shown += [edge for edges in data.intervals.values() for pair in edges for edge in pair]
    highest = max(shown, default=1.0) or 1.0
    x = Scale(0, highest * 1.02, left, width - 52)
    bottom = 6 + block * len(data.labels)
    drawn = []
    for value in ticks(0, 100 * x.high, 4 if narrow else 6):
        drawn += [
            line(x(value / 100), 2, x(value / 100), bottom, "grid"),
            text(x(value / 100), bottom + 16, f"{value:g} %", "tick", "middle"),
        ]
    for row, label in enumerate(data.labels):
        y = 6 + block * row
        middle = y + bar * len(data.series) / 2 + 4
        drawn.append(fitted(left - 10, middle, label, left - 12, "name", "end"))
        for position, (name, shares) in enumerate(data.series):
            share, note, whisker, end = shares[row], "", None, shares[row]
            if name in data.intervals:
                low, end = data.intervals[name][row]
                note = f" [{100 * low:.1f}, {100 * end:.1f}]"
                half = y + bar * position + (bar - 1.5) / 2
                whisker = line(x(low), half, x(end), half, "whisker")
            drawn.append(
                tag(
                    "g",
                    tag("title", f"{label}, {name}: {100 * share:.1f} %{note}"),
                    tag(
                        "rect",
                        x=float(left),
                        y=float(y + bar * position),
                        height=bar - 1.5,
                        width=max(x(share) - left, 0.5),
                        rx=2.0,
                        class_="bar",
                    ),
                    whisker,
                    text(
                        x(max(share, end)) + 5,
                        y + bar * (position + 1) - 2.5,
                        f"{100 * share:.1f}",
                        "tick tiny",
                    ),
                    class_=f"c{position}",
                )
            )
    return svg(width, bottom + 24, drawn, label="Share of each label")


def adapter_curves(adapters: list[Adapter]) -> Html:
    """Loss, and the WAF that chose the epoch, of all adapters of one extractor."""
    loss, waf = [], []
    for adapter in adapters:
        colour = 1 if adapter.variant == "all" else 0
        best = adapter.best_epoch
        name = adapter.variant
        loss.append(Line(name=f"{name}, train", values=adapter.train_loss, colour=colour))
        judged = "validation" if adapter.held_out else "after the epoch"
        loss.append(
            Line(
                name=f"{name}, {judged}",
                values=adapter.validation_loss,
                colour=colour,
                look="dashed",
                best=best,
            )
        )
        waf.append(Line(name=name, values=adapter.validation_waf, colour=colour, best=best))
    held_out = all(adapter.held_out for adapter in adapters)
    return _pair(("Loss", loss), ("Validation WAF, %" if held_out else "WAF, nothing held out, %", waf))


def round_curves(rounds: list[Round]) -> Html:
    """Training loss and WAF of the fusion model: thin lines for folds, a thick one for their mean."""
    loss: list[Line] = []
    waf: list[Line] = []
    for entry in rounds:
        for lines, curves in ((loss, entry.train_loss), (waf, entry.waf)):
            name = f"round {entry.number}"
            lines += [
                Line(name=name, values=curve, colour=entry.number, look="faint")
                for curve in curves
                if len(curves) > 1
            ]
            if curves:
                lines.append(Line(name=f"{name}, mean", values=_mean(curves), colour=entry.number))
    return _pair(("Training loss", loss), ("Held-out WAF, %", waf))


def _pair(loss: tuple[str, list[Line]], waf: tuple[str, list[Line]]) -> Html:
    return both_widths(
        lambda page: tag("div", panel(*loss, page), panel(*waf, page, percent=True), class_="panels")
    )


def _mean(curves: list[list[float | None]]) -> list[float | None]:
    means: list[float | None] = []
    for epoch in range(max(map(len, curves))):
        there = [value for curve in curves if epoch < len(curve) and (value := curve[epoch]) is not None]
        means.append(sum(there) / len(there) if there else None)
    return means
