"""From features to predictions: linear probes, AGT with self-training, vote.

Every step leaves its own marker, so a second call does only what is missing: each linear probe,
each round, the vote.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import safetensors.numpy

from mer_dist.config.config import Config, save
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.log import logger, progress
from mer_dist.core.records import Problem
from mer_dist.core.registry import FUSION_MODELS
from mer_dist.core.stopping import ShouldStop, boundary, never
from mer_dist.features import join
from mer_dist.features.join import Clips
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import predictions, recipes
from mer_dist.fusion.cross_fitted import CrossFitted, CrossFittedRound
from mer_dist.fusion.linear_probe import linear_probe
from mer_dist.fusion.recipes import Recipe
from mer_dist.fusion.stacked_probe import stacked_probe
from mer_dist.processes.threads import torch_threads
from mer_dist.shards.settings import check_settings
from mer_dist.storage import files, quarantine, timings
from mer_dist.storage.run_folder import ALL_SETS, STACKED, Run

if TYPE_CHECKING:
    from mer_dist.fusion.batch import FeatureBatch

#: A feature set of more bytes is kept in half precision.
LARGE = 2**28


@dataclass
class _Sets:
    """Reads each feature set once, keeps those to fuse, and quarantines problems at once.

    A later call skips sets that are done, so their problems must not wait for the end.
    """

    config: Config
    run: Run
    clips: Clips
    #: Problems of the labels.
    of_labels: list[Problem]
    #: set -> its problems, for the sets that were read.
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    kept: dict[str, FeatureSet] = field(default_factory=dict)
    should_stop: ShouldStop = never

    def read(self, name: str) -> FeatureSet:
        if name in self.kept:
            return self.kept[name]
        boundary(self.should_stop, f"before reading {name}")
        fused = name in join.fused_sets(self.config)
        frames = fused and self.config.fuse.level == "frame"
        found, self.problems[name] = join.read_set(self.run, name, self.clips, frames)
        self.note()
        if fused:
            self.kept[name] = found
        return found

    def note(self) -> None:
        """Quarantine the problems found; those of sets that were not read again stay."""
        unread = {*join.all_sets(self.config, self.run)} - self.problems.keys()
        stay = [
            problem for problem in quarantine.read(self.run.quarantine, join.STAGE) if _is_of(problem, unread)
        ]
        found = [problem for of_set in self.problems.values() for problem in of_set]
        quarantine.replace(self.run.quarantine, join.STAGE, [*self.of_labels, *found, *stay])

    def fingerprint(self, names: list[str]) -> dict[str, str]:
        """Set -> its fingerprint."""
        return {name: join.set_fingerprint(self.run, name, self.clips.folds) for name in names}


def _is_of(problem: Problem, unread: set[str]) -> bool:
    """Whether a problem belongs to these sets. Earlier versions noted problems without their set: such a
    problem may belong to any set, unless the clip is lost altogether: then it is one of the labels."""
    return problem.part in unread or (not problem.part and problem.lost != "clip" and bool(unread))


def fuse(config: Config, should_stop: ShouldStop = never) -> None:
    """From features to ``answer.csv``, skipping every step that is done.

    Raises:
        UserError: labels or feature sets are missing or do not fit each other.
    """
    from mer_dist.fusion import answer, teachers
    from mer_dist.fusion.self_training import self_train

    run = Run(config.run.folder)
    if not config.fuse.labels:
        check_settings(config)
    clips, problems = join.read_clips(config, run)
    if problems:
        logger.warning(
            "%s: %d rows cannot be used and are left out; the first: %s",
            config.fuse.labels,
            len(problems),
            problems[0].reason,
        )
    labeled = clips.labeled
    logger.info("fuse: %d labelled and %d unlabelled clips", labeled.sum(), (~labeled).sum())
    sets = _Sets(config, run, clips, problems, should_stop=should_stop)
    answer.check_names(config, clips, run)
    for section in ("self_train", "vote"):
        teachers.read(
            config, run, clips, section
        )  # What is wrong with them is known before hours of training.
    fused = join.fused_sets(config)
    recipe = recipes.fused(clips, sets.fingerprint(fused))
    save(config, run.config)
    files.remove_stale(run.folder, run.linear_probes.folder, run.rounds_folder)
    sets.note()
    linear_probes = _probe_all(config, sets)
    with ExitStack() as to_the_end:

        def inputs() -> FeatureBatch:
            to_the_end.enter_context(torch_threads(config.run.threads))
            return _inputs(config, sets, fused)

        last = self_train(config, clips, recipe, inputs, should_stop)
        first = CrossFittedRound.load(run, 0)
        _vote(config, clips, first, last, linear_probes, should_stop)
    answer.publish(run)
    answer.tell(config, clips, first.present, run)


def _vote(
    config: Config,
    clips: Clips,
    first: CrossFittedRound,
    last: Recipe,
    linear_probes: dict[str, Recipe],
    should_stop: ShouldStop,
) -> None:
    """Vote with the last round and the linear probes, unless that is done."""
    from mer_dist.fusion.vote import vote

    run = Run(config.run.folder)
    voting = recipes.voting(config, linear_probes)
    recipe = recipes.vote(config, last, [linear_probes[name] for name in voting])
    complete = all(path.exists() for path in run.vote.files())
    if complete and files.read_marker(run.vote.folder, recipe.fingerprint):
        logger.info("vote: already there")
    else:
        others: list[CrossFitted | CrossFittedRound] = [
            *(CrossFittedRound.load(run, one.number) for one in run.rounds()[1:]),
            *(CrossFitted.load(run, name) for name in voting),
        ]
        vote(config, clips, first, others, recipe, should_stop)


def _inputs(config: Config, sets: _Sets, fused: list[str]):
    """The features of all clips as tensors on the device; each set's own arrays are freed at once."""
    import torch

    from mer_dist.fusion.batch import FeatureBatch

    found = [_of_set(config, sets, name) for name in fused]
    merged = (
        [*chain.from_iterable(getattr(one, part) for one in found)]
        for part in ("modality", "values", "mask", "moments")
    )
    inputs = FeatureBatch(*merged)
    together = torch.stack([mask.any(-1) for mask in inputs.mask]).sum(0)
    if len(fused) > 1 and together.max() < 2:
        raise UserError(
            f"feature sets {', '.join(fused)}: no clip has more than one of them; are the names the same?"
        )
    model = FUSION_MODELS[config.fuse.model]
    if "query_modality" in model.options and config.fuse.query_modality not in inputs.modality:
        logger.warning(
            "no fused set is %s (fuse.query_modality): a learned query replaces it",
            config.fuse.query_modality,
        )
    return inputs.to("cuda" if torch.cuda.is_available() else "cpu")


def _of_set(config: Config, sets: _Sets, name: str):
    """One feature set, standardised, in half precision if it is large."""
    import torch

    from mer_dist.fusion.batch import FeatureBatch, standardize

    features = sets.read(name)
    sets.kept.pop(name, None)  # nothing reads it again: its embeddings may be standardised in place
    if config.fuse.level == "frame":
        tokens, mask = features.tokens(sets.clips.names, config.fuse.tokens)
    else:
        tokens, mask = (part[:, None] for part in features.utterances(sets.clips.names))
    inputs = standardize(
        FeatureBatch([str(features.modality)], [torch.from_numpy(tokens)], [torch.from_numpy(mask)])
    )
    if tokens.nbytes > LARGE:
        inputs.values = [values.half() for values in inputs.values]
    if features.alignment:
        shift, scale = map(torch.from_numpy, features.alignment)
        inputs.moments = [(shift + scale * mean, scale * std) for mean, std in inputs.moments]
    return inputs


def _probe_all(config: Config, sets: _Sets) -> dict[str, Recipe]:
    """Train the missing linear probes; returns set -> recipe."""
    run = sets.run
    parts = recipes.probed(config, run)
    wanted = {name: recipes.linear_probe(sets.clips, sets.fingerprint(of)) for name, of in parts.items()}
    done = (files.read_marker(run.linear_probes.folder) or {}).get("sets", {})
    done = {
        name: facts
        for name, facts in done.items()
        if all(path.exists() for path in run.linear_probes.files_of(name))
    }
    missing = [name for name in wanted if done.get(name, {}).get("fingerprint") != wanted[name].fingerprint]
    for name in progress(missing, len(missing), "linear probes", "sets") if missing else ():
        clips = len(sets.clips.names)
        with timings.record(run, "fuse", run.linear_probes.folder, clips=clips, piece=name):
            if done.pop(name, None):
                # A linear probe that is about to be replaced must not count as done.
                files.write_marker(
                    run.linear_probes.folder, files.fingerprint_of(done), sets=done, clips=clips
                )
            _probe(config, sets, name, parts[name])
        done[name] = {"fingerprint": wanted[name].fingerprint, "of": wanted[name].of}
        there = {name: done[name] for name in wanted if name in done}
        files.write_marker(run.linear_probes.folder, files.fingerprint_of(there), sets=there, clips=clips)
    for path in run.linear_probes.files():
        if path.stem not in wanted:
            path.unlink()
    return wanted


def _probe(config: Config, sets: _Sets, name: str, parts: list[str]) -> None:
    """Train the linear probe of one set, or of all fused ones side by side, or stacked."""
    if name == STACKED:
        single = [CrossFitted.load(sets.run, part) for part in parts]
        title = "stacked sets (logistic regression)"
        stacked, model = stacked_probe(single, sets.clips, title, sets.should_stop)
        arrays = model.tensors() if model else {}
        files.write_bytes(sets.run.linear_probes.arrays(name), safetensors.numpy.save(arrays))
        return predictions.write(sets.run.linear_probes.predictions(name), stacked)
    clips, found = sets.clips, [sets.read(part) for part in parts]
    values, valid = zip(*(features.utterances(clips.names) for features in found), strict=True)
    title = _probe_title(config, name, found[0])
    made = linear_probe(list(values), list(valid), clips, title, sets.should_stop)
    assert made.models is not None, "it was just fitted"
    models = made.models.before([features.alignment for features in found])
    replace(made, models=models).save(sets.run, name)


def _probe_title(config: Config, name: str, features: FeatureSet) -> str:
    if name == ALL_SETS:
        return "all sets (logistic regression)"
    kind, own = "", FeatureSetId.parse(name)
    if own.is_tuned:
        name, kind = own.name, ", fine-tuned"
    elif name in config.extractors:
        kind = ", frozen"
    return f"{features.modality} alone ({name}{kind})"
