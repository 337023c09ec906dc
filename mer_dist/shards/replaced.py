"""What a corpus would take away from a run that has shards, known before anything is replaced."""

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
    """What the shards have of a clip."""

    label: str | None
    parts: frozenset[str]


def stored(shards_folder: Path) -> dict[str, Stored]:
    """Every clip in the shards that are there, by name; also in those of an older version."""
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
                raise  # A disk that fails for a moment says nothing of what is there.
            # On damaged content the parser may raise anything at all; the shard is made again.
    return found


def taken(config: Config, clips: Iterable[Clip], unlisted: Iterable[Problem]) -> str:
    """What of the run's shards is not in the corpus any more; empty if all of it is.

    Args:
        clips, unlisted: what :func:`mer_dist.corpus.clips` tells.

    Raises:
        UserError: it is most of the clips, of the labels, or of one modality, and that was not asked for;
            with why, as far as it is known, and what was probably meant.
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
    """What -> the clips that lose it, and how many of the shards have it."""
    pictures = config.shard.faces == "openface"
    # One that names nothing any more can be none of the run's; with pictures of faces it may have those.
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
    """What the listing has against these clips, by count."""
    found = quarantine.kinds(problem for problem in unlisted if problem.name in names)
    return "".join(f"; {kind}" for kind in found[:SHOWN])
