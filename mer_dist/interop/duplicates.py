"""Clips that imported features show to be one recording under several names."""

from __future__ import annotations

import hashlib

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import Modality
from mer_dist.features import store
from mer_dist.storage.files import write_json
from mer_dist.storage.run_folder import FeatureFolder, Run

#: Clips of one embedding beyond which it is what an encoder gives for nothing, as for silence.
MOST = 8


def note(run: Run) -> list[list[str]]:
    """Write down the clips whose embeddings equal those of another clip in every imported set of sound and video,
    bit for bit. Equal text alone says nothing: two people may say the same.

    Returns:
        Their names, group by group. They share a fold.
    """
    of_clip: dict[str, list[str]] = {}
    for folder in run.feature_sets():
        try:
            facts = store.description(folder)
            if not facts.get("imported") or facts.get("modality") == Modality.TEXT:
                continue
            shards = [store.StoredShard.open(path, frames=False) for path in FeatureFolder(folder).shards()]
        except UserError as error:
            logger.warning("not compared with the other sets: %s", error)
            continue
        for shard in shards:
            for name, embedding in zip(shard.names, shard.utterance, strict=True):
                of_clip.setdefault(name, []).append(
                    f"{folder.name} {hashlib.sha256(embedding.data).hexdigest()}"
                )
    same: dict[tuple[str, ...], list[str]] = {}
    for name, embeddings in of_clip.items():
        same.setdefault(tuple(embeddings), []).append(name)
    groups = sorted(sorted(names) for names in same.values() if 1 < len(names) <= MOST)
    if groups:
        write_json(run.twins, groups)
        logger.warning(
            "%d clips have the very features of another clip, in every set of sound and video, as %s: they count as "
            "one recording and share a fold",
            sum(map(len, groups)),
            " and ".join(groups[0]),
        )
    else:
        run.twins.unlink(missing_ok=True)
    _doubt(of_clip)
    return groups


def _doubt(of_clip: dict[str, list[str]]) -> None:
    """Report embeddings that many clips share."""
    sharing: dict[str, list[str]] = {}
    for name, embeddings in of_clip.items():
        for embedding in embeddings:
            sharing.setdefault(embedding, []).append(name)
    for embedding, names in sharing.items():
        if len(names) > MOST:
            logger.warning(
                "features %s: %d clips, as %s, have one and the same embedding: what the encoder gives for silence or "
                "a black picture, or a number that stands for a missing value? Leave those clips out of its folder, "
                "and they are masked",
                embedding.partition(" ")[0],
                len(names),
                ", ".join(sorted(names)[:3]),
            )
