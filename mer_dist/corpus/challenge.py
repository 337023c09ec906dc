"""What the folders of the MER challenges have in common: files named like clips, and a table of transcripts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from mer_dist.core import clip_names
from mer_dist.core.log import logger
from mer_dist.corpus import table
from mer_dist.corpus.texts import Texts

#: Video suffixes: every file with such a name counts as a clip, whatever its content.
SUFFIXES = clip_names.VIDEO_SUFFIXES | {".264", ".265"}
#: ``corpus.language`` -> columns of a transcript, in this order.
COLUMNS = {"chinese": ("chinese",), "english": ("english",), "both": ("chinese", "english")}
#: Of the table of labels. Its other columns, as valence, are kept and not used.
LABEL_COLUMNS = ("name", "discrete")
SHOWN = 5


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads back to itself.
        return False


def clips_in(
    part: Path, suffixes: Collection[str] = SUFFIXES, what: str = "a video file"
) -> list[tuple[str, Path]]:
    """Name and file of each clip, by file name; other entries are logged, not ignored silently."""
    found, others = [], []
    with os.scandir(part) as listing:
        for entry in sorted(listing, key=lambda entry: entry.name):
            name, suffix = os.path.splitext(entry.name)
            suffix = suffix.lower()
            # macOS leaves ._x.mp4, which holds no video, beside x.mp4 on foreign disks.
            # A broken link is a clip that cannot be read.
            if suffix in suffixes and not entry.name.startswith("._") and not _is_folder(entry):
                # Tables may encode it differently: macOS writes é as two characters.
                found.append((clip_names.clean(name), part / entry.name))
            else:
                others.append((entry.name, "folder" if _is_folder(entry) else suffix or "no suffix"))
    if others:
        counts = Counter(kind for _, kind in others)
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        some = ", ".join(clip_names.shown(name) for name, _ in others[:SHOWN])
        logger.warning(
            "%s: %d entries do not count as clips (%s), for example %s; a clip is %s "
            "directly in this folder whose name ends in one of %s",
            part,
            len(others),
            kinds,
            some,
            what,
            " ".join(sorted(suffixes)),
        )
    return found


def transcripts(path: Path, language: str, encoding: str, known: Collection[str]) -> table.Table:
    """The table of transcripts; empty, with a warning, if there is none.

    Args:
        language: ``corpus.language``; the table must have its columns.
    """
    found = table.Table(file=path.name)
    if path.exists():
        found = table.read(path, ("name", *COLUMNS[language]), encoding, known)
    if not (found.rows or found.bad):
        logger.warning(
            "%s: no %s with a row in it, so every clip lacks its transcript", path.parent, path.name
        )
    return found


def spoken(texts: Texts, row: dict[str, str], columns: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The transcript in these columns of a row, and remarks on it; None if they are empty."""
    found = [texts.read(row, column) for column in columns]
    words = [text for text, _ in found if text is not None]
    return " ".join(words) or None, tuple(dict.fromkeys(kind for _, kinds in found for kind in kinds))


def unspoken(name: str, spoken: table.Table) -> str:
    """Why a clip's transcript is lost; empty if it exists or is absent on purpose: an empty field is a clip
    without speech, and without a table no clip has a transcript. A table must have a row for every clip, as
    the challenge's has."""
    if name in spoken.bad:
        return spoken.bad[name]
    expected = name not in spoken.rows and (spoken.rows or spoken.bad)
    return f"{spoken.file} has no row for it" if expected else ""
