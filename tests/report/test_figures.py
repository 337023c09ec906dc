from xml.etree import ElementTree

import pytest

from mer_dist.report import figures
from mer_dist.report.markup import Html, join, tag
from mer_dist.report.plot import Line, Scale, fitted, panel, ticks
from mer_dist.report.run_data import Confusion, Prior, Score

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markup: Html) -> ElementTree.Element:
    """Parsed as XML: a figure that is not well formed fails here."""
    return ElementTree.fromstring(f"<all>{markup}</all>")


def test_text_is_escaped_unless_it_was_made_by_tag():
    assert tag("p", '<b>&"', tag("i", "x"), None, ["a", 1], class_='"q') == (
        '<p class="&quot;q">&lt;b&gt;&amp;&quot;<i>x</i>a1</p>'
    )
    assert join("<", Html("<br>")) == "&lt;<br>"
    made = tag("text", text_anchor="end", x=1.25, y=2.0)
    assert made == '<text text-anchor="end" x="1.2" y="2"></text>'


def test_what_utf_8_and_xml_cannot_hold_is_replaced():
    assert tag("p", "a\x00b\ud800c\x1b") == "<p>a\ufffdb\ufffdc\ufffd</p>"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.61, 0.64), (-3, 12345), (1e-6, 3e-6), (1, 2)])
def test_ticks_are_few_and_within_the_range(low, high):
    made = ticks(low, high)
    assert 2 <= len(made) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in made)
    assert ticks(1, 6, whole=True) == [1, 2, 3, 4, 5, 6] and ticks(1, 2, whole=True) == [1, 2]


def test_a_scale_maps_its_ends_to_its_pixels():
    scale = Scale(10, 20, 100, 0)
    assert (scale(10), scale(15), scale(20)) == (100, 50, 0)


def test_a_long_title_is_cut_and_told_in_full_when_pointed_at():
    assert "…" not in fitted(0, 0, "short", 100)
    cut = drawn(fitted(0, 0, "一" * 50, 100))
    assert cut.find(".//title").text == "一" * 50 and cut.find(".//text").text == "一" * 6 + "…"


def test_a_row_is_drawn_at_its_value_and_its_interval():
    rows = [Score(title="a", oof=0.5, oof_interval=(0.4, 0.6)), Score(title="b", oof=0.9)]
    wide = drawn(figures.scores(rows)).find(f".//{SVG}svg")
    dots = [float(dot.get("cx")) for dot in wide.iter(f"{SVG}circle")]
    bar = next(line for line in wide.iter(f"{SVG}line") if line.get("class") == "interval")
    low, high = float(bar.get("x1")), float(bar.get("x2"))
    assert dots[0] == pytest.approx((low + high) / 2, abs=0.2)
    assert (dots[1] - dots[0]) == pytest.approx(2 * (high - low), abs=0.4)


def test_a_cell_of_the_confusion_is_as_dark_as_its_share_of_its_row():
    table = Confusion(title="t", labels=["a", "b"], counts=[[3, 1], [0, 0]])
    wide = drawn(figures.confusion(table)).find(f".//{SVG}svg")
    shares = [
        float(cell.get("fill-opacity")) for cell in wide.iter(f"{SVG}rect") if cell.get("class") == "heat"
    ]
    assert shares == [0.75, 0.25, 0, 0]
    texts = [text.text for text in wide.iter(f"{SVG}text")]
    assert "75 %" in texts and "3" in texts


def test_bars_of_the_prior_are_as_long_as_their_shares():
    data = Prior(labels=["a", "b"], series=[("x", [0.2, 0.8]), ("y", [0.4, 0.6])])
    wide = drawn(figures.prior(data)).find(f".//{SVG}svg")
    lengths = [float(bar.get("width")) for bar in wide.iter(f"{SVG}rect")]
    shares = [length / sum(lengths) for length in lengths]
    assert shares == pytest.approx([0.1, 0.2, 0.4, 0.3], abs=0.01)


def test_the_interval_of_an_estimate_is_a_line_on_the_scale_of_the_bars():
    data = Prior(labels=["a", "b"], series=[("x", [0.2, 0.8])], intervals={"x": [(0.1, 0.4), (0.7, 0.9)]})
    wide = drawn(figures.prior(data)).find(f".//{SVG}svg")
    lines = [part for part in wide.iter(f"{SVG}line") if part.get("class") == "whisker"]
    widths = [float(part.get("x2")) - float(part.get("x1")) for part in lines]
    bars = [float(part.get("width")) for part in wide.iter(f"{SVG}rect")]
    assert widths == pytest.approx([bars[0] * 1.5, bars[1] * 0.25], rel=0.02)


def test_curves_without_a_value_are_no_figure_and_one_epoch_is_a_dot():
    assert panel("t", [Line(name="a", values=[None])], 350) == ""
    one = drawn(panel("t", [Line(name="a", values=[0.5])], 350))
    assert len(one.findall(f".//{SVG}circle")) == 1


def test_empty_data_gives_empty_figures():
    for figure in (
        figures.scores([]),
        figures.adapter_curves([]),
        figures.round_curves([]),
        figures.prior(Prior(labels=["a"], series=[])),
        figures.confusion(Confusion(title="", labels=["a"], counts=[[0]])),
    ):
        assert drawn(figure) is not None
