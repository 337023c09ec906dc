"""The sections of a configuration: dataclasses that check themselves and are frozen afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

from mer_dist.config import limits

Section = TypeVar("Section", bound=type)


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
def section(name: str) -> Callable[[Section], Section]:
    """Make the class a keyword-only dataclass whose objects are checked, and then frozen.

    Values are checked against the limits of their keys, then by ``__post_init__``.
    ``dataclasses.replace`` makes another object with other values, which is checked as well. ``frozen=True``
    would keep ``__post_init__`` from expanding paths, and OmegaConf from merging into the schema.

    Args:
        name: of the section in errors; empty: the key alone.
    """

    def made(cls: Section) -> Section:
        limited = {f"{name}.{key}".lstrip("."): (key, limit) for key, limit in limits.of(cls).items()}
        own = getattr(cls, "__post_init__", None)

        def __post_init__(self) -> None:
            for full, (key, limit) in limited.items():
                limit.check(full, getattr(self, key))
            if own:
                own(self)
            object.__setattr__(self, "_frozen", True)

        def __setattr__(self, key: str, value: Any) -> None:
            if "_frozen" in vars(self):
                raise dataclasses.FrozenInstanceError(
                    f"{type(self).__name__}.{key} cannot be changed; dataclasses.replace makes another one"
                )
            object.__setattr__(self, key, value)

        changed: Any = cls
        changed.__post_init__, changed.__setattr__ = __post_init__, __setattr__
        dataclasses.dataclass(kw_only=True)(changed)
        return cls

    return made


def with_values(config: Any, **values: Any) -> Any:
    """A configuration or section with other values: ``with_values(config, **{"fuse.epochs": 3})``.

    Raises:
        UserError: a value is refused, as in a file.
    """
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if isinstance(config, dict):
            config = config | {name: with_values(config[name], **{rest: value}) if rest else value}
        else:
            inner = with_values(getattr(config, name), **{rest: value}) if rest else value
            config = dataclasses.replace(config, **{name: inner})
    return config
