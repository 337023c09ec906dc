"""New clips through what a run learned, part by part: ranks take parts, and each finished part is one file.

Nothing of a clip is kept but its prediction: clips are decoded, extracted and answered in memory, some hundred at a
time. A part's file is complete and has the right fingerprint, or the part is computed; so a job that was killed goes
on, on any number of processes.
"""

from __future__ import annotations

import csv
import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.core.errors import DONE, QUARANTINED, Stopped, UserError, reading
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Clip, Problem
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.new_prior import correct
from mer_dist.fusion.trained import VOTE
from mer_dist.predict import bundle, clips
from mer_dist.predict.model import TrainedModel
from mer_dist.predict.predictor import STAGE, Prediction, Predictor
from mer_dist.processes.balance import balanced
from mer_dist.processes.env import process_info
from mer_dist.processes.threads import torch_threads
from mer_dist.processes.together import alone_in, tell_missing
from mer_dist.storage import files, parquet, quarantine
from mer_dist.storage.run_folder import Run

#: Clips that are in memory at a time, decoded.
PART = 256
#: Raise it when the columns of a part change.
VERSION = 1
_RECORD = b"mer_dist.predict"
ANSWERS, ROWS = "predictions.csv", "predictions.parquet"
#: Column of a part, which is left out of the result.
_FIRST = "first"


def command(parsed: Namespace, should_stop: ShouldStop) -> int:
    """Predict as the command line says; the exit code is 3 if anything of a clip could not be used.

    Raises:
        UserError: the model, the clips or the features cannot be used.
    """
    if (parsed.clips is None) == (not parsed.features):
        raise UserError("predict needs either clips or --features, and not both")
    if Run(parsed.out).config.exists() or (parsed.out / bundle.NAME).exists():
        raise UserError(f"{parsed.out}: that is a run folder or a bundle; name another folder with --out")
    how = How(explain=parsed.explain, prior=parsed.prior)
    model = bundle.load(parsed.model, _pairs("--models", parsed.models), labeled=how.estimates)
    if how.estimates and model.fusion.answered_by != VOTE:
        raise UserError(
            f"--prior estimate: {model.fusion.answered_by} answers, and only the vote is corrected"
        )
    out = Run(parsed.out)
    with alone_in(out.lock, STAGE, [model.fingerprint, str(parsed.clips)]):
        files.remove_stale(out.folder)
        if parsed.features:
            predict_features(model, _pairs("--features", parsed.features), parsed.out, how)
        else:
            shard = _shard(model, parsed.openface, parsed.workers)
            found, problems = clips.find(parsed.clips, parsed.transcripts)
            predict(replace(model, shard=shard), found, problems, parsed.out, how, should_stop)
    return QUARANTINED if quarantine.tell(out.quarantine, STAGE) else DONE


def _pairs(option: str, words: list[str]) -> dict[str, Path]:
    pairs = [word.partition("=") for word in words]
    for name, equals, folder in pairs:
        if not (name and equals and folder):
            raise UserError(f"{option} takes NAME=FOLDER, and not {name}{equals}{folder}")
    return {name: Path(folder) for name, _, folder in pairs}


def _shard(model: TrainedModel, openface: Path | None, workers: int | None):
    """How clips are cut here."""
    shard = model.shard
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1")
    if openface is not None and shard.faces != "openface":
        raise UserError(f"--openface: the model learned from faces of shard.faces: {shard.faces}")
    if shard.faces == "openface":
        if openface is None:
            raise UserError(
                "the model learned from faces that OpenFace cut out; name those of the new clips with --openface FOLDER"
            )
        shard = replace(shard, openface=str(openface))
    return replace(shard, workers=workers or min(len(os.sched_getaffinity(0)), 4))


@dataclass(frozen=True, kw_only=True)
class How:
    """What is asked for beside the predictions."""

    #: What each feature set alone says, and gate weights.
    explain: bool = False
    #: ``none``, or ``estimate``: the class prior of the new clips, from all of them together.
    prior: str = "none"

    @property
    def estimates(self) -> bool:
        return self.prior == "estimate"


@dataclass(frozen=True)
class _Part:
    number: int
    clips: list[Clip]
    file: Path
    #: Of all that its predictions depend on.
    fingerprint: str

    def done(self) -> bool:
        try:
            return (
                json.loads(pq.read_metadata(self.file).metadata[_RECORD])["fingerprint"] == self.fingerprint
            )
        except Exception:  # On damaged content the parser may raise anything; the part is computed again.
            return False


def predict(
    model: TrainedModel,
    found: Sequence[Clip],
    problems: Sequence[Problem],
    out: Path,
    how: How | None = None,
    should_stop: ShouldStop = never,
) -> None:
    """Predict clips into ``predictions.csv`` and ``predictions.parquet``, alone or as one of many ranks.

    Args:
        problems: of listing the clips.

    Raises:
        UserError: a model cannot be loaded, or there is no clip.
        Stopped: ``should_stop`` was true; finished parts are kept.
    """
    if not found:
        first = f"; the first: {problems[0].name}: {problems[0].reason}" if problems else ""
        raise UserError(f"there is no clip to predict{first}")
    how = how or How()
    here, run = process_info(), Run(out)
    parts = _parts(model, found, out, how)
    sizes = {part.number: len(part.clips) for part in parts}
    mine = {*balanced(sizes, here.world)[here.rank]}
    missing = [part for part in parts if part.number in mine and not part.done()]
    if missing:
        with torch_threads(0 if _on_a_gpu() else 1):
            _compute(model, missing, how, should_stop)
    if left := [part.number for part in parts if not part.done()]:
        return tell_missing(run.lock, {"the prediction": (sizes, left)})
    _close(model, parts, problems, out, how, should_stop)


def _on_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parts(model: TrainedModel, found: Sequence[Clip], out: Path, how: How) -> list[_Part]:
    from mer_dist.corpus.convert import source

    settings = [VERSION, model.fingerprint, how.explain, how.prior, model.shard.faces, model.extract.storage]
    parts: list[_Part] = []
    queue = iter(found)
    while own := list(islice(queue, PART)):
        sources = [[clip.name, source(clip, model.shard)] for clip in own]
        fingerprint = files.fingerprint_of([*settings, sources])
        number = len(parts)
        parts.append(_Part(number, own, out / "parts" / f"{number:05d}.parquet", fingerprint))
    return parts


def _compute(model: TrainedModel, parts: list[_Part], how: How, should_stop: ShouldStop) -> None:
    """Predict the clips of these parts and write each part's file."""
    from mer_dist.corpus import convert

    # Workers start, and decode ahead, while the models are loaded.
    decoded = convert.in_workers(model.shard, (clip for part in parts for clip in part.clips))
    device = f"cuda:{process_info().local_rank}" if _on_a_gpu() else None
    predictor = Predictor(model, device)

    def each() -> Iterator[str]:
        for part in parts:
            encoded = []
            for one in islice(decoded, len(part.clips)):
                if should_stop():
                    raise Stopped(
                        f"asked to stop in part {part.number}; the next start goes on from what is finished"
                    )
                encoded.append(one)
                yield one.clip.name
            made, refused = predictor.encoded(encoded, how.explain, how.estimates)
            problems = [replace(row, stage=STAGE) for one in encoded for row in one.problems] + refused
            _write(part.file, made, problems, part.fingerprint)

    total = sum(len(part.clips) for part in parts)
    for _ in progress(each(), total, STAGE):
        pass


def predict_features(model: TrainedModel, folders: Mapping[str, Path], out: Path, how: How) -> None:
    """Predict clips from features that lie as ``.npy`` files in a folder per set.

    Raises:
        UserError: a set is none of the model's, or its files cannot be used.
    """
    from mer_dist.interop.npy import import_npy

    run = Run(out)
    of_model = {one.name: one for one in model.fusion.sets}
    if unknown := sorted(folders.keys() - of_model.keys()):
        raise UserError(f"--features {unknown[0]}=…: the model has the feature sets {', '.join(of_model)}")
    features: dict[str, FeatureSet] = {}
    for name, folder in folders.items():
        import_npy(run, name, of_model[name].modality, folder)
        features[name] = store.load(run.features(name), model.fusion.settings.level == "frame")
    for name in sorted(of_model.keys() - folders.keys()):
        logger.warning("feature set %s is not given, and missing for every clip", name)
    names = sorted({name for one in features.values() for name in one.names})
    made = Predictor(model, extract=False).features(features, names, how.explain, how.estimates)
    part = _Part(0, [], out / "parts" / "00000.parquet", files.fingerprint_of([model.fingerprint, names]))
    problems = [replace(row, stage=STAGE) for row in quarantine.read(run.quarantine, "import")]
    _write(part.file, made, problems, part.fingerprint)
    _close(model, [part], [], out, how)


def _write(path: Path, made: list[Prediction], problems: list[Problem], fingerprint: str) -> None:
    rows = [_row(one) for one in made]
    columns = {
        column: pa.array([row[column] for row in rows], kind) for column, kind in _kinds(rows[0]).items()
    }
    record = {"fingerprint": fingerprint, "problems": [problem.as_values() for problem in problems]}
    table = pa.table(columns).replace_schema_metadata(
        {_RECORD: json.dumps(record, ensure_ascii=False).encode()}
    )
    with files.atomic(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def _row(one: Prediction) -> dict[str, Any]:
    """A row of ``predictions.parquet``; every clip has the same columns."""
    row: dict[str, Any] = {
        "name": one.name,
        "label": one.label,
        "confidence": one.confidence,
        **{f"p_{label}": value for label, value in one.probability.items()},
        "missing": " ".join(one.missing),
    }
    for set_name, own in one.alone.items():
        label = max(own, key=lambda label: own[label], default=None)
        row |= {f"{set_name}_label": label, f"{set_name}_confidence": own[label] if label else None}
    row |= {f"gate_{modality}": weight for modality, weight in one.gates.items()}
    return row | ({_FIRST: one.first} if one.first else {})


def _kinds(row: dict[str, Any]) -> dict[str, pa.DataType]:
    texts = ("name", "label", "missing")
    return {
        column: pa.string()
        if column in texts or column.endswith("_label")
        else pa.list_(pa.float64())
        if column == _FIRST
        else pa.float64()
        for column in row
    }


def _close(
    model: TrainedModel,
    parts: list[_Part],
    problems: Sequence[Problem],
    out: Path,
    how: How,
    should_stop: ShouldStop = never,
) -> None:
    """Join the parts, write the quarantine, and say what was predicted."""
    tables, rows = [], list(problems)
    for part in parts:
        with reading(part.file, "delete it and predict again"):
            table = parquet.read(part.file)
            record = json.loads(table.schema.metadata[_RECORD])
            rows += [Problem(**problem) for problem in record["problems"]]
            tables.append(table.replace_schema_metadata(None))
    whole = pa.concat_tables(tables)
    if how.estimates:
        whole = _corrected(model, whole, should_stop)
    with files.atomic(out / ROWS) as temporary:
        pq.write_table(whole, temporary, write_page_checksum=True)
    with files.atomic(out / ANSWERS) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(whole.column_names)
        writer.writerows([_shown(value) for value in row.values()] for row in whole.to_pylist())
    for path in (out / "parts").glob("*.parquet"):
        if path not in {part.file for part in parts}:
            path.unlink()
    quarantine.replace(Run(out).quarantine, STAGE, rows)
    counts = whole["label"].value_counts().to_pylist()
    shares = ", ".join(
        f"{one['values']} {one['counts']}" for one in sorted(counts, key=lambda one: -one["counts"])
    )
    empty = sum(set(row.split()) >= {"audio", "video", "text"} for row in whole["missing"].to_pylist())
    logger.info("%d clips: %s; %s", len(whole), shares, out / ANSWERS)
    if empty:
        logger.warning(
            "%d clips have no usable modality; their answer is the most frequent label of training, and says nothing of "
            "them",
            empty,
        )


def _corrected(model: TrainedModel, whole: pa.Table, should_stop: ShouldStop) -> pa.Table:
    """The predictions, corrected for the class prior of all these clips where that is expected to pay."""
    fusion, labels = model.fusion, model.fusion.labels
    labeled = fusion.labeled
    assert labeled is not None, "it was loaded to estimate"
    probability = np.stack([whole[f"p_{label}"].to_numpy() for label in labels], 1)
    first = np.array(whole[_FIRST].to_pylist()).reshape(len(whole), -1, len(labels)).transpose(1, 0, 2)
    modalities = {one.modality for one in fusion.sets}
    present = np.array([modalities > {*text.split()} for text in whole["missing"].to_pylist()])
    found, answer, verdict = correct(labeled, probability, first, present, fusion.seed, should_stop)
    logger.info("prior correction %s: %s", "applied" if verdict.applied else "not applied", verdict.reason)
    new: dict[str, Any] = {f"p_{label}": found[:, number] for number, label in enumerate(labels)}
    new["label"] = [labels[row] for row in answer]
    new["confidence"] = found[np.arange(len(found)), answer]
    for column, values in new.items():
        whole = whole.set_column(whole.column_names.index(column), column, pa.array(values))
    return whole.drop_columns([_FIRST])


def _shown(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value
