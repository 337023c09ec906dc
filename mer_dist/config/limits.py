"""What the value of a key may be, written beside its type as ``Annotated[int, at_least(1)]``.

``section`` checks it, and ``mer-dist keys`` shows it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from mer_dist.core.errors import UserError


@dataclass(frozen=True)
class Limit:
    text: str
    """Completes "it must be"."""
    fits: Callable[[Any], bool]

    def check(self, key: str, value: Any) -> None:
        """
        Raises:
            UserError: the value does not fit.
        """
        if not self.fits(value):
            raise UserError(f"{key} is {value!r}; it must be {self.text}")


def one_of(*allowed: str) -> Limit:
    return Limit(f"one of: {', '.join(allowed)}", lambda value: value in allowed)


def at_least(least: float) -> Limit:
    return Limit(f"at least {least}", lambda value: value >= least)


FRACTION = Limit("in [0, 1)", lambda value: 0 <= value < 1)
Count = Annotated[int, at_least(1)]
Fraction = Annotated[float, FRACTION]
#: A part of something that must not be nothing.
Share = Annotated[float, Limit("in (0, 1]", lambda value: 0 < value <= 1)]
#: 0 turns something off, or leaves it to a default.
WholeFromZero = Annotated[int, at_least(0)]
FromZero = Annotated[float, at_least(0)]


def of(cls: type) -> dict[str, Limit]:
    """The keys of a section that have a limit."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items() if typing.get_origin(hint) is Annotated}
