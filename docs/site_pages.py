"""Pages of the documentation site that no file in docs/ holds: a hook of mkdocs.

The references of keys and commands are made from the code. The pages at the top of the repository are taken
as they are, and links are led to where the site has their target.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mer_dist import arguments
from mer_dist.config import keys

ROOT = Path(__file__).parents[1]
#: Files outside docs/ that pages link, and their place in the site.
TAKEN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
    "constraints.txt": "constraints.txt",
}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in TAKEN.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    source = next((name for name, taken in TAKEN.items() if taken == place), f"docs/{place}")
    return _LINK.sub(lambda link: _in_site(link[0], source, place), markdown)


def _in_site(link: str, source: str, place: str) -> str:
    """A link of the file ``source`` of the repository as one of the page ``place`` of the site."""
    target = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return os.path.relpath(TAKEN.get(target, target.removeprefix("docs/")), os.path.dirname(place) or ".")


def configuration() -> str:
    """Every key of a configuration, by section."""
    lines = ["# Configuration", "", "`mer-dist keys [SECTION]` prints the same on a terminal.", ""]
    for section in keys.sections():
        lines += [f"## {section.name or 'Top of the file'}", "", _code(section.meaning), ""]
        for key in section.keys:
            lines += [f"`{key.name}`", f":   *{key.facts}*", ""]
            lines += [f"    {_code(key.meaning)}", ""]
    return "\n".join(lines)


def commands() -> str:
    """The help of every command."""
    lines = ["# Every option", "", "What `--help` prints. What each command reads and writes: "]
    lines[-1] += "[overview](../commands.md)."
    for words, parser in arguments.of_each_command(arguments.parser()).items():
        lines += ["", f"## mer-dist {words}", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    return text.replace("``", "`")
