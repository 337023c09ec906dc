"""The documentation: every relative link leads to a file and heading, every module it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

MOST_WORDS = 1200
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
#: In the glossary, a module of the package.
_MODULE = re.compile(r"`([a-z_0-9]+/[a-z_0-9]+\.py)`")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings: lower case, no punctuation, hyphens for blanks."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        plain = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (anchor := f"{plain}-{number}" if number else plain) in found:
            number += 1
        found.add(anchor)
    return found


def faults(page: Path, root: Path) -> list[str]:
    """Relative links of a page that lead to no file below ``root``, or to no heading of a page there."""
    told = []
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", page.read_text("utf-8")))):
        if _ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not (file.is_relative_to(root.resolve()) and file.exists()):
            told.append(f"{page.name}: no file {path}")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text("utf-8"))):
            told.append(f"{page.name}: no heading {target}")
    return told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page):
    assert faults(page, ROOT) == []


def test_the_readme_links_every_page_and_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= MOST_WORDS
    links = set(_LINK.findall(text))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")} <= links


def test_the_tree_of_the_readme_has_every_room():
    text = (ROOT / "README.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "mer_dist").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE)) == rooms


@pytest.mark.parametrize("page", ["README.md", "docs/glossary.md"])
def test_the_modules_that_are_named_exist(page):
    named = set(_MODULE.findall((ROOT / page).read_text("utf-8")))
    assert named
    places = (ROOT, ROOT / "mer_dist")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_glossary_is_in_the_order_of_the_alphabet():
    rows = re.findall(r"^\| ([^|]+?) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    terms = [row.lower() for row in rows[1:]]
    assert len(terms) > 50
    assert terms == sorted(terms)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("[a](b.md)", []),
        ("[a](b.md#a-title-of-two)", []),
        ("[a](#here)", []),
        ("[a](https://example.org/x.md)", []),
        ("`[a](nowhere.md)`", []),
        ("```\n[a](nowhere.md)\n```", []),
        ("[a](nowhere.md)", ["page.md: no file nowhere.md"]),
        ("![a](nowhere.png)", ["page.md: no file nowhere.png"]),
        ("[a](../outside.md)", ["page.md: no file ../outside.md"]),
        ("[a](b.md#title)", ["page.md: no heading b.md#title"]),
        ("[a](#in-code)", ["page.md: no heading #in-code"]),
        ("[a](b.md#a-title-of-two-1)", ["page.md: no heading b.md#a-title-of-two-1"]),
    ],
)
def test_a_planted_link_is_judged(tmp_path, link, told):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.md").write_text("# Outside\n")
    (root / "b.md").write_text("# B\n## A `title`, of *two*\n")
    page = root / "page.md"
    page.write_text(f"# Here\n```\n# In code\n```\n{link}\n")
    assert faults(page, root) == told
