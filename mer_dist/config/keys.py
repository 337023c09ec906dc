"""Every key of a configuration, read from the sections: type, default, limit, meaning.

The meaning of a key is the text below it in the source, which Python itself does not keep.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import shutil
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass

from omegaconf import MISSING as REQUIRED

from mer_dist.config import limits
from mer_dist.config.config import Config
from mer_dist.core.errors import UserError

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
#: Stands in a key for what the user names.
_NAME = "NAME"


@dataclass(frozen=True, kw_only=True)
class Key:
    name: str
    type: str
    default: str
    """Empty: the key must be given."""
    limit: str
    """Empty: any value of the type."""
    meaning: str

    @property
    def facts(self) -> str:
        """As ``whole number; at least 1; default 64``."""
        default = f"default {self.default}" if self.default else "required"
        return "; ".join(filter(None, [self.type, self.limit, default]))


@dataclass(frozen=True, kw_only=True)
class Section:
    name: str
    """As ``extractors.NAME.finetune``; empty: the top of the file."""
    meaning: str
    keys: list[Key]


def sections() -> list[Section]:
    """Every section with its own keys, a section within another one after it."""
    return list(_walk("", Config))


def text(asked: str = "") -> str:
    """The sections whose name begins with ``asked``, or the one key of that name, for a terminal.

    Raises:
        UserError: there is none.
    """
    found = [_part(section, asked) for section in sections()] if asked else sections()
    found = [section for section in found if section.keys]
    if not found:
        raise UserError(f"no section or key {asked!r}; {_hint(asked)}")
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n\n".join(_section_text(section, width) for section in found)


def _part(section: Section, asked: str) -> Section:
    if f"{section.name}.".startswith(f"{asked}."):
        return section
    return dataclasses.replace(section, keys=[key for key in section.keys if key.name == asked])


def _hint(asked: str) -> str:
    names = [section.name for section in sections() if section.name]
    every = [*(key.name for section in sections() for key in section.keys), *names]
    # By its last word, too: finetune is extractors.NAME.finetune.
    called = {name.rpartition(".")[2]: name for name in every} | {name: name for name in every}
    like = difflib.get_close_matches(asked, called, n=1, cutoff=0.7)
    return f"do you mean {called[like[0]]}?" if like else f"there are: {', '.join(names)}"


def _section_text(section: Section, width: int) -> str:
    def wrapped(text: str, indent: str) -> str:
        plain = text.replace("``", "")
        return textwrap.fill(
            plain, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )

    lines = [wrapped(f"{section.name or 'top of the file'}: {section.meaning}", "")]
    for key in section.keys:
        lines.append(wrapped(f"{key.name} ({key.facts})", "  "))
        lines.append(wrapped(key.meaning, "      "))
    return "\n".join(lines)


def _walk(name: str, cls: type) -> Iterator[Section]:
    hints, meanings, allowed = typing.get_type_hints(cls), _meanings(cls), limits.of(cls)
    keys, below = [], []
    for field in dataclasses.fields(cls):
        full, hint = f"{name}.{field.name}".lstrip("."), hints[field.name]
        inner = _section_in(hint)
        if inner:
            below.append((f"{full}.{_NAME}" if typing.get_origin(hint) is dict else full, inner))
        if not inner or field.name in meanings:
            limit = allowed[field.name].text if field.name in allowed else ""
            keys.append(
                Key(
                    name=full,
                    type="section" if inner else _type(hint),
                    default=_default(field),
                    limit=limit,
                    meaning=meanings.get(field.name, ""),
                )
            )
    yield Section(name=name, meaning=" ".join((cls.__doc__ or "").split()), keys=keys)
    for full, inner in below:
        yield from _walk(full, inner)


def _meanings(cls: type) -> dict[str, str]:
    """The texts below the fields of a class, each on one line."""
    (made,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for field, below in zip(made.body, made.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _section_in(hint: typing.Any) -> type | None:
    """The section that a field holds, alone, optionally, or by name."""
    arms = [hint, *typing.get_args(hint)]
    return next((arm for arm in arms if isinstance(arm, type) and dataclasses.is_dataclass(arm)), None)


def _type(hint: typing.Any) -> str:
    if hint in _TYPES:
        return _TYPES[hint]
    inner = _TYPES[typing.get_args(hint)[-1]]
    return f"list, each {inner}" if typing.get_origin(hint) is list else f"mapping of a name to {inner}"


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not MISSING:
        return json.dumps(field.default_factory(), ensure_ascii=False)
    if field.default == REQUIRED:
        return ""
    return "absent" if field.default is None else json.dumps(field.default, ensure_ascii=False)
