"""New clips through what a run learned, part by part: ranks take parts, and each finished part is one file.

Nothing of a clip is kept but its prediction: clips are decoded, extracted and answered in memory, some hundred at a
time. A part's file is complete and has the right fingerprint, or the part is computed; so a job that was killed goes
on, on any number of processes.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer_dist.config.config import as_dict
from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import DONE, QUARANTINED, Stopped, UserError
from mer_dist.core.feature_set_id import NAME
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Clip, Problem
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion.new_prior import correct
from mer_dist.fusion.trained import VOTE
from mer_dist.predict import bundle, clips, output
from mer_dist.predict.model import TrainedModel
from mer_dist.predict.output import Part
from mer_dist.predict.predictor import STAGE, Predictor
from mer_dist.processes.balance import balanced
from mer_dist.processes.env import process_info
from mer_dist.processes.threads import torch_threads
from mer_dist.processes.together import alone_in, tell_missing
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

#: Clips that are in memory at a time, decoded.
PART = 256
#: Raise it when the columns of a part change.
VERSION = 2
#: Kinds of remarks that the log names.
SHOWN = 5


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


def check_out(out: Path) -> None:
    """
    Raises:
        UserError: predictions would be written into a run folder, a bundle or a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: that is a file; name a folder with --out")
    if Run(out).config.exists() or (out / bundle.NAME).exists():
        raise UserError(f"{out}: that is a run folder or a bundle; name another folder with --out")


def command(parsed: Namespace, should_stop: ShouldStop) -> int:
    """Predict as the command line says; the exit code is 3 if anything of a clip could not be used.

    Raises:
        UserError: the model, the clips or the features cannot be used.
    """
    if (parsed.clips is None) == (not parsed.features):
        raise UserError("predict needs either clips or --features, and not both")
    how = How(explain=parsed.explain, prior=parsed.prior)
    model = bundle.load(parsed.model, _pairs("--models", parsed.models), labeled=how.estimates)
    _check(model, how)
    run = Run(parsed.out)
    with alone_in(run.lock, STAGE, [model.fingerprint, str(parsed.clips)]):
        files.remove_stale(run.folder, parsed.out / "parts")
        if parsed.features:
            closed = predict_features(model, _pairs("--features", parsed.features), parsed.out, how)
        else:
            shard = model.cut(parsed.openface, parsed.workers)
            found, problems = clips.find(parsed.clips, parsed.transcripts, model.language)
            closed = predict(model, shard, found, problems, parsed.out, how, should_stop)
    return QUARANTINED if closed and quarantine.tell(run.quarantine, STAGE) else DONE


def _pairs(option: str, words: list[str]) -> dict[str, Path]:
    pairs = [word.partition("=") for word in words]
    for name, equals, folder in pairs:
        if not (name and equals and folder):
            raise UserError(f"{option} takes NAME=FOLDER, and not {name}{equals}{folder}")
    return {name: Path(folder) for name, _, folder in pairs}


def _check(model: TrainedModel, how: How) -> None:
    """
    Raises:
        UserError: the class prior is to be estimated, and the model's own answers would not be comparable.
    """
    if model.teachers:
        logger.warning(
            "outside labellers joined the vote of the run (%s); new clips are answered without them",
            ", ".join(model.teachers),
        )
    if how.estimates and model.teachers:
        raise UserError(
            "--prior estimate: the run's vote asked outside labellers, which new clips do not have; fuse with "
            "vote.teachers=[] to compare both"
        )
    if how.estimates and model.fusion.answered_by != VOTE:
        raise UserError(
            f"--prior estimate: {model.fusion.answered_by} answers, and only the vote is corrected"
        )


def _check_others(out: Path, names: set[str]) -> None:
    """
    Raises:
        UserError: there are predictions of other clips, which would be lost.
    """
    if others := sorted(output.names(out) - names):
        raise UserError(
            f"{out}: it has predictions of {len(others)} clips that are not among these, for example {others[0]}; name "
            "another folder with --out, or delete that one"
        )


@dataclass(frozen=True)
class _Work:
    """A part that is to be there."""

    number: int
    clips: list[Clip]
    file: Path
    #: Of all that its predictions depend on.
    fingerprint: str

    def done(self) -> bool:
        return output.is_done(self.file, self.fingerprint)


def predict(
    model: TrainedModel,
    shard: ShardConfig,
    found: Sequence[Clip],
    problems: Sequence[Problem],
    out: Path,
    how: How | None = None,
    should_stop: ShouldStop = never,
) -> bool:
    """Predict clips into ``predictions.csv`` and ``predictions.parquet``, alone or as one of many ranks.

    Args:
        shard: how they are cut, of ``model.cut``.
        problems: of listing the clips.

    Returns:
        Whether this rank found all parts there and wrote the result.

    Raises:
        UserError: a model cannot be loaded, or there is no clip.
        Stopped: ``should_stop`` was true; finished parts are kept.
    """
    if not found:
        first = f"; the first: {problems[0].name}: {problems[0].reason}" if problems else ""
        raise UserError(f"there is no clip to predict{first}")
    how, here = how or How(), process_info()
    _check_others(out, {clip.name for clip in found})
    works = _works(model, shard, found, out, how)
    sizes = {work.number: len(work.clips) for work in works}
    mine = {*balanced(sizes, here.world)[here.rank]}
    missing = [work for work in works if work.number in mine and not work.done()]
    if missing:
        _compute(model, shard, missing, how, should_stop)
    if left := [work.number for work in works if not work.done()]:
        tell_missing(Run(out).lock, {"the prediction": (sizes, left)})
        return False
    _close(model, [work.file for work in works], problems, out, how, should_stop)
    return True


def _works(
    model: TrainedModel, shard: ShardConfig, found: Sequence[Clip], out: Path, how: How
) -> list[_Work]:
    from mer_dist.corpus.convert import source

    cut = {key: value for key, value in as_dict(shard).items() if key not in ("workers", "openface")}
    extractors = [[one.set_name, as_dict(one.config), one.base] for one in model.extractors]
    settings = [VERSION, model.fingerprint, as_dict(how), cut, as_dict(model.extract), extractors]
    works: list[_Work] = []
    queue = iter(found)
    while own := list(islice(queue, PART)):
        sources = [[clip.name, source(clip, shard)] for clip in own]
        number = len(works)
        file = out / "parts" / f"{number:05d}.parquet"
        works.append(_Work(number, own, file, files.fingerprint_of([*settings, sources])))
    return works


def _compute(
    model: TrainedModel, shard: ShardConfig, works: list[_Work], how: How, should_stop: ShouldStop
) -> None:
    """Predict the clips of these parts and write each part's file."""
    import torch

    from mer_dist.corpus import convert

    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", process_info().local_rank)
        # Otherwise the libraries of every rank would put data on the first GPU.
        torch.cuda.set_device(device)
    with torch_threads(1) if device is None else nullcontext():
        predictor = Predictor(model, device, shard=shard)
        decoded = convert.in_workers(shard, (clip for work in works for clip in work.clips))

        def each() -> Iterator[str]:
            for work in works:
                encoded = []
                for one in islice(decoded, len(work.clips)):
                    if should_stop():
                        raise Stopped(
                            f"asked to stop in part {work.number}; the next start goes on from what is finished"
                        )
                    encoded.append(one)
                    yield one.clip.name
                made, refused, answers = predictor.encoded(encoded, how.explain, how.estimates)
                problems = [replace(row, stage=STAGE) for one in encoded for row in one.problems] + refused
                remarks = Counter(remark for one in encoded for remark in one.remarks)
                output.write_part(
                    work.file, Part(output.table(made, answers), problems, remarks), work.fingerprint
                )

        for _ in progress(each(), sum(len(work.clips) for work in works), STAGE):
            pass
        for one, extractor in predictor.extractors:
            if note := extractor.note():
                logger.warning("%s: %s", one.name, note)


def predict_features(model: TrainedModel, folders: Mapping[str, Path], out: Path, how: How) -> bool:
    """Predict clips from features that lie as ``.npy`` files in a folder per set.

    Returns:
        True: the result is written.

    Raises:
        UserError: a set is none of the model's, or its files cannot be used.
    """
    if process_info().world > 1:
        raise UserError("predict --features is the work of one process; start it without a launcher")
    of_model = {one.name: one for one in model.fusion.sets}
    if unknown := sorted(folders.keys() - of_model.keys()):
        raise UserError(f"--features {unknown[0]}=…: the model has the feature sets {', '.join(of_model)}")
    for name in sorted(of_model.keys() - folders.keys()):
        logger.warning("feature set %s is not given, and missing for every clip", name)
    features: dict[str, FeatureSet] = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".features-", dir=out) as folder:
        run = Run(folder)
        for name, source in folders.items():
            features[name] = _read(run, name, of_model[name].modality, source, model)
        problems = [replace(row, stage=STAGE) for row in quarantine.read(run.quarantine, "import")]
    names = sorted({name for one in features.values() for name in one.names} | {row.name for row in problems})
    _check_others(out, {*names})
    predictor = Predictor(model, extract=False)
    made, answers = predictor.features(features, names, how.explain, how.estimates)
    problems += predictor.unusable(features, names, answers)
    file = out / "parts" / "00000.parquet"
    output.write_part(file, Part(output.table(made, answers), problems), "")
    _close(model, [file], [], out, how)
    return True


def _read(run: Run, name: str, modality: str, source: Path, model: TrainedModel) -> FeatureSet:
    from mer_dist.interop.npy import import_npy

    own = name if NAME.fullmatch(name) else name.replace("@", "-")
    import_npy(run, own, modality, source)
    return store.load(run.features(own), model.fusion.settings.level == "frame")


def _close(
    model: TrainedModel,
    parts: list[Path],
    problems: Sequence[Problem],
    out: Path,
    how: How,
    should_stop: ShouldStop = never,
) -> None:
    """Join the parts, write the quarantine, and say what was predicted."""
    found = output.read_parts(parts)
    whole = _corrected(model, found.table, should_stop) if how.estimates else found.table
    output.write(out, whole)
    for path in {*(out / "parts").glob("*.parquet")} - {*parts}:
        path.unlink(missing_ok=True)
    quarantine.replace(Run(out).quarantine, STAGE, [*problems, *found.problems])
    for remark, count in found.remarks.most_common(SHOWN):
        logger.info("%d clips: %s", count, remark)
    counts = Counter(whole["label"].to_pylist()).most_common()
    shares = ", ".join(f"{label} {count}" for label, count in counts)
    gone = Counter(modality for own in whole["missing"].to_pylist() for modality in own.split()).most_common()
    missing = ", ".join(f"{modality} {count}" for modality, count in gone)
    logger.info(
        "%d clips: %s; missing: %s; %s", len(whole), shares, missing or "nothing", out / output.ANSWERS
    )
    if empty := int((~_present(model, whole)).sum()):
        logger.warning(
            "%d clips have no usable modality; their answer is the most frequent label of training, and says nothing of "
            "them",
            empty,
        )


def _present(model: TrainedModel, whole: pa.Table) -> np.ndarray:
    """(n,) bool: clips that have any of the model's modalities."""
    every = " ".join(dict.fromkeys(one.modality for one in model.fusion.sets))
    return pc.not_equal(whole["missing"], every).to_numpy()


def _corrected(model: TrainedModel, whole: pa.Table, should_stop: ShouldStop) -> pa.Table:
    """The predictions, corrected for the class prior of all these clips where that is expected to pay."""
    fusion, labels = model.fusion, model.fusion.labels
    labeled = fusion.labeled
    assert labeled is not None, "it was loaded to estimate"
    probability = output.probabilities(whole, labels)
    by_fold = pc.list_flatten(whole[output.BY_FOLD]).to_numpy().reshape(len(whole), -1, len(labels))
    found, answer, verdict = correct(
        labeled, probability, by_fold.transpose(1, 0, 2), _present(model, whole), fusion.seed, should_stop
    )
    logger.info("prior correction %s: %s", "applied" if verdict.applied else "not applied", verdict.reason)
    new = {f"p_{label}": pa.array(found[:, number]) for number, label in enumerate(labels)}
    new["label"] = pa.array([labels[row] for row in answer])
    new["confidence"] = pa.array(found[np.arange(len(found)), answer])
    for column, values in new.items():
        whole = whole.set_column(whole.column_names.index(column), column, values)
    return whole.drop_columns([output.BY_FOLD])
