"""The inputs of each part of fusion: linear probes, rounds, vote.

``fuse`` recomputes a part whose recipe differs from the one in its marker. Readers of a run call
:func:`stale` to list these parts. It uses the same recipes, so that a part which ``fuse`` would recompute
never counts as up to date.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mer_dist.config import config as configuration
from mer_dist.config.config import Config, as_dict
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.corpus import table
from mer_dist.crossfit import folds
from mer_dist.features import join
from mer_dist.features.join import Clips
from mer_dist.fusion import predictions, registered, teachers
from mer_dist.fusion.linear_probe import SETTINGS
from mer_dist.storage import files
from mer_dist.storage.run_folder import ALL_SETS, STACKED, Run

#: Raise these when files or numbers of such a part change: parts of another version are recomputed.
PROBE_VERSION, ROUND_VERSION, VOTE_VERSION = 4, 6, 10
SHOWN = 3
#: Name of an input in a marker.
BEFORE = "linear probes or rounds"


@dataclass(frozen=True)
class Recipe:
    """The inputs of a part."""

    #: Fingerprint of all inputs.
    fingerprint: str
    #: Each input in words -> its own fingerprint; with it a marker shows later which input changed.
    of: dict[str, str] = field(default_factory=dict)


def features(name: str) -> str:
    """A feature set as an input."""
    return f"features {name}"


def probed(config: Config, run: Run) -> dict[str, list[str]]:
    """Linear probe -> its feature sets: each set, all fused ones side by side, and all of them stacked."""
    parts = {name: [name] for name in join.all_sets(config, run)}
    if len(fused := join.fused_sets(config)) > 1:
        parts |= {ALL_SETS: fused, STACKED: fused}
    return parts


def linear_probe(clips: Clips, sets: dict[str, str]) -> Recipe:
    """Of a linear probe on ``sets``, name -> fingerprint."""
    fingerprint = files.fingerprint_of([clips.fingerprint, *sets.values(), SETTINGS, PROBE_VERSION])
    return Recipe(fingerprint, clips.fingerprints | {features(name): own for name, own in sets.items()})


def fused(clips: Clips, sets: dict[str, str]) -> Recipe:
    """Of the inputs common to all rounds."""
    fingerprint = files.fingerprint_of([clips.fingerprint, *sets.values()])
    return Recipe(fingerprint, clips.fingerprints | {features(name): own for name, own in sets.items()})


def last_round(config: Config, clips: Clips) -> int:
    return config.self_train.rounds if not clips.labeled.all() else 0


def part_taken(config: Config, number: int, last: int) -> float:
    """Fraction of the unlabelled clips that round ``number`` of ``last`` selects."""
    return config.self_train.quota * number / max(last, 1)


def round_of(config: Config, number: int, last: int, before: Recipe) -> Recipe:
    """Of a round; ``before``: that of the round before, for round 0 that of :func:`fused`."""
    if number == 0:
        model = as_dict(config.fuse)
        del model["labels"], model["sets"]
        code = registered.code_of(config.fuse.model)
        parts = [before.fingerprint, model, config.run.seed, ROUND_VERSION, *([code] if code else [])]
        fingerprint = files.fingerprint_of(parts)
        settings = {
            "settings of fuse": files.fingerprint_of(model),
            "run.seed": str(config.run.seed),
            "version of mer_dist": str(ROUND_VERSION),
        }
        if code:
            settings["code of fuse.model"] = files.fingerprint_of(code)
        return Recipe(fingerprint, before.of | settings)
    learned = config.self_train
    precision = learned.precision if learned.rule == "precision" else None
    own = [learned.rule, learned.confidence, precision, learned.weight, learned.start]
    taught = []
    if learned.rule == "consensus":
        own += [learned.teachers, learned.sure]
        taught = teachers.fingerprints(config, Run(config.run.folder), "self_train")
    part = part_taken(config, number, last)
    fingerprint = files.fingerprint_of([before.fingerprint, number, part, *own, *taught])
    of = {BEFORE: before.fingerprint, "settings of self_train": files.fingerprint_of([part, *own])}
    if taught:
        of["answers of self_train.teachers"] = files.fingerprint_of(taught)
    return Recipe(fingerprint, of)


def enough(wafs: list[float], patience: int) -> bool:
    """Whether the last ``patience`` rounds all stayed at or below the best before them."""
    return bool(patience) and len(wafs) - 1 - wafs.index(max(wafs)) >= patience


def voting(config: Config, linear_probes: dict[str, Recipe]) -> list[str]:
    """The linear probes that vote beside the rounds."""
    return [*join.fused_sets(config), *([ALL_SETS] if ALL_SETS in linear_probes else [])]


def vote(config: Config, last: Recipe, linear_probes: list[Recipe]) -> Recipe:
    """Of the vote over the rounds up to ``last`` and these linear probes.

    Raises:
        UserError: ``vote.names`` cannot be read.
    """
    names = (
        wanted_names(config.vote.names)
        if config.vote.names
        else join.asked(config, Run(config.run.folder)) or []
    )
    parts = [last.fingerprint, *(recipe.fingerprint for recipe in linear_probes)]
    run = Run(config.run.folder)
    own = [as_dict(config.vote), config.run.seed, config.folds.group]
    taught = teachers.fingerprints(config, run, "vote")
    of = {
        BEFORE: files.fingerprint_of(parts),
        "settings of vote": files.fingerprint_of(own),
        "names in vote.names": files.fingerprint_of(names),
        "answers of vote.teachers": files.fingerprint_of(taught),
        "version of mer_dist": str(VOTE_VERSION),
    }
    return Recipe(files.fingerprint_of([parts, *own, names, VOTE_VERSION, *taught]), of)


def wanted_names(path: str) -> list[str]:
    """The names in the CSV ``vote.names``, in its order.

    Raises:
        UserError: there is no such file, or one of its rows cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"vote.names: there is no file {path}")
    found = table.read(Path(path), ("name",))
    if found.bad or not found.rows:
        why = "; ".join([*found.bad.values()][:SHOWN]) or "it names no clip"
        raise UserError(f"vote.names {path}: {why}")
    return list(found.rows)


@dataclass(frozen=True)
class Stale:
    """A part that ``fuse`` would recompute."""

    #: Its folder or file, relative to the run.
    part: str
    why: str
    #: The inputs that changed, as far as known.
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.part}: {self.why}; run fuse"


def stale(config: Config, run: Run) -> list[Stale]:
    """The linear probes, rounds and vote of a run that are older than their inputs; this only reads.

    Parts that cannot be compared, because features or ``vote.names`` are missing, are skipped: ``verify``
    reports them. ``config`` is the run's last configuration; newer settings that no stage has read yet are
    not known here.

    Raises:
        UserError: the labels cannot be read, or no feature set is to be fused.
    """
    if not predictions.all_of(run):
        return []
    clips = join.present_clips(config, run)
    return [*_Found(config, run, clips).all()]


def check_fresh(config: Config, run: Run) -> None:
    """
    Raises:
        UserError: the run has not voted, or a part is older than its inputs or than what depends on it.
    """
    if not files.read_marker(run.vote.folder) or not run.vote.prior.exists():
        raise UserError(f"{run.folder}: it has not voted yet; run fuse first")
    try:
        found = stale(config, run)
    except UserError as error:  # Labels or features may be absent where a run is only used.
        logger.info("%s: whether its fusion is up to date cannot be determined: %s", run.folder, error)
        return
    if found:
        raise UserError(f"{run.folder}: {found[0]}")


def stale_lines(run: Run, config: Config | None = None) -> list[str]:
    """:func:`stale` in a line for status output, or why it cannot be determined.

    Args:
        config: the run's own; None: it is read.
    """
    if not run.config.exists():
        return []
    try:
        found = stale(config or configuration.of_run(run), run)
    except UserError as error:
        return [f"whether the fusion is stale cannot be determined: {error}"]
    if not found:
        return []
    parts = ", ".join(one.part for one in found)
    return [f"stale: {parts}; run fuse ({found[0].part}: {found[0].why.removeprefix('stale, ')})"]


def labels_changed(config: Config, run: Run, found: list[Stale]) -> bool:
    """Whether a part was trained on other labels than the current ones."""
    if any(join.LABELS in one.changed for one in found):
        return True
    # Runs of an earlier version: the folds follow from the labels that fuse read last.
    labeled = {name: label for name, label in join.labels_of(config, run)[0].items() if label}
    return run.folds.exists() and folds.saved_of_run(config, run, labeled) is None


class _Found:
    """Compares the markers of a run with its current recipes."""

    def __init__(self, config: Config, run: Run, clips: Clips):
        self.config, self.run, self.clips = config, run, clips
        self.parts = probed(config, run)
        self.sets = {name: self._set(name) for name in {*chain.from_iterable(self.parts.values())}}
        #: Parts that an unfinished run has not computed yet are not stale.
        self.answered = run.answer.exists()

    def _set(self, name: str) -> str | None:
        try:
            return join.set_fingerprint(self.run, name, self.clips.folds)
        except UserError:
            return None

    def _of(self, names: list[str]) -> dict[str, str] | None:
        """Set -> fingerprint, or None if one of them cannot be read."""
        found = {name: own for name in names if (own := self.sets[name]) is not None}
        return found if len(found) == len(names) else None

    def all(self) -> Iterator[Stale]:
        linear_probes = {
            name: linear_probe(self.clips, of)
            for name, parts in self.parts.items()
            if (of := self._of(parts))
        }
        markers = _dictionary(_dictionary(files.read_marker(self.run.linear_probes.folder)).get("sets"))
        for name, recipe in linear_probes.items():
            path = self.run.linear_probes.predictions(name)
            yield from self._compare(path, markers.get(name) if path.exists() else None, recipe)
        if (of := self._of(join.fused_sets(self.config))) is None:
            return
        last = fused(self.clips, of)
        for number, recipe in self._rounds(last):
            last, path = recipe, self.run.round(number).folder
            yield from self._compare(path, files.read_marker(path), recipe)
        if all(name in linear_probes for name in voting(self.config, linear_probes)):
            with suppress(UserError):
                recipe = vote(
                    self.config, last, [linear_probes[name] for name in voting(self.config, linear_probes)]
                )
                path = self.run.vote.folder
                there = all(own.exists() for own in self.run.vote.files())
                yield from self._compare(path, files.read_marker(path) if there else None, recipe)

    def _rounds(self, before: Recipe) -> Iterator[tuple[int, Recipe]]:
        """The rounds to expect, as far as known without running one."""
        last, wafs = last_round(self.config, self.clips), []
        for number in range(last + 1):
            before = round_of(self.config, number, last, before)
            yield number, before
            waf = _dictionary(files.read_marker(self.run.round(number).folder)).get("oof_waf")
            wafs.append(waf if isinstance(waf, float) else 0.0)
            if number < last and enough(wafs, self.config.self_train.patience):
                return

    def _compare(self, path: Path, marker: dict | None, recipe: Recipe) -> Iterator[Stale]:
        part = self.run.relative(path.with_suffix(""))
        marker = _dictionary(marker)
        if not marker and self.answered:
            yield Stale(part, "missing or incomplete, though there is an answer that depends on it")
        if not marker or marker.get("fingerprint") == recipe.fingerprint:
            return
        if of := _dictionary(marker.get("of")):
            changed = sorted(name for name in {*of, *recipe.of} if of.get(name) != recipe.of.get(name))
            what = f"{', '.join(changed)} than those of this run"
        else:
            changed, what = [], "labels, features or settings than those of this run, or by another version"
        yield Stale(part, f"stale, computed from other {what}", tuple(changed))


def _dictionary(value: object) -> dict:
    """The content of a marker, which may be of another version or damaged."""
    return value if isinstance(value, dict) else {}
