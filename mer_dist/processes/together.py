"""What the ranks of a job have to know of one another without a process group."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mer_dist.config.config import Config, as_dict
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.processes import ancestry, env
from mer_dist.processes.balance import balanced
from mer_dist.storage import files, lock
from mer_dist.storage.run_folder import Run

#: Stages that several processes may do together.
MANY_PROCESSES = ("finetune", "extract", "predict")
#: Seconds that ranks wait for others to leave the run folder: a job that Slurm starts again may meet the last
#: of its ranks of before.
PATIENCE = 60.0


def alone(config: Config, command: str) -> AbstractContextManager:
    """The lock of the run folder: this process's, or its part in that of all ranks.

    Raises:
        Busy: on entering it, where another command or another job is at work.
    """
    # Ranks with other settings are not of this job; those of ``run`` may differ from node to node.
    settings = {name: section for name, section in as_dict(config).items() if name != "run"}
    return alone_in(Run(config.run.folder).lock, command, settings)


def alone_in(path: Path, command: str, settings: object) -> AbstractContextManager:
    """As :func:`alone`, by the lock ``path``.

    Args:
        settings: the same in all ranks of a job.
    """
    here = env.process_info()
    if not here.launched:
        return lock.held(path, command)
    if env.outer() is not None:
        # mer-dist run holds it.
        return nullcontext()
    job = files.fingerprint_of([command, here.world, settings])
    return lock.shared(path, command, job, here.rank, patience=PATIENCE)


def check_processes(command: str) -> None:
    """Whether the environment of a launcher fits this command; where it means nothing it is dropped.

    Raises:
        UserError: the variables are left over from another job, and the command would do a part of its work
            and leave the rest to nobody; or it is one process's work, and a launcher started several.
    """
    here = env.process_info()
    if not here.launched:
        return
    starter, many = ancestry.started_by(), command in MANY_PROCESSES
    said = f"RANK={here.rank} and WORLD_SIZE={here.world} are set"
    if many and starter:
        return
    if many and here.world > 1:
        raise UserError(
            f"{said}, so this would be process {here.rank} of {here.world} and do its part only, but no "
            f"launcher is at work that could have started the others: unset {' '.join(env.OF_A_RANK)}; or, "
            f"if you start all {here.world} by hand, set {ancestry.BY_HAND}=1 beside them"
        )
    if starter and here.rank > 0:
        raise UserError(
            f"{command} is the work of one process, and {starter.name} started {here.world} of "
            "them; start it without a launcher"
        )
    if here.world > 1:
        logger.warning("%s, and %s is the work of one process: they are not looked at", said, command)
    env.alone()


def introduce() -> None:
    """Say which of how many processes this is."""
    here, starter = env.process_info(), ancestry.started_by()
    by = f", started by {starter.name}" if starter else ""
    logger.info("process %d of %d%s", here.rank, here.world, by)


def tell_missing(path: Path, sets: dict[str, tuple[dict[int, int], list[int]]]) -> None:
    """Say at a rank's end what the others have still to do.

    Args:
        path: the lock of the run folder.
        sets: name -> the clips of each of its shards, and the shards that are missing.

    Raises:
        UserError: something is missing, none of the other ranks is at work, and nobody is known who
            would start them.
    """
    here, parts, ranks = env.process_info(), [], set()
    for name, (sizes, missing) in sets.items():
        if missing:
            parts.append(f"{name} lacks {len(missing)} of {len(sizes)} shards")
            ranks |= {rank for rank, own in enumerate(balanced(sizes, here.world)) if {*own} & {*missing}}
    text = (
        f"process {here.rank} of {here.world} has done its part; {', '.join(parts)}, the part of "
        f"{'processes' if len(ranks) > 1 else 'process'} {', '.join(map(str, sorted(ranks)))}"
    )
    others = None if env.outer() else lock.at_work(path, ranks - {here.rank})
    starter = ancestry.started_by()
    if others is None or others:
        logger.info("%s", text)
    elif starter and starter.known:
        logger.warning("%s, none of which is at work now", text)
    else:
        raise UserError(
            f"{text}, none of which is at work: start them; or, if these numbers were left over "
            f"from another job, unset {' '.join(env.OF_A_RANK)} and extract again"
        )
