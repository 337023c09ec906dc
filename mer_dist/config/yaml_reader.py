"""A YAML reader and a type check that never guess.

``0123`` is not 83, ``no`` is not False, 2 is not True, a key occurs once, and an unknown key is
refused with the valid ones.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any

import yaml

from mer_dist.core.errors import UserError

#: Characters of a wrong value in an error.
LONGEST = 400


class _StrictLoader(yaml.SafeLoader):
    """YAML with the 1.2 meaning of plain words: only true/false are booleans, 0123 is text."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent, index):
        # Aliases of aliases grow without bound, and ${section.key} can replace them.
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                "aliases (*name) are not read; write the value out, or as ${section.key}",
                self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|", "~n\0"),
):
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        [*_first.replace("\0", "")] + ([""] if "\0" in _first else []),
    )


def parse(text: str, where: str) -> Any:
    """Plain values of a YAML text; ``where`` names it in errors."""
    try:
        return yaml.load(text, _StrictLoader)  # a SafeLoader: builds plain values only
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # Besides its own errors, those of a number of 5000 digits or a tag on the wrong value.
        why = " ".join(str(error).split())
        raise UserError(f"{where}: not readable as YAML: {why[:LONGEST]}") from None


def _check(value: Any, kind: Any, where: str, key: str) -> None:
    """Refuse a value that is not exactly of the declared type; interpolations are checked later."""
    if isinstance(value, str) and "${" in value:
        return
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            (kind,) = [arm for arm in typing.get_args(kind) if arm is not type(None)]
            _check(value, kind, where, key)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        check_section(value, kind, where, key)
    elif origin is list:
        if not isinstance(value, list):
            raise _wrong(value, "a list", where, key)
        for position, item in enumerate(value):
            _check(item, typing.get_args(kind)[0], where, f"{key}[{position}]")
    elif origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, "a mapping", where, key)
        for name, item in value.items():
            _check(name, str, where, f"{key}: the name {name!r}")
            _check(item, typing.get_args(kind)[1], where, f"{key}.{name}")
    else:
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if not fits:
            names = {
                str: "text",
                int: "a whole number without leading zeros",
                float: "a number",
                bool: "true or false",
            }
            raise _wrong(value, names[kind], where, key)


def _wrong(value: Any, wanted: str, where: str, key: str) -> UserError:
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} …"
    # {calm:0.3} is the one word "calm:0.3" without a value.
    hint = "; a space has to follow its colon" if value is None and ":" in key else ""
    if wanted == "text" and type(value) in (int, float, bool):
        written = str(value).lower() if isinstance(value, bool) else str(value)
        hint = f'; put it between quotes: "{written}"'
    return UserError(f"{where}: {key} is {shown} ({type(value).__name__}); it must be {wanted}{hint}")


def check_section(value: Any, schema: type, where: str, key: str) -> None:
    """Refuse a mapping with keys or types that the dataclass ``schema`` does not declare.

    Raises:
        UserError: with ``where``, the full key below ``key``, and the valid keys.
    """
    if not isinstance(value, dict):
        raise _wrong(value, "a section of keys", where, key or "the file")
    hints = typing.get_type_hints(schema)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(schema)}
    for name, item in value.items():
        full = f"{key}.{name}" if key else str(name)
        if name in (renamed := getattr(schema, "RENAMED", {})):
            raise UserError(f"{where}: {full} is called {full[: -len(name)]}{renamed[name]} now; write that")
        if name not in kinds:
            level = f"in {key}" if key else "at the top"
            raise UserError(f"{where}: unknown key {full!r}; valid {level}: {', '.join(kinds)}")
        _check(item, kinds[name], where, full)
