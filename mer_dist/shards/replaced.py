"""Finds what a changed corpus would remove from a run with shards, before anything is replaced."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mer_dist.config.config import Config
from mer_dist.core.errors import UserError
from mer_dist.core.records import Clip, Modality, Problem
from mer_dist.storage import parquet, quarantine
from mer_dist.storage.run_folder import Run, ShardFolder

SHOWN = 3
WORDS = {Modality.VIDEO: "videos", Modality.AUDIO: "sounds", Modality.TEXT: "transcripts"}
MEANT = (
    "Nothing was changed. To add clips, let the corpus hold the old ones, too; for another corpus, give it "
    "a run.folder of its own; if a folder or disk is missing, put it back; to take this out of the run, "
    "shard.remove=true"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A clip's label and modalities in the shards."""

    label: str | None
    parts: frozenset[str]


def stored(shards_folder: Path) -> dict[str, Stored]:
    """Every clip in the existing shards, by name; also in shards of an older version."""
    found: dict[str, Stored] = {}
    folder = ShardFolder(shards_folder)
    for path in [*folder.all_records(), folder.index]:
        try:
            rows = parquet.read(path, ["name", "label", "missing"]).to_pylist()
            found |= {
                row["name"]: Stored(label=row["label"], parts=frozenset(Modality) - {*row["missing"]})
                for row in rows
            }
        except Exception as error:
            if getattr(error, "errno", None) in (errno.EIO, errno.ESTALE):
                raise  # A brief disk failure does not show that a shard is damaged.
            # On damaged content the parser may raise anything; the shard is rebuilt.
    return found


def taken(config: Config, clips: Iterable[Clip], unlisted: Iterable[Problem]) -> str:
    """A message on content of the run's shards that is no longer in the corpus; empty if there is none.

    Args:
        clips, unlisted: the result of :func:`mer_dist.corpus.clips`.

    Raises:
        UserError: most clips, labels, or parts of one modality would go, without ``shard.remove``; with the
            reason, as far as it is known, and the probable intention.
    """
    before, now = stored(Run(config.run.folder).shards), {clip.name: clip for clip in clips}
    lost = _lost(config, before, now)
    names = sorted({name for gone, _ in lost.values() for name in gone})
    if not names:
        return ""
    counts = [f"{len(gone):,} of {of:,} {what}" for what, (gone, of) in lost.items() if gone]
    some = ", ".join(names[:SHOWN]) + _why(unlisted, set(names))
    message = (
        f"{', '.join(counts)} in the shards of {config.run.folder} are no longer in "
        f"{config.corpus.path}, which offers {len(now):,} clips (for example {some})"
    )
    if any(2 * len(gone) > of for gone, of in lost.values()) and not config.shard.remove:
        raise UserError(f"{message}. {MEANT}")
    return message


def _lost(
    config: Config, before: dict[str, Stored], now: dict[str, Clip]
) -> dict[str, tuple[list[str], int]]:
    """Lost part -> the clips that lose it, and how many clips in the shards have it."""
    pictures = config.shard.faces == "openface"
    # A clip without any part no longer counts, unless faces come from OpenFace: it may have face pictures.
    there = {name for name, clip in now.items() if pictures or any(map(clip.names, Modality))}
    labeled = [name for name, clip in before.items() if clip.label is not None]
    lost = {
        "clips": (sorted(before.keys() - there), len(before)),
        "labels": ([name for name in labeled if name not in there or now[name].label is None], len(labeled)),
    }
    for modality, word in WORDS.items():
        having = [name for name, clip in before.items() if modality in clip.parts and name in there]
        kept = pictures and modality == Modality.VIDEO
        lost[word] = ([name for name in having if not (kept or now[name].names(modality))], len(having))
    return lost


def _why(unlisted: Iterable[Problem], names: set[str]) -> str:
    """Why the listing rejects these clips, by count."""
    found = quarantine.kinds(problem for problem in unlisted if problem.name in names)
    return "".join(f"; {kind}" for kind in found[:SHOWN])
