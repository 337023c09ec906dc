"""The examples of docs/extending.md, and a process in which no plugin is imported yet."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mer_dist.config import plugins
from mer_dist.core.registry import ENCODERS, FORMATS, FUSION_MODELS

#: Name, under which it is registered and is to be saved -> source.
EXAMPLES = {
    re.search(r'@register\(\s*"(\w+)"', source)[1]: source
    for source in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text("utf-8"), re.DOTALL
    )
}


def write(folder: Path) -> None:
    """All of them."""
    for name, source in EXAMPLES.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith(plugins._PREFIX)]:
        del sys.modules[name]


def begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process would be."""
    forget()
    for registry in (ENCODERS, FORMATS, FUSION_MODELS):
        # What comes along registers itself once, as its module is imported; it must not go with the test.
        for name in registry.built_in:
            assert registry[name]
        for part in ("_modules", "_entries"):
            known = getattr(registry, part).items()
            kept = {name: value for name, value in known if name in registry.built_in}
            monkeypatch.setattr(registry, part, kept)
