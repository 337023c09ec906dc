"""HTML and SVG elements that escape by construction.

Clip names, labels, transcripts and reasons come from outside. Only the result of :func:`tag` is
markup; every other string is escaped.
"""

from __future__ import annotations

import html
import re
from typing import Any

_VOID = frozenset({"meta", "br", "col", "img"})
# Characters that XML forbids, and lone surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is already markup."""


def escape(value: Any) -> Html:
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value))))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """``<name attributes>children</name>``.

    Children that are None are left out, lists are flattened, strings are escaped. In attribute
    names a trailing ``_`` is dropped (``class_``) and others become ``-`` (``text_anchor``).
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_number(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Concatenated children, treated as by :func:`tag`."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Html("".join(parts))


def _number(value: Any) -> str:
    # A tenth of a pixel is enough, and keeps the page small.
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(value)
