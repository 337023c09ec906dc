"""The clips that the page shows, with what the models and outside labellers say of them and what is stored of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_dist.config.config import Config
from mer_dist.config.sections import ReportConfig
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.features import join, store
from mer_dist.fusion import teachers
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.teachers import Teacher
from mer_dist.report import clip_choice, clip_media
from mer_dist.report.clip_choice import Judged
from mer_dist.report.run_data import Corpus, ShownClips
from mer_dist.report.run_files import RunFiles
from mer_dist.storage.files import read_json
from mer_dist.storage.run_folder import ALL_SETS, STACKED, FeatureFolder

Tables = list[tuple[Path, Predictions]]


def collect_clips(
    files: RunFiles,
    config: Config | None,
    settings: ReportConfig,
    tables: Tables,
    truth: dict[str, str],
    corpus: Corpus | None,
) -> ShownClips | None:
    """None before the first round of fusion, and where ``report.clips`` is 0.

    Args:
        truth: labelled clip -> label.
        corpus: None if there are no shards.
    """
    row = _answering(files, tables)
    if row is None or not settings.clips:
        return None
    index = {label: number for number, label in enumerate(row.labels)}
    known = (
        index.get(truth.get(name, ""), -1) if own else -1
        for name, own in zip(row.names, row.labeled.tolist(), strict=True)
    )
    shard_of = corpus.shard_of if corpus else {}
    stored = np.fromiter((name in shard_of for name in row.names), bool, len(row.names))
    judged = Judged(
        row=row,
        truth=np.fromiter(known, int, len(row.names)),
        # Of imported features nothing is stored, and what the models say is shown alone.
        stored=stored if stored.any() else ~stored,
        by_modality=_by_modality(files, config, tables, row),
        teachers=_teachers(files, row),
    )
    groups = clip_choice.choose(judged, settings.clips)
    shown = ShownClips(title=row.title, labels=row.labels, groups=groups)
    if settings.sound == "link":
        shown.sound_folder = files.run.relative(files.run.report_sound)
    clips = shown.all()
    found = clip_media.read(files, shard_of, (clip.name for clip in clips), settings.sound)
    for clip in clips:
        clip.media = found.get(clip.name)
        missing = clip.media.missing if clip.media else []
        clip.by_modality |= dict.fromkeys(clip.by_modality.keys() & {*missing})
    return shown


def _answering(files: RunFiles, tables: Tables) -> Predictions | None:
    """The row of the result table that answers, or the last round of fusion so far."""
    run = files.run
    said = files.read(run.vote.prior, lambda path: read_json(path).get("answered_by_row", {}).get("title"))
    for path, table in reversed(tables):
        if table.title == said if said else path.parent != run.linear_probes.folder:
            return table
    return None


def _by_modality(
    files: RunFiles, config: Config | None, tables: Tables, row: Predictions
) -> dict[str, np.ndarray]:
    """Modality -> (N, C): the mean over the linear probes of its fused feature sets."""
    fused = files.read(files.run.config, lambda _: join.fused_sets(config)) if config else None
    found: dict[str, list[np.ndarray]] = {}
    for path, table in tables:
        name = path.stem
        if path.parent != files.run.linear_probes.folder or name in (ALL_SETS, STACKED):
            continue
        # A stale one may be of other clips.
        if (fused and name not in fused) or table.names != row.names or table.labels != row.labels:
            continue
        folder = FeatureFolder(files.run.features(FeatureSetId.parse(name).stored_of(None)))
        said = files.read(folder.description, lambda path: store.description(path.parent)["modality"])
        found.setdefault(said or name, []).append(table.probability)
    return {modality: np.mean(own, axis=0) for modality, own in sorted(found.items())}


def _teachers(files: RunFiles, row: Predictions) -> list[Teacher]:
    def read(name: str) -> Teacher | None:
        path = files.run.teacher(name)
        return files.read(path, lambda _: teachers.answers(files.run, name, row.labels, row.names))

    return [one for name in files.run.teachers() if (one := read(name)) is not None]
