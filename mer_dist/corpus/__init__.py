"""External input: the clips of a corpus, their media files and faces."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from mer_dist.config.sections import CorpusConfig
from mer_dist.core import clip_names
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import LABELED, UNLABELED, Clip, Problem
from mer_dist.core.registry import FORMATS
from mer_dist.corpus import label_words

#: From ``corpus.path``, ``corpus.labels`` and ``corpus.encoding`` to the usable clips, and the problems of
#: the others. Further keys of ``corpus`` are given to keyword parameters of these names, as ``language``.
Listing = Callable[..., tuple[list[Clip], list[Problem]]]


def register(name: str) -> Callable[[Listing], Listing]:
    """Register the decorated function as the listing of ``corpus.format: name``.

    Raises:
        UserError: the name is taken.
    """

    def registered(listing: Listing) -> Listing:
        FORMATS.add(name, listing, listing.__module__)
        return listing

    return registered


def clips(config: CorpusConfig) -> tuple[list[Clip], list[Problem]]:
    """List the configured corpus: its usable clips by split and name, and why the others are not.

    Raises:
        UserError: the corpus is missing, or a name is unsafe or occurs twice.
    """
    if not config.path:
        raise UserError("corpus.path is not set: the folder of a challenge, or the CSV of a manifest")
    listing = FORMATS[config.format]
    parameters = inspect.signature(listing).parameters.values()
    keys = {one.name: getattr(config, one.name) for one in parameters if one.kind is one.KEYWORD_ONLY}
    found, problems = listing(config.path, config.labels, config.encoding, **keys)
    if config.format not in FORMATS.built_in:
        _check(config, found)
        found = sorted(found, key=lambda clip: (clip.split, clip.name))
    if line := label_words.told(found, config.labels):
        logger.warning("%s: %s", config.path, line)
    return found, problems


def _check(config: CorpusConfig, found: list[Clip]) -> None:
    """Check what later stages rely on, for a format from a plugin.

    Raises:
        UserError: a name is unsafe or occurs twice, or a split or label is not valid.
    """
    clip_names.check((clip.name, f"{config.path}: a clip of the format {config.format}") for clip in found)
    for clip in found:
        if clip.split not in (LABELED, UNLABELED) or (clip.split == LABELED) != (clip.label is not None):
            raise UserError(
                f"corpus.format {config.format}: clip {clip.name} has the split {clip.split!r} and the label "
                f"{clip.label!r}; a clip is 'labeled' and has a label, or 'unlabeled' and has None"
            )
        if clip.label is not None and clip.label not in config.labels:
            raise UserError(
                f"corpus.format {config.format}: clip {clip.name} has the label {clip.label!r}, which is none of "
                f"corpus.labels: {', '.join(config.labels)}"
            )
