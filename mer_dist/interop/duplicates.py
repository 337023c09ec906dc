"""Clips that imported features show to be one recording under several names."""

from __future__ import annotations

import hashlib

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
        facts = store.description(folder)
        if not facts.get("imported") or facts.get("modality") == Modality.TEXT:
            continue
        for path in FeatureFolder(folder).shards():
            shard = store.StoredShard.open(path, frames=False)
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
    for names in same.values():
        if len(names) > MOST:
            logger.warning(
                "%d clips, as %s, have one and the same embedding in every set of sound and video; is it what the "
                "encoder gives for silence?",
                len(names),
                ", ".join(sorted(names)[:3]),
            )
    return groups
