"""Which program started this rank; or whether its variables were left over in a shell.

A launcher sets RANK and WORLD_SIZE for its ranks, and stays above them. Left over from another job, in a
shell, a ``tmux`` or a profile, the same variables would have one process do its share of the work and end
well. Who set them can be read off the processes above this one: the environment that each was started with
stands in ``/proc``, so the first that was started without these values is the one that set them.

- A known launcher anywhere above, or this process itself where srun started it as ``mer-dist slurm-task``: a
  rank. (Wrappers, ``bash -c`` and containers that share the machine's
  process numbers stand between the two and change nothing.)
- The variables came in from outside of what can be seen (the first process of a container has them, or was
  entered with them; another user's processes are not shown): a rank. Kubernetes starts its ranks so.
- A program that is no shell set them, or the script that a container was started with: a rank of a launcher
  that is not known here by name.
- Any other shell set them, or a terminal multiplexer was started with them, and there is no launcher above:
  left over, or set by hand, and only who typed them can tell. :data:`BY_HAND` says the latter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: To be set to 1 beside RANK and WORLD_SIZE by those who start ranks without a launcher.
BY_HAND = "MER_DIST_BY_HAND"
_VARIABLES = ("RANK", "WORLD_SIZE")
#: A word of a command line, without its folder and ``.py``, by which a launcher is known.
_LAUNCHERS = re.compile(
    r"torchrun|torch\.distributed\.(run|launch)|accelerate(\.commands\.launch|-launch)?"
    r"|mer_dist\.dist\.launcher|slurm-task|deepspeed(\.launcher\.\w+)?|submitit(\.core\._submit)?|horovodrun"
    r"|lightning|fabric|colossalai|composer"
    r"|srun|slurmstepd.*|mpirun|mpiexec(\.\w+)?|orterun|orted|prterun|prted?|prun|hydra_\w+|pmi_proxy"
    r"|jsrun|aprun|apinit|palsd?|flux-(shell|broker|\w*run)|pdsh|parallel|pbs_\w+|pbsdsh|sge_\w+"
    r"|res|blaunch|condor_\w+|raylet|ray|dask(-\w+)?"
)
#: Programs whose first words name the one that they run.
_INTERPRETERS = re.compile(r"python[\d.]*|perl[\d.]*")
_SHELLS = re.compile(r"-?(ba|z|da|k|mk|c|tc|fi|a|pw|nu)?sh|busybox|nu|xonsh|su|login")
_MULTIPLEXERS = re.compile(r"(tmux|screen|SCREEN|zellij|byobu|abduco|dtach)\b.*")
#: First processes of a container that do nothing but start the one command which it is for.
_INITS = re.compile(r"tini(-static)?|dumb-init|docker-init|catatonit|pause|runsvdir|s6-\w+|supervisord")


@dataclass(frozen=True)
class Process:
    """One above this one, as ``/proc`` shows it."""

    #: The program and its first words, without folders.
    words: tuple[str, ...]
    #: The values of RANK and WORLD_SIZE that it was started with; None if that is not shown.
    values: tuple[str | None, ...] | None

    @property
    def launcher(self) -> str:
        """Its name, if it is a known launcher."""
        looked = self.words if _INTERPRETERS.fullmatch(self.words[0]) else self.words[:1]
        return next((word for word in looked if _LAUNCHERS.fullmatch(word)), "")


@dataclass(frozen=True)
class Starter:
    """What started a rank."""

    name: str
    #: Whether it can be relied upon to start all the others, too.
    known: bool = True


_CONTAINER = Starter("what started this container")


def started_by() -> Starter | None:
    """What started this rank; None: nothing that is at work, its variables were left over."""
    if os.environ.get(BY_HAND) == "1":
        return Starter("hand")
    return _judged(tuple(map(os.environ.get, _VARIABLES)), list(_above()), _terminal())


def _judged(values: tuple[str | None, ...], above: list[Process], terminal: bool) -> Starter | None:
    """
    Args:
        values: of RANK and WORLD_SIZE now.
        above: this process and those above it, the nearest first, as far as they are shown.
        terminal: whether this process belongs to a terminal.
    """
    for process in above:
        if process.launcher:
            return Starter(process.launcher)
        if not terminal and process.words[0] == "sshd":
            # A command, as pdsh sends it to each node; who logs in has a terminal.
            return Starter("ssh")
    carrier = None
    for position, process in enumerate(above):
        if process.values == values:
            carrier = process
        elif carrier and _MULTIPLEXERS.fullmatch(carrier.words[0]):
            return None
        elif process.values is None:
            return Starter("a program that is not shown here")
        elif not _SHELLS.fullmatch(process.words[0]):
            return Starter(process.words[0], known=False)
        else:
            rest = above[position + 1 :]
            first = not rest or len(rest) == 1 and _INITS.fullmatch(rest[0].words[0])
            return _CONTAINER if first else None
    return _CONTAINER


def _terminal() -> bool:
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False


def _above() -> Iterator[Process]:
    """This process and those above it, the nearest first; nothing where the system has no ``/proc``."""
    number = os.getpid()
    while number:
        folder = Path("/proc", str(number))
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        yield Process(_words(folder, stat), _values(folder))
        number = int(stat.rpartition(")")[2].split()[1])


def _words(folder: Path, stat: str) -> tuple[str, ...]:
    try:
        line = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        line = ""
    # Daemons write what they please into it, as "sshd: name@pts/0" and "slurmstepd: [12.0]".
    words = [re.split(r":? ", word)[0] for word in line.split("\0")[:4] if word]
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    return tuple(word.rpartition("/")[2].removesuffix(".py") for word in words) or (name,)


def _values(folder: Path) -> tuple[str | None, ...] | None:
    try:
        content = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = dict(pair.decode(errors="replace").split("=", 1) for pair in content if b"=" in pair)
    return tuple(map(found.get, _VARIABLES))
