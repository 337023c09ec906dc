"""The layout of a run folder: the only module that spells these names.

::

    run/
      config.yaml               the resolved configuration
      quarantine.parquet        every clip or modality that could not be used, and why
      folds.json                labelled clip -> fold, for finetune and fuse alike
      twins.json                clips whose imported features are those of another clip
      shards/                   {00000..}.tar, {00000..}.parquet, index.parquet, unstored.json,
                                twins.json, annotations.parquet, asked.json, stats.json
      adapters/<extractor>/     fold-0, fold-1, ..., all; history.json in each
      checkpoints/<extractor>/  <variant>/: the training in progress, removed when its adapter is complete
      features/<set>/           {00000..}.safetensors, set.json
      linear_probes/            <set>.parquet: one modality alone; <set>.safetensors
      rounds/00, 01, ...        AGT after each round of self-training: predictions.parquet,
                                fold_predictions.safetensors, models.safetensors, moments.safetensors, curves.json,
                                pseudo_labels.parquet
      vote/                     prior.json, predictions.parquet and the answer
      teachers/<name>.parquet   answers of outside labellers
      answer.csv                name,discrete
      scores.json
      report.html
      report_sound/             with report.sound: link, the sound of its clips: 00.flac, 01.flac, ...
      slurm/                    jobs.json, files of submitit, how tasks ended; private to the owner
      logs/                     log lines of every rank, and its timings: timings.<stage>.<rank>.jsonl
      caches/                   files that DeepSpeed compiles, if HOME is not writable
      status/  tracking/

:class:`Run` gives the path of each file or folder. A folder of several files has its own small type, with the
path ``folder``: a stage fills a temporary folder first, and the same type names the files in it.
The packages of shards and feature sets use such a type, too, and accept a folder in any location.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.storage.files import MARKER

_ANSWER, _PREDICTIONS = "answer.csv", "predictions.parquet"
#: Markers that earlier versions left in each complete part of a run.
_EARLIER = ("made.json", "*/made.json", "*/*/made.json", "*/*/*/made.json")
#: Names of the linear baselines on all fused sets concatenated, and on the predictions from each of them; no
#: feature set can have such a name.
ALL_SETS, STACKED = "@all", "@stacked"


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """The files of a stage, by number: ``00001.tar``, and not a duplicate's ``00001 2.tar``."""
    return sorted(path for path in folder.glob(f"[0-9]*{suffix}") if path.stem.isdecimal())


def _is_set(name: str) -> bool:
    try:
        FeatureSetId.parse(name)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class _Folder:
    folder: Path

    def __post_init__(self):
        object.__setattr__(self, "folder", Path(self.folder))

    def files(self) -> list[Path]:
        """The files that stages write there; unless a subclass overrides it, all files there."""
        return sorted(self.folder.glob("[!.]*"))


class ShardFolder(_Folder):
    """``shards/``; see :mod:`mer_dist.shards.shard_index`."""

    @property
    def index(self) -> Path:
        """The rows of all shards."""
        return self.folder / "index.parquet"

    @property
    def unstored(self) -> Path:
        return self.folder / "unstored.json"

    @property
    def twins(self) -> Path:
        return self.folder / "twins.json"

    @property
    def annotations(self) -> Path:
        """Other columns of the labels, as valence; absent where there are none."""
        return self.folder / "annotations.parquet"

    @property
    def asked(self) -> Path:
        """Only where the corpus asks for answers to some of its unlabelled clips."""
        return self.folder / "asked.json"

    @property
    def stats(self) -> Path:
        return self.folder / "stats.json"

    @property
    def results(self) -> tuple[Path, ...]:
        """The files computed over all shards."""
        return self.index, self.unstored, self.twins, self.stats

    def tar(self, number: int) -> Path:
        return self.folder / f"{number:05d}.tar"

    def record(self, number: int) -> Path:
        """The rows of one shard, and the record of its inputs."""
        return self.folder / f"{number:05d}.parquet"

    def all_tars(self) -> list[Path]:
        return _numbered(self.folder, ".tar")

    def all_records(self) -> list[Path]:
        return _numbered(self.folder, ".parquet")

    def files(self) -> list[Path]:
        return [*self.all_tars(), *self.all_records(), *self.results, self.asked, self.annotations]


class FeatureFolder(_Folder):
    """``features/<set>/``; see :mod:`mer_dist.features.store`."""

    @property
    def description(self) -> Path:
        return self.folder / "set.json"

    def shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def shards(self) -> list[Path]:
        """The files that are there, by number."""
        return _numbered(self.folder, ".safetensors")

    def files(self) -> list[Path]:
        return [*self.shards(), self.description]


class AdapterFolder(_Folder):
    """``adapters/<extractor>/<variant>/``; the extractor's library writes further files here."""

    @property
    def history(self) -> Path:
        """The learning curves."""
        return self.folder / "history.json"

    @property
    def extractor(self) -> str:
        return self.folder.parent.name

    @property
    def variant(self) -> str:
        """``fold-K`` or ``all``."""
        return self.folder.name


class LinearProbeFolder(_Folder):
    """``linear_probes/``: logistic regression on each feature set."""

    def predictions(self, set_name: str) -> Path:
        return self.folder / f"{set_name}.parquet"

    def arrays(self, set_name: str) -> Path:
        """The models, and predictions for labelled clips by models trained without two folds."""
        return self.folder / f"{set_name}.safetensors"

    def files_of(self, set_name: str) -> list[Path]:
        return [self.predictions(set_name), self.arrays(set_name)]

    def all_predictions(self) -> list[Path]:
        return self._of_sets(".parquet")

    def files(self) -> list[Path]:
        """The files of all sets; the stem of each is the name of its set."""
        return [*self.all_predictions(), *self._of_sets(".safetensors")]

    def _of_sets(self, suffix: str) -> list[Path]:
        paths = sorted(self.folder.glob(f"*{suffix}"))
        return [path for path in paths if path.stem in (ALL_SETS, STACKED) or _is_set(path.stem)]


class RoundFolder(_Folder):
    """``rounds/NN/``: one round of self-training."""

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def predictions(self) -> Path:
        return self.folder / _PREDICTIONS

    @property
    def fold_predictions(self) -> Path:
        """Predictions for the unlabelled clips by the models of each fold and, in round 0, for the labelled
        clips by models trained without two folds."""
        return self.folder / "fold_predictions.safetensors"

    @property
    def models(self) -> Path:
        return self.folder / "models.safetensors"

    @property
    def moments(self) -> Path:
        """Only in round 0: shift and scale with which the models of all rounds standardise each feature set."""
        return self.folder / "moments.safetensors"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.json"

    @property
    def pseudo_label_log(self) -> Path:
        """Absent in round 0; see :mod:`mer_dist.fusion.pseudo_label_log`."""
        return self.folder / "pseudo_labels.parquet"

    def files(self) -> list[Path]:
        return [
            self.predictions,
            self.fold_predictions,
            self.models,
            self.moments,
            self.curves,
            self.pseudo_label_log,
        ]


class VoteFolder(_Folder):
    """``vote/``: the last step of fusion."""

    @property
    def predictions(self) -> Path:
        return self.folder / _PREDICTIONS

    @property
    def disputed(self) -> Path:
        """Only with ``vote.teachers``: labelled clips whose label a teacher and the models both doubt."""
        return self.folder / "disputed_labels.csv"

    @property
    def prior(self) -> Path:
        """The class prior, whether it was corrected, and the weights of the voters."""
        return self.folder / "prior.json"

    @property
    def answer(self) -> Path:
        """The source of :attr:`Run.answer`."""
        return self.folder / _ANSWER

    def files(self) -> list[Path]:
        return [self.predictions, self.prior, self.answer]


@dataclass(frozen=True, init=False)
class Run:
    folder: Path

    def __init__(self, folder: str | Path):
        object.__setattr__(self, "folder", Path(folder))

    @property
    def begun(self) -> bool:
        """Whether a run has left anything there, by names that users do not give to their own files."""
        left = ("status/lock", "quarantine.parquet", "shards/index.parquet", "features/*/set.json")
        return any(any(self.folder.glob(name)) for name in (*left, "rounds/[0-9]*/predictions.parquet"))

    def check_version(self) -> None:
        """
        Raises:
            UserError: an earlier version wrote the folder, under names that this version does not know.
        """
        if old := next((path for name in _EARLIER for path in self.folder.glob(name)), None):
            raise UserError(
                f"{self.folder}: made by an earlier version of mer-dist ({self.relative(old)}), whose files have "
                "other names; go on with that version, or set run.folder to a new folder"
            )

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine.parquet"

    @property
    def folds(self) -> Path:
        return self.folder / "folds.json"

    @property
    def twins(self) -> Path:
        """Names, group by group, of clips that imported features show to be one recording."""
        return self.folder / "twins.json"

    @property
    def shards(self) -> Path:
        """The path of a :class:`ShardFolder`."""
        return self.folder / "shards"

    def adapter(self, extractor: str, variant: str) -> Path:
        """Path of an :class:`AdapterFolder`; ``variant``: ``fold-K`` (not trained on fold K) or ``all``."""
        return self.folder / "adapters" / extractor / variant

    def adapters(self) -> list[AdapterFolder]:
        """Of all extractors, complete or not."""
        found = (AdapterFolder(path) for path in sorted((self.folder / "adapters").glob("*/*")))
        return [one for one in found if _is_set(f"{one.extractor}@{one.variant}")]

    def checkpoints(self, extractor: str, variant: str) -> Path:
        return self.folder / "checkpoints" / extractor / variant

    @property
    def features_folder(self) -> Path:
        """The parent of the folders of all feature sets."""
        return self.folder / "features"

    def features(self, set_name: str | FeatureSetId) -> Path:
        """The path of a :class:`FeatureFolder`."""
        return self.features_folder / str(set_name)

    def feature_sets(self) -> list[Path]:
        """The folders of all feature sets, complete or not."""
        return sorted(path for path in self.features_folder.glob("*") if _is_set(path.name))

    @property
    def linear_probes(self) -> LinearProbeFolder:
        return LinearProbeFolder(self.folder / "linear_probes")

    @property
    def rounds_folder(self) -> Path:
        """The parent of the folders of all rounds."""
        return self.folder / "rounds"

    def round(self, number: int) -> RoundFolder:
        return RoundFolder(self.rounds_folder / f"{number:02d}")

    def rounds(self) -> list[RoundFolder]:
        """The existing rounds, by number; other files there are ignored."""
        found = (RoundFolder(path) for path in self.rounds_folder.glob("[0-9]*") if path.name.isdecimal())
        return sorted(found, key=lambda one: one.number)

    def strays(self) -> list[Path]:
        """Files among those of the stages that no stage wrote, hidden files aside: a program that
        synchronises folders leaves duplicates there. No stage reads them."""
        sets = [FeatureFolder(folder) for folder in self.feature_sets()]
        parts = (ShardFolder(self.shards), self.linear_probes, self.vote, *sets, *self.rounds())
        owned = {part.folder: {*part.files(), part.folder / MARKER} for part in parts}
        owned[self.vote.folder].add(self.vote.disputed)
        owned[self.features_folder] = {*self.feature_sets()}
        owned[self.rounds_folder] = {one.folder for one in self.rounds()}
        return sorted(
            path for folder, own in owned.items() for path in folder.glob("[!.]*") if path not in own
        )

    @property
    def vote(self) -> VoteFolder:
        return VoteFolder(self.folder / "vote")

    def teacher(self, name: str) -> Path:
        """Answers of an outside labeller; see :mod:`mer_dist.fusion.teachers`."""
        return self.folder / "teachers" / f"{name}.parquet"

    def teachers(self) -> list[str]:
        """The names of the outside labellers whose answers were imported."""
        pattern = self.teacher("[!.]*")
        return sorted(path.stem for path in pattern.parent.glob(pattern.name))

    @property
    def answer(self) -> Path:
        return self.folder / _ANSWER

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def report_sound(self) -> Path:
        """The folder of the sound files that the report links."""
        return self.folder / "report_sound"

    def relative(self, path: Path) -> str:
        """A path inside the run folder as markers, tables and messages name it, with ``/``."""
        return path.relative_to(self.folder).as_posix()

    def log(self, stage: str, rank: int) -> Path:
        return self.folder / "logs" / f"{stage}.{rank}.log"

    def timings(self, stage: str, rank: int | str) -> Path:
        """The timings of a rank; see :mod:`mer_dist.storage.timings`."""
        return self.folder / "logs" / f"timings.{stage}.{rank}.jsonl"

    def all_timings(self) -> list[Path]:
        """Of all stages and ranks."""
        pattern = self.timings("*", "*")
        return sorted(pattern.parent.glob(pattern.name))

    def status(self, stage: str) -> Path:
        return self.folder / "status" / f"{stage}.json"

    @property
    def lock(self) -> Path:
        """Held by the command that works in this folder; see :mod:`mer_dist.storage.lock`."""
        return self.folder / "status" / "lock"

    @property
    def slurm_lock(self) -> Path:
        """Held while jobs are submitted; some of them may be running already."""
        return self.folder / "status" / "lock.slurm"

    @property
    def slurm(self) -> Path:
        return self.folder / "slurm"

    @property
    def slurm_jobs(self) -> Path:
        """The submitted jobs."""
        return self.slurm / "jobs.json"

    def slurm_note(self, stage: str, job: str) -> Path:
        """How a job, or a task of a job array, started and ended; ``job`` as squeue shows it."""
        return self.slurm / "tasks" / f"{stage}-{job}.json"

    def slurm_log(self, job: str, tasks: int) -> Path:
        """submitit's log of the first task of a job; for an array, a pattern with ``*`` over its jobs."""
        return self.slurm / f"{job}{'_*' if tasks > 1 else ''}_0_log.out"

    @property
    def caches(self) -> Path:
        """Instead of those below HOME; see :mod:`mer_dist.training.caches`."""
        return self.folder / "caches"

    @property
    def tracking(self) -> Path:
        return self.folder / "tracking"
