"""The pages of the documentation site that are made when it is built."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from types import ModuleType

import pytest
from conftest import ROOT, skip

from mer_dist import arguments
from mer_dist.config import keys


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    if find_spec("mkdocs") is None:
        skip("mkdocs is not installed: launch/setup.sh does it")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_keys_has_each_with_its_facts_and_meaning(pages):
    text = pages.configuration()
    for section in keys.sections():
        for key in section.keys:
            assert f"`{key.name}`\n:   *{key.facts}*\n" in text
    assert "    `lora` trains adapters and the head; `full` trains every weight.\n" in text
    assert "``" not in text.replace("```", "")


def test_the_reference_of_commands_has_the_help_of_each(pages):
    text = pages.commands()
    for words, parser in arguments.of_each_command(arguments.parser()).items():
        assert f"## mer-dist {words}\n\n```text\n{parser.format_help()}```" in text
    assert "## mer-dist config copy\n" in text


@pytest.mark.parametrize(
    ("source", "place", "link", "led"),
    [
        ("README.md", "index.md", "docs/clips.md", "clips.md"),
        ("README.md", "index.md", "CONTRIBUTING.md", "contributing.md"),
        ("docs/development.md", "development.md", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/quickstart/cluster.md", "quickstart/cluster.md", "../clusters.md", "../clusters.md"),
        ("docs/quickstart/cluster.md", "quickstart/cluster.md", "workstation.md", "workstation.md"),
        ("docs/demo.md", "demo.md", "../mer_dist/cli.py", "mer_dist/cli.py"),  # found missing by mkdocs
    ],
)
def test_links_lead_to_where_the_site_has_their_target(pages, source, place, link, led):
    assert pages._in_site(link, source, place) == led
