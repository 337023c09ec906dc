"""The documentation: its links, modules, commands, configurations and keys are there, and README is short."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import plugin_files
import pytest
from conftest import ROOT

from mer_dist import arguments
from mer_dist.config import config as configuration

MOST_WORDS = 1000
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
#: In the glossary, a module of the package.
_MODULE = re.compile(r"`([a-z_0-9]+/[a-z_0-9]+\.py)`")
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CALL = re.compile(r"(?:^|`|\$\()mer-dist +([a-z][a-z-]+)", re.MULTILINE)
#: ``section.key``, or ``key`` of what a section holds by name.
SECTIONS = {field.name for field in dataclasses.fields(configuration.Config)}
_KEY = re.compile(rf"`({'|'.join(sorted(SECTIONS))})\.([a-z_]+)(?![a-z_]*[./])")
FILES = {"json", "jsonl", "yaml", "parquet", "sbatch", "py", "md", "csv", "html"}


def commands() -> set[str]:
    """Every command that the parser knows."""
    return {words for words in arguments.of_each_command(arguments.parser()) if " " not in words}


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
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} <= links


def test_the_table_of_the_rooms_has_every_one():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "mer_dist").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == rooms


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/glossary.md"])
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


def test_the_commands_that_are_named_exist_and_each_is_explained():
    for page in PAGES:
        assert set(_CALL.findall(page.read_text("utf-8"))) <= commands(), page.name
    explained = set(
        re.findall(r"`(?:mer-dist )?([a-z][a-z-]+)\b", (ROOT / "docs" / "commands.md").read_text("utf-8"))
    )
    assert commands() - explained == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_configurations_that_are_shown_load_and_keys_that_are_named_exist(page, tmp_path, monkeypatch):
    text = page.read_text("utf-8")
    plugin_files.begin(monkeypatch)
    plugin_files.write(tmp_path)
    for number, block in enumerate(_YAML.findall(text)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, "utf-8")
        configuration.load(path, [f"run.folder={tmp_path}"])
    types = {field.name: field.default_factory for field in dataclasses.fields(configuration.Config)}
    for section, key in _KEY.findall(text):
        if key not in FILES and dataclasses.is_dataclass(types[section]):
            assert key in {field.name for field in dataclasses.fields(types[section])}, f"{section}.{key}"


def test_there_are_configurations_to_load():
    assert sum(len(_YAML.findall(page.read_text("utf-8"))) for page in PAGES) >= 5


def told_by_the_source() -> str:
    """Every text in the code of the package, with … for what is filled in."""
    found = []
    for path in sorted((ROOT / "mer_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append(re.sub("…+", "…", "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_is_explained_is_one_of_the_source():
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    told = told_by_the_source()
    assert 15 <= len(messages) == text.count("\n### ")
    assert [message for message in messages if message.removesuffix(" …") not in told] == []
    assert "unknown key …; valid in every place" not in told
