"""What comes from outside: the clips of a corpus, their media files and faces."""

from __future__ import annotations

from mer_dist.config.sections import CorpusConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip, Problem


def clips(config: CorpusConfig) -> tuple[list[Clip], list[Problem]]:
    """List the configured corpus: its usable clips, and why the others are not.

    Raises:
        UserError: the corpus is not there, or a name is unsafe or occurs twice.
    """
    from mer_dist.corpus import manifest, mer2024

    if not config.path:
        raise UserError("corpus.path is not set: the MER2024 folder, or the CSV of a manifest")
    listing = {"mer2024": mer2024.clips, "manifest": manifest.clips}[config.format]
    return listing(config.path, config.labels, config.encoding)
