"""Registries of encoder families, corpus formats and fusion models.

A built-in name is listed here with the module that registers it. The module is imported when the name is
looked up: a configuration is checked without any of them. All other names come from the modules that
``plugins`` of the configuration lists.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from mer_dist.core.errors import UserError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name, in the order in which they were registered."""

    def __init__(self, kind: str, built_in: dict[str, str]):
        """
        Args:
            kind: the name of an entry in errors.
            built_in: name -> the module that registers it on import.
        """
        self.kind = kind
        self.built_in = built_in
        self._modules = dict(built_in)
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry, module: str) -> None:
        """Register ``entry``, which ``module`` defines.

        Raises:
            UserError: the name is taken, or not valid.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{self.kind} {name!r}: a name is letters, digits, '.', '_' and '-'")
        first = self._modules.get(name, module)
        if name in self._entries or first != module:
            raise UserError(
                f"the {self.kind} {name!r} is registered twice, by {first} and by {module}; "
                "give one of them another name"
            )
        self._modules[name], self._entries[name] = module, entry

    def check(self, key: str, name: str) -> None:
        """
        Raises:
            UserError: the value of ``key`` in the configuration is not registered.
        """
        if name not in self._modules:
            raise UserError(
                f"{key} is {name!r}; it must be one of: {', '.join(self)}, or one that a module of yours "
                "registers, which 'plugins' names (docs/extending.md)"
            )

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            importlib.import_module(self._modules[name])
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)


#: name -> :class:`mer_dist.models.family.Family`
ENCODERS: Registry[Any] = Registry(
    "encoder family",
    {
        "clip": "mer_dist.models.clip_family",
        "hubert": "mer_dist.models.hubert_family",
        "baichuan": "mer_dist.models.baichuan_family",
        "text": "mer_dist.models.text_family",
        "audio": "mer_dist.models.audio_family",
        "image": "mer_dist.models.image_family",
        "video": "mer_dist.models.video_family",
    },
)
#: name -> :data:`mer_dist.corpus.Listing`
FORMATS: Registry[Any] = Registry(
    "corpus format",
    {
        "mer2024": "mer_dist.corpus.mer2024",
        **dict.fromkeys(("mer2025", "mer2026"), "mer_dist.corpus.mer2025"),
        "manifest": "mer_dist.corpus.manifest",
    },
)
#: name -> :class:`mer_dist.fusion.registered.RegisteredModel`
FUSION_MODELS: Registry[Any] = Registry(
    "fusion model", dict.fromkeys(("agt", "attention", "mlp", "linear"), "mer_dist.fusion.models")
)
