"""The sections of a configuration: dataclasses that check themselves and are frozen afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

Section = TypeVar("Section", bound=type)


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
def section(cls: Section) -> Section:
    """Make the class a keyword-only dataclass whose objects are frozen after ``__post_init__``.

    ``dataclasses.replace`` makes another object with other values, which is checked as well. ``frozen=True``
    would keep ``__post_init__`` from expanding paths, and OmegaConf from merging into the schema.
    """
    made: Any = dataclasses.dataclass(kw_only=True)(cls)
    initialize = made.__init__

    def __init__(self, *args: Any, **values: Any) -> None:
        initialize(self, *args, **values)
        object.__setattr__(self, "_frozen", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_frozen" in vars(self):
            raise dataclasses.FrozenInstanceError(
                f"{type(self).__name__}.{name} cannot be changed; dataclasses.replace makes another one"
            )
        object.__setattr__(self, name, value)

    made.__init__, made.__setattr__ = __init__, __setattr__
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
