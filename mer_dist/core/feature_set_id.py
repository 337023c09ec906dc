"""Names of feature sets: the only module that interprets ``clip``, ``clip@fold-0`` and ``clip@tuned``.

====================  ==========================================================================
``clip``              frozen features of an extractor, or an imported set
``clip@fold-0``       from the adapter that was trained without fold 0: clips of fold 0 and anchors
``clip@all``          from the adapter that was trained on every fold: unlabelled clips
``clip@tuned``        not stored: ``clip@fold-0``, ``clip@fold-1``, … and ``clip@all``, joined by clip
====================  ==========================================================================

Folders, YAML values and files store the name as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mer_dist.core.errors import UserError

#: Valid names of an extractor or an imported set.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ALL, TUNED = "all", "tuned"
_FOLD = re.compile(r"fold-(0|[1-9][0-9]*)")


def adapter_variant(held_out_fold: int | None) -> str:
    """``fold-K`` for the adapter that never sees fold K, ``all`` for the one that sees every fold."""
    return ALL if held_out_fold is None else f"fold-{held_out_fold}"


def _refusal(text: str) -> UserError:
    return UserError(
        f"feature set {text!r}: a name is letters, digits, '.', '_' and '-', as clip, and for "
        f"fine-tuned features clip@{TUNED}, clip@{ALL} or clip@fold-0"
    )


@dataclass(frozen=True, slots=True)
class FeatureSetId:
    """The name of a feature set, split into its parts.

    Raises:
        UserError: the name is not valid.
    """

    #: Of the extractor, or of the imported set.
    name: str
    #: ``fold-K``, ``all``, ``tuned``; empty: not fine-tuned.
    variant: str = ""

    def __post_init__(self):
        known = self.variant in ("", ALL, TUNED) or _FOLD.fullmatch(self.variant)
        if not (known and NAME.fullmatch(self.name)):
            raise _refusal(str(self))

    @classmethod
    def parse(cls, text: str) -> FeatureSetId:
        """
        Raises:
            UserError: it is not a valid name of a feature set.
        """
        name, at, variant = text.partition("@")
        if at and not variant:
            raise _refusal(text)
        return cls(name, variant)

    @classmethod
    def of_adapter(cls, extractor: str, held_out_fold: int | None) -> FeatureSetId:
        """Of one adapter of a fine-tuned extractor, by its held-out fold; None: it saw all folds."""
        return cls(extractor, adapter_variant(held_out_fold))

    def __str__(self) -> str:
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def is_tuned(self) -> bool:
        """Joined from the stored sets of all adapters."""
        return self.variant == TUNED

    @property
    def is_of_all(self) -> bool:
        """Of the adapter that saw every fold."""
        return self.variant == ALL

    @property
    def held_out_fold(self) -> int | None:
        """K of ``fold-K``; None for every other variant."""
        found = _FOLD.fullmatch(self.variant)
        return int(found[1]) if found else None

    def stored(self, folds: int) -> list[FeatureSetId]:
        """The sets on disk that make up this set."""
        if not self.is_tuned:
            return [self]
        return [self.of_adapter(self.name, held_out) for held_out in (*range(folds), None)]

    def stored_of(self, fold: int | None) -> FeatureSetId:
        """The stored set that has the clips of a fold; None: the unlabelled clips."""
        return self.of_adapter(self.name, fold) if self.is_tuned else self
