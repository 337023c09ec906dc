"""Where everything lies in a run folder: the one place that spells these names.

::

    run/
      config.yaml               the resolved configuration
      quarantine.parquet        every clip or modality that could not be used, and why
      folds.json                labelled clip -> fold, for finetune and fuse alike
      shards/                   {00000..}.tar, {00000..}.parquet, manifest.parquet, stats.json
      adapters/<extractor>/     fold-0, fold-1, ..., all
      checkpoints/<extractor>/  <part>/: the training under way, removed when its copy is complete
      features/<set>/           {00000..}.safetensors, set.json
      probes/                   <set>.parquet: one modality alone
      rounds/00, 01, ...        AGT after each round of self-training
      vote/                     the prior and the answer
      answer.csv                name,discrete
      report.html
      slurm/                    jobs.json, what submitit writes, how tasks ended; the owner's alone
      logs/                     lines of every rank, and what its work took: times.<stage>.<rank>.jsonl
      caches/                   what DeepSpeed compiles, where HOME cannot be written
      status/  tracking/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mer_dist.core.feature_set_id import FeatureSetId


@dataclass(frozen=True, init=False)
class Run:
    folder: Path

    def __init__(self, folder: str | Path):
        object.__setattr__(self, "folder", Path(folder))

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
    def shards(self) -> Path:
        return self.folder / "shards"

    def adapter(self, extractor: str, part: str) -> Path:
        """``part`` is ``fold-K`` (never trained on fold K) or ``all``."""
        return self.folder / "adapters" / extractor / part

    def checkpoints(self, extractor: str, part: str) -> Path:
        return self.folder / "checkpoints" / extractor / part

    def features(self, set_name: str | FeatureSetId) -> Path:
        return self.folder / "features" / str(set_name)

    @property
    def probes(self) -> Path:
        return self.folder / "probes"

    def round(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:02d}"

    @property
    def vote(self) -> Path:
        return self.folder / "vote"

    @property
    def answer(self) -> Path:
        return self.folder / "answer.csv"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def log(self, stage: str, rank: int) -> Path:
        return self.folder / "logs" / f"{stage}.{rank}.log"

    def times(self, stage: str, rank: int | str) -> Path:
        """What the work of a rank took; see :mod:`mer_dist.storage.timings`."""
        return self.folder / "logs" / f"times.{stage}.{rank}.jsonl"

    def status(self, stage: str) -> Path:
        return self.folder / "status" / f"{stage}.json"

    @property
    def lock(self) -> Path:
        """Held by the command that works in this folder; see :mod:`mer_dist.storage.lock`."""
        return self.folder / "status" / "lock"

    @property
    def slurm(self) -> Path:
        return self.folder / "slurm"

    @property
    def slurm_jobs(self) -> Path:
        """What was submitted."""
        return self.slurm / "jobs.json"

    def slurm_note(self, stage: str, job: str) -> Path:
        """How a job, or the task of an array, started and ended; ``job`` as squeue shows it."""
        return self.slurm / "tasks" / f"{stage}-{job}.json"

    @property
    def caches(self) -> Path:
        """In the place of those below HOME; see :mod:`mer_dist.training.caches`."""
        return self.folder / "caches"

    @property
    def tracking(self) -> Path:
        return self.folder / "tracking"
