"""Clips that imported features show to be one recording under several names, and sets that are one set."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.core.records import Modality
from mer_dist.corpus import twins
from mer_dist.corpus.twins import MOST
from mer_dist.features import store
from mer_dist.features.moments import robust
from mer_dist.storage.files import write_json
from mer_dist.storage.run_folder import FeatureFolder, Run

#: Random directions on which embeddings are compared, and the distance on each, in standard deviations, within which
#: they are of one recording that was rounded or coded anew.
DIRECTIONS, NEAR = 8, 0.01
#: Standard deviations beyond which a value counts by its logarithm.
USUAL = 5.0
#: Pairs that may be so near by chance in a set; where more are expected, as among three numbers a clip, none counts.
BY_CHANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class _Set:
    name: str
    modality: str
    #: Clip -> hash of its embedding.
    hashes: dict[str, str]
    #: (N, directions): the embeddings of ``hashes``, in its order, on a few random directions.
    projected: np.ndarray

    @classmethod
    def read(cls, run: Run, name: str, modality: str) -> _Set:
        hashes: dict[str, str] = {}
        parts: list[np.ndarray] = []
        usual: tuple[np.ndarray, np.ndarray] | None = None
        for path in FeatureFolder(run.features(name)).shards():
            shard = store.StoredShard.open(path, frames=False)
            embeddings = shard.utterance
            for clip, embedding in zip(shard.names, embeddings, strict=True):
                hashes[clip] = hashlib.sha256(embedding.data).hexdigest()
            if not len(embeddings):
                continue
            center, scale = usual = usual or robust(embeddings)
            directions = np.random.default_rng(0).normal(size=(len(scale), DIRECTIONS))
            parts.append(_drawn_in((embeddings - center) / scale) @ directions)
        projected = np.concatenate(parts) if parts else np.zeros((0, DIRECTIONS))
        return cls(name=name, modality=modality, hashes=hashes, projected=projected)

    def near(self) -> set[tuple[str, str]]:
        """Pairs of clips whose embeddings are nearly, but not quite, equal; sorted names."""
        first: dict[str, int] = {}
        for row, content in enumerate(self.hashes.values()):
            first.setdefault(content, row)
        if len(first) < 2 * DIRECTIONS:
            return set()
        rows = np.array([*first.values()])
        points = self.projected[rows]
        points = (points - points.mean(0)) / points.std(0)
        variances = np.maximum(np.linalg.eigvalsh(np.cov(points.T)), 1e-12)
        # The density of the difference of two normal clips at 0, times the width of the interval.
        chance = np.minimum(2 * NEAR / np.sqrt(4 * np.pi * variances), 1).prod()
        if chance * len(points) ** 2 / 2 > BY_CHANCE:
            return set()
        from scipy.spatial import cKDTree

        pairs = cKDTree(points).query_pairs(NEAR, p=np.inf, output_type="ndarray")
        names = [*self.hashes]
        return {(min(pair), max(pair)) for pair in ((names[a], names[b]) for a, b in rows[pairs])}


def _drawn_in(values: np.ndarray) -> np.ndarray:
    """Standardised values, by their logarithm beyond :data:`USUAL`: beside codes for missing values, as -999, the others
    would not count, and clips with the same codes would be one recording. Values that differ still do."""
    return np.clip(values, -USUAL, USUAL) + np.sign(values) * np.log(np.maximum(np.abs(values) / USUAL, 1))


def note(run: Run) -> list[list[str]]:
    """Write down the clips whose embeddings equal those of another clip, or nearly, in every imported set of sound
    and video. Equal text alone says nothing: two people may say the same.

    Returns:
        Their names, group by group. They share a fold.
    """
    sets = _imported(run)
    heard = [own for own in sets if own.modality != Modality.TEXT]
    of_clip: dict[str, list[str]] = {}
    for own in heard:
        for name, content in own.hashes.items():
            of_clip.setdefault(name, []).append(f"{own.name} {content}")
    same: dict[tuple[str, ...], list[str]] = {}
    for name, embeddings in of_clip.items():
        same.setdefault(tuple(embeddings), []).append(name)
    equal = [names for names in same.values() if 1 < len(names) <= MOST]
    groups = [group for group in twins.together([*equal, *_near_in_all(heard)]) if len(group) <= MOST]
    if groups:
        write_json(run.twins, groups)
        logger.warning(
            "%d clips have the very features of another clip, or nearly, in every set of sound and video, as %s: they "
            "count as one recording and share a fold",
            sum(map(len, groups)),
            " and ".join(groups[0]),
        )
    else:
        run.twins.unlink(missing_ok=True)
    _doubt(heard)
    _tell_text(
        [own for own in sets if own.modality == Modality.TEXT], {name for own in groups for name in own}
    )
    _tell_same_sets(sets)
    return groups


def _imported(run: Run) -> list[_Set]:
    found = []
    for folder in run.feature_sets():
        try:
            facts = store.description(folder)
            if facts.get("imported"):
                found.append(_Set.read(run, folder.name, facts["modality"]))
        except UserError as error:
            logger.warning("not compared with the other sets: %s", error)
    return found


def _near_in_all(sets: list[_Set]) -> list[tuple[str, str]]:
    """Pairs that are near, or equal, in every set that has both."""
    near = [own.near() for own in sets]
    return [
        (a, b)
        for a, b in sorted(set().union(*near))
        if all(
            (a, b) in pairs or own.hashes[a] == own.hashes[b]
            for own, pairs in zip(sets, near, strict=True)
            if a in own.hashes and b in own.hashes
        )
    ]


def _doubt(sets: list[_Set]) -> None:
    """Report embeddings that many clips share."""
    for own in sets:
        for content, count in Counter(own.hashes.values()).items():
            if count > MOST:
                names = sorted(name for name, other in own.hashes.items() if other == content)
                logger.warning(
                    "features %s: %d clips, as %s, have one and the same embedding: what the encoder gives for silence "
                    "or a black picture, or a number that stands for a missing value? Leave those clips out of its "
                    "folder, and they are masked",
                    own.name,
                    count,
                    ", ".join(names[:3]),
                )


def _tell_text(sets: list[_Set], known: set[str]) -> None:
    """Report clips that share their text, which may be one recording where no other set could tell."""
    for own in sets:
        count = Counter(own.hashes.values())
        sharing = sorted(
            name for name, content in own.hashes.items() if count[content] > 1 and name not in known
        )
        if sharing:
            other = next(name for name in sharing[1:] if own.hashes[name] == own.hashes[sharing[0]])
            logger.warning(
                "features %s: %d of %d clips have the text of another clip, as %s and %s, and may be in other folds; if "
                "they are one recording, out-of-fold scores are too good: name their groups with folds.group",
                own.name,
                len(sharing),
                len(own.hashes),
                sharing[0],
                other,
            )


def _tell_same_sets(sets: list[_Set]) -> None:
    for one, other in combinations(sets, 2):
        both = one.hashes.keys() & other.hashes.keys()
        equal = sum(one.hashes[name] == other.hashes[name] for name in both)
        if 2 * equal > len(both):
            logger.warning(
                "features %s (%s) and %s (%s) are the same for %d of %d clips: was one folder imported twice?",
                one.name,
                one.modality,
                other.name,
                other.modality,
                equal,
                len(both),
            )
