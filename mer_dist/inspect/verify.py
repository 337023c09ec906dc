"""Consistency of a run: every input clip is in every finished stage, or in quarantine with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mer_dist import corpus
from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core.errors import UserError, reading
from mer_dist.core.feature_set_id import FeatureSetId, adapter_variant
from mer_dist.core.log import logger
from mer_dist.core.records import UNLABELED, Modality, Problem
from mer_dist.crossfit import adapters, folds
from mer_dist.features import join, store
from mer_dist.fusion import predictions, recipes
from mer_dist.shards import shard_index, views
from mer_dist.shards.reader import Reader
from mer_dist.shards.settings import check_settings
from mer_dist.shards.shard_index import Index, Row
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run, ShardFolder

SHOWN = 5


def verify(run_folder: Path) -> list[str]:
    """One line per finding; empty if the run is consistent. Counts of each stage are logged.

    Raises:
        UserError: the folder has no run.
    """
    run = Run(run_folder)
    if not run.config.exists():
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}")
    config = configuration.of_run(run)
    state = _State(run=run, config=config)
    checks = [_features, _predictions, _stale, _answer]
    if state.sharded:
        checks = [_corpus, _shards, _adapters, *checks]
    else:
        logger.info("shards: none; the clips are those of %s", state.config.fuse.labels)
    for check in checks:
        try:
            check(state)
        except UserError as error:
            state.findings.append(str(error))
    if strays := [run.relative(path) for path in run.strays()]:
        logger.warning(
            "%d files or folders in the run folder do not belong to the run and are not read; if a program that "
            "synchronises folders left them as copies, delete them: %s%s",
            len(strays),
            ", ".join(strays[:SHOWN]),
            ", …" * (len(strays) > SHOWN),
        )
    return list(dict.fromkeys(state.findings))


class _Stored(NamedTuple):
    """A clip in the index; of a million of them, all fields of the index would be too many objects."""

    split: str
    label: str | None
    transcript: str | None
    missing: list[str]


@dataclass(kw_only=True)
class _State:
    run: Run
    config: Config
    findings: list[str] = field(default_factory=list)
    #: Unlabelled clips of the corpus, whether or not a stage lost them; with a label file, that is the
    #: corpus.
    unlabeled: set[str] = field(default_factory=set)

    @property
    def sharded(self) -> bool:
        """Whether the clips come from shards, and not from a label file alone."""
        return not self.config.fuse.labels or self.run.shards.exists()

    @cached_property
    def answered(self) -> bool:
        """Whether there are predictions, which need features."""
        return self.run.answer.exists() or bool(predictions.all_of(self.run))

    @cached_property
    def index(self) -> Index:
        return shard_index.read(self.run.shards)

    @cached_property
    def rows(self) -> dict[str, _Stored]:
        """Clip -> what the index has of it."""
        names = self.index.names
        self.find([name for name, times in Counter(names).items() if times > 1], "occur twice in the index")
        columns = (self.index.column(name) for name in _Stored._fields)
        return dict(zip(names, map(_Stored, *columns), strict=True))

    @cached_property
    def problems(self) -> list[Problem]:
        return quarantine.read(self.run.quarantine)

    @cached_property
    def gone(self) -> set[str]:
        """Clips that are completely left out, with a reason."""
        return {row.name for row in self.problems if row.lost == "clip" and row.reason}

    @cached_property
    def folds(self) -> dict[str, int]:
        if not self.run.folds.exists():
            return {}
        return folds.read(self.run.folds)

    @cached_property
    def labels(self) -> dict[str, str | None]:
        """name -> label, or None, of the clips that are fused."""
        return join.labels_of(self.config, self.run)[0]

    def find(self, names: Iterable[str], what: str) -> None:
        """Add one finding about all ``names``, if there are any."""
        names = sorted(names)
        if names:
            more = ", …" if len(names) > SHOWN else ""
            self.findings.append(f"{len(names)} clips {what}: {', '.join(names[:SHOWN])}{more}")


def _faceless(state: _State) -> list[str]:
    """The clips whose video is masked because no face of them is known."""
    path = ShardFolder(state.run.shards).stats
    with reading(path, "run shard"):
        remark = files.read_json(path)["remarks"].get(shard_index.FACELESS)
        return [str(name) for name in remark["names"]] if remark else []


def _corpus(state: _State) -> None:
    """Every clip of the corpus is in the shards, unchanged, or in quarantine."""
    clips, unlisted = corpus.clips(state.config.corpus)
    if not state.config.fuse.labels:
        state.unlabeled = {clip.name for clip in clips if clip.split == UNLABELED}
    rows, offered = state.rows, {clip.name: clip for clip in clips}
    noted = {(problem.name, problem.lost) for problem in state.problems}
    if state.config.shard.faceless == "mask":
        noted |= {(name, str(Modality.VIDEO)) for name in _faceless(state)}
    state.find(
        offered.keys() - rows.keys() - state.gone, "of the corpus are neither in the shards nor in quarantine"
    )
    state.find(rows.keys() - offered.keys(), "of the shards are no longer in the corpus; run shard")
    both = rows.keys() & offered.keys()
    for part in ("label", "transcript", "split"):
        changed = [name for name in both if getattr(rows[name], part) != getattr(offered[name], part)]
        state.find(changed, f"have another {part} in the corpus than in the shards; run shard")
    state.find(
        {problem.name for problem in unlisted if (problem.name, problem.lost) not in noted} - state.gone,
        "could not be listed and are not in quarantine; run shard",
    )
    for modality in Modality:
        # A part that the corpus does not list is absent on purpose.
        state.find(
            [
                name
                for name in both
                if modality in rows[name].missing
                and offered[name].names(modality)
                and (name, modality) not in noted
            ],
            f"lack their {modality} without a reason in quarantine",
        )
    state.find(
        {problem.name for problem in state.problems if not problem.reason.strip()},
        "are in quarantine without a reason",
    )
    logger.info(
        "corpus: %d clips (%s), of %d of which nothing could be stored; %d entries are no clips",
        len(clips),
        _counts(clip.split for clip in clips),
        len(offered.keys() - rows.keys()),
        len({problem.name for problem in unlisted if problem.lost == "clip"}),
    )
    lost = Counter(problem.lost for problem in state.problems)
    logger.info("quarantine: %d rows (%s)", lost.total(), _counts(lost.elements()))


def _counts(of: Iterable[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(Counter(of).items())) or "none"


def _shards(state: _State) -> None:
    """Every row of the index is in its tar, byte for byte, and matches its content."""
    folder = state.run.shards
    if files.read_marker(folder) is None:
        state.findings.append(f"{folder}: the shards are not complete; run shard")
    try:
        check_settings(state.config)
    except UserError as error:
        state.findings.append(str(error))
    facts = shard_index.all_records(folder)
    beside_tar: dict[str, tuple[str, str | None]] = {}
    numbers = sorted({*state.index.column("shard")})
    for number in numbers:
        tar, beside = ShardFolder(folder).tar(number), ShardFolder(folder).record(number)
        size = tar.stat().st_size if tar.exists() else 0
        record = facts.get(number)
        if record is None:
            state.findings.append(f"{beside}: missing or not readable; run shard")
        elif size != record.bytes:
            state.findings.append(f"{tar}: {size} bytes, not {record.bytes}; run shard")
        else:
            try:
                beside_tar |= shard_index.read_labels(beside)
            except UserError as error:
                state.findings.append(str(error))
    reader = Reader(folder)
    damaged, different = [], []
    for row in state.index:
        try:
            members = reader.members(row)
        except UserError as error:
            state.findings.append(str(error))
            continue
        if shard_index.checksum(members.items()) != row.checksum:
            damaged.append(f"{row.name} in {row.shard:05d}.tar")
        elif not _agrees(row, members):
            different.append(row.name)
    reader.close()
    state.find(damaged, "differ from their checksum; delete their shards and run shard")
    state.find(different, "have another description in the index than in the tar")
    relabeled = [
        name for name, row in state.rows.items() if beside_tar.get(name) not in (None, (row.split, row.label))
    ]
    state.find(relabeled, "have another label or split in the index than beside their tar; run shard")
    logger.info(
        "shards: %d clips (%s) in %d shards",
        len(state.index),
        _counts(state.index.column("split")),
        len(numbers),
    )


def _agrees(row: Row, members: dict[str, bytes]) -> bool:
    try:
        described = dict(json.loads(members.get("json", b"{}")))
    except (ValueError, TypeError):
        return False
    same = all(
        described.get(part) == getattr(row, part)
        for part in ("name", "transcript", "missing", "frames", "samples")
    )
    frames = views.pictures(views.of_view(members, views.FACE))
    return same and frames == row.frames and ("flac" in members) == (row.samples > 0)


def _adapters(state: _State) -> None:
    """Every adapter is the one that belongs in its folder, byte for byte."""
    labeled = {name for name, row in state.rows.items() if row.label is not None}
    if not state.run.adapters() or (adapters.crossed(state.config) and not labeled <= state.folds.keys()):
        return  # The check of predictions reports clips without a fold.
    planned = adapters.planned(state.config, state.folds)
    there = {adapter.name for adapter in planned if adapter.folder.exists()}
    for adapter in planned:
        marker = files.read_marker(adapter.folder)
        if marker is None and adapter.name in there:
            state.findings.append(f"{adapter.folder}: this adapter is missing or incomplete; run finetune")
        if marker is None:
            continue
        if marker.get("held_out_fold") != adapter.held_out_fold:
            other = adapter_variant(marker.get("held_out_fold"))
            state.findings.append(
                f"{adapter.folder}: by its marker this is {other}, not {adapter.variant}; delete it "
                "and run finetune and extract"
            )
        elif Path(adapter.extractor.path).exists() and marker["fingerprint"] != adapter.fingerprint:
            state.findings.append(
                f"{adapter.folder}: trained with other settings, another model or other clips "
                "than those of this run; run finetune and extract"
            )
        state.findings += [
            f"{adapter.folder}: {fault}; delete this folder and run finetune"
            for fault in files.damaged(adapter.folder, marker.get("content", {}))
        ]
    logger.info("adapters: %d of %d", sum(adapter.folder.exists() for adapter in planned), len(planned))


def _features(state: _State) -> None:
    """Every clip that a feature set must contain has a row in it, or a reason why not."""
    folders = state.run.feature_sets()
    needed = _expected_sets(state.config) if folders or state.answered else set()
    if state.answered:
        for name in join.fused_sets(state.config):
            needed.update(FeatureSetId.parse(name).stored(state.config.folds.count))
    there = {folder.name for folder in folders}
    for absent in sorted((own for own in needed if str(own) not in there), key=str):
        how = "extract" if absent.name in state.config.extractors else "import-features"
        state.findings.append(f"features {absent}: there are none; run {how}")
    for folder in folders:
        try:
            description = store.description(folder)
            if description.get("imported") or not state.sharded:
                _imported_set(state, folder)
            else:
                _feature_set(state, folder, description)
        except UserError as error:
            state.findings.append(str(error))


def _imported_set(state: _State, folder: Path) -> None:
    """Readable and complete; only its author knows which clips it must contain."""
    join.set_fingerprint(state.run, folder.name, state.config.folds.count)
    names = store.load(folder).names
    fused = state.labels.keys()
    logger.info(
        "features %s: imported, %d of %d fused clips have a row",
        folder.name,
        len(fused & set(names)),
        len(fused),
    )


def _expected_sets(config: Config) -> set[FeatureSetId]:
    """The feature sets that the configuration needs."""
    names = set()
    for name, extractor in config.extractors.items():
        if extractor.finetune is None or config.extract.frozen:
            names.add(FeatureSetId(name))
        if extractor.finetune is not None:
            names |= {FeatureSetId.of_adapter(name, fold) for fold in adapters.held_out_folds(config, name)}
    return names


def _feature_set(state: _State, folder: Path, description: dict) -> None:
    own = FeatureSetId.parse(folder.name)
    meant = {"variant": own.variant, "held_out_fold": own.held_out_fold}
    if own.variant and any(description.get(key) != value for key, value in meant.items()):
        state.findings.append(
            f"{folder}: by its {FeatureFolder(folder).description.name} this is {description.get('variant')!r}, "
            f"trained without fold {description.get('held_out_fold')}; delete it, run extract"
        )
    names: Counter[str] = Counter()
    missing: dict[str, str] = {}
    modality = ""
    for path in FeatureFolder(folder).shards():
        clips, why, modality, fault = _feature_file(path)
        if fault:
            state.findings.append(f"{path}: {fault}; delete it and run extract")
        names.update(clips)
        missing.update(why)
    what = f"features {folder.name}:"
    served = _served(state, own)
    state.find(
        served - names.keys() - missing.keys() - state.gone,
        f"{what} have neither a row nor a reason; run extract",
    )
    state.find([name for name, times in names.items() if times > 1], f"{what} have several rows")
    state.find(names.keys() & missing.keys(), f"{what} have a row although they are listed as missing")
    state.find([name for name, why in missing.items() if not why], f"{what} are missing without a reason")
    state.find((names.keys() | missing.keys()) - state.rows.keys(), f"{what} are not in the shards")
    without_modality = {name for name, row in state.rows.items() if modality in row.missing}
    state.find(names.keys() & without_modality, f"{what} have a row although they lack the {modality}")
    logger.info(
        "features %s: %d of %d clips have a row, %d are missing with a reason",
        folder.name,
        len(served & names.keys()),
        len(served),
        len(served & missing.keys()),
    )


def _feature_file(path: Path) -> tuple[list[str], dict[str, str], str, str]:
    """Names, reasons of the missing, modality, and a fault; frame embeddings are not loaded."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = store.stored_header(file)
            names, missing = header["names"], header["missing"]
            embeddings = file.get_tensor("utterance")
            fault = ""
            if len(embeddings) != len(names):
                fault = f"{len(embeddings)} embeddings for {len(names)} clips"
            elif not np.isfinite(embeddings.astype(np.float32)).all():
                fault = "it has values that are not finite"
            elif "frame" in file.keys():
                offsets, frames = file.get_tensor("offsets"), file.get_slice("frame").get_shape()[0]
                if [len(offsets), offsets[0], offsets[-1]] != [len(names) + 1, 0, frames]:
                    fault = "its offsets do not match its frames"
                elif (np.diff(offsets) < 1).any():
                    fault = "it has clips without frames"
            return names, missing, header["modality"], fault
    except Exception as error:  # On damaged content the parser may raise anything.
        return [], {}, "", f"not readable ({type(error).__name__}: {' '.join(str(error).split())})"


def _served(state: _State, own: FeatureSetId) -> set[str]:
    """The clips that a set must contain: all, those of one fold, or the unlabelled ones."""
    if own.held_out_fold is not None:
        if not state.folds:
            raise UserError(f"{state.run.folds}: no such file, but features {own} need it")
        return {name for name, fold in state.folds.items() if fold == own.held_out_fold}
    return {name for name, row in state.rows.items() if not own.is_of_all or row.label is None}


def _predictions(state: _State) -> None:
    """Every clip that is fused has exactly one row in every file of predictions."""
    paths = predictions.all_of(state.run)
    if not paths:
        return
    labelled = {name for name, label in state.labels.items() if label is not None}
    if not state.folds:
        state.findings.append(f"{state.run.folds}: no such file, but there are predictions")
    else:
        state.find(state.folds.keys() ^ labelled, "are labelled without a fold, or the reverse")
    for path in paths:
        what = f"predictions {state.run.relative(path)}:"
        try:
            found = predictions.read(path)
        except UserError as error:
            state.findings.append(str(error))
            continue
        _prediction_file(state, what, found)


def _prediction_file(state: _State, what: str, found: predictions.Predictions) -> None:
    labels, names = state.labels, Counter(found.names)
    state.find(labels.keys() - names.keys(), f"{what} have no row")
    state.find(names.keys() - labels.keys(), f"{what} are not among the fused clips")
    state.find([name for name, times in names.items() if times > 1], f"{what} have several rows")
    rows = list(zip(found.names, found.labeled.tolist(), found.fold.tolist(), strict=True))
    state.find(
        {name for name, labeled, _ in rows if labeled != (labels.get(name) is not None)},
        f"{what} are in the wrong split",
    )
    state.find(
        {name for name, labeled, fold in rows if labeled and state.folds.get(name) != fold},
        f"{what} were predicted for another fold than their own",
    )
    if not np.allclose(found.probability.sum(1), 1, atol=1e-3):
        state.findings.append(f"{what} probabilities do not sum to 1")
    logger.info("%s %d labelled, %d unlabelled", what, found.labeled.sum(), (~found.labeled).sum())


def _stale(state: _State) -> None:
    """No part of fusion is older than its inputs."""
    found = recipes.stale(state.config, state.run)
    state.findings += map(str, found)
    if not found and state.answered:
        logger.info("linear probes, rounds and vote: up to date with labels, features and settings")


def _answer(state: _State) -> None:
    """The answer has every unlabelled clip, or each of ``vote.names``, with a valid label."""
    from mer_dist.corpus import table

    if not state.run.answer.exists():
        if state.run.vote.predictions.exists():
            state.findings.append(f"{state.run.answer}: no such file, but a vote; run fuse")
        else:
            logger.info("answer: there is none yet; run fuse")
        return
    answers = table.read(state.run.answer, ("name", "discrete"))
    unlabeled = state.unlabeled | {name for name, label in state.labels.items() if label is None}
    wanted = join.asked(state.config, state.run)
    asked = unlabeled if wanted is None else unlabeled & set(wanted)
    if state.config.vote.names:
        asked = set(table.read(Path(state.config.vote.names), ("name",)).rows)
        logger.info(
            "answer: vote.names leaves out %d of %d unlabelled clips", len(unlabeled - asked), len(unlabeled)
        )
    state.find(asked - answers.rows.keys(), "of the unlabelled have no answer; run shard and fuse")
    state.find(answers.rows.keys() - asked, "of the answer are not among the unlabelled")
    state.find(
        [name for name, row in answers.rows.items() if row["discrete"] not in state.config.corpus.labels],
        "of the answer have a label outside corpus.labels",
    )
    state.findings += [f"{state.run.answer}: {why}" for why in answers.bad.values()]
    voted = state.run.vote.answer
    if voted.exists() and voted.read_bytes() != state.run.answer.read_bytes():
        how = predictions.edited(state.run) or "in its bytes"
        state.findings.append(f"{state.run.answer}: differs from the vote's answer, {voted}: {how}; run fuse")
    logger.info("answer: %d of %d unlabelled clips", len(asked & answers.rows.keys()), len(asked))
