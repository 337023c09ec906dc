"""Python commands without the seconds that torch, transformers, DeepSpeed and peft take to import.

A server imports them once. A command is then a fork of it, with arguments, environment, working directory
and descriptors of its own, which ``/proc`` shows as those of any process; whoever asked for it is its
parent. So are the ranks that a launcher starts through :class:`subprocess.Popen`: it has a server of its
own, forked before it began. Each command imports mer_dist anew.

Commands that are not Python's start as ever, and so do Python's with other options than ``-m``, ``-c``, ``-u``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What a rank imports, that of its launcher included; but pyarrow, which starts a thread.
HEAVY = (
    "torch", "torch.distributed.run", "transformers", "deepspeed", "accelerate", "accelerate.commands.launch",
    "peft", "bitsandbytes", "sklearn.linear_model", "scipy.optimize", "av", "cv2", "webdataset", "omegaconf",
    "rich.progress", "torch.utils.tensorboard",
)  # fmt: skip
#: Modules that start Python's commands themselves.
LAUNCHERS = ("accelerate.commands.launch", "mer_dist.processes.launcher")
#: Bytes for the arguments and for the environment of a command, where ``/proc`` reads them.
ROOM = 1 << 16
_SUBREAPER, _MESSAGE = 36, 1 << 20
#: To this process's server.
_line: socket.socket | None = None
_asking = threading.Lock()


class Popen(subprocess.Popen):
    """A command, as a fork of the server if it is one of Python's."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        _, _, shell, *pipes, _, _, _, _, _, session, group = rest
        words = [os.fsdecode(word) for word in args] if isinstance(args, list | tuple) else []
        plain = not (shell or preexec_fn or pass_fds or group >= 0)
        if not (_line and plain and words[:1] == [sys.executable] and code(words)):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        told = {
            "words": words,
            "env": dict(os.environ)
            if env is None
            else {os.fsdecode(key): os.fsdecode(env[key]) for key in env},
            "cwd": os.fsdecode(cwd or os.getcwd()),
            "session": bool(session),
            "umask": _umask(),
        }
        theirs = (pipes[0], pipes[3], pipes[5])
        self.pid = _ask(told, [own if own != -1 else standard for standard, own in enumerate(theirs)])
        self._child_created = True
        self._close_pipe_fds(*pipes)
        return None


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


def code(words: list[str]) -> Callable[[], object] | None:
    """What a command of Python's runs as its main program; None for one that is not forked."""
    first, *rest = [word for word in words[1:] if word != "-u"] or ["-"]
    if first == "-m" and rest:
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if first == "-c" and rest:
        return lambda: exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)  # noqa: S102
    return None if first.startswith("-") else lambda: runpy.run_path(first, run_name="__main__")


def _ask(told: dict, streams: list[int]) -> int:
    """Have the server fork a command as a child of this process; returns its number."""
    libc = ctypes.CDLL(None)
    with _asking:
        # Meanwhile processes below this one that lose their parent become its children.
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        socket.send_fds(_line, [json.dumps(told).encode()], streams)
        answer = _line.recv(64)
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)
    if not answer:
        raise OSError("the server of forks has ended")
    return int(answer)


class Server:
    """Started when it is first needed; closed by :meth:`close`."""

    def __init__(self, said: Path, environment: Callable[[], dict[str, str]]):
        #: Where it writes to what goes wrong in it.
        self.said = said
        self.environment = environment
        self.process: subprocess.Popen | None = None

    @contextmanager
    def forking(self) -> Iterator[None]:
        """Meanwhile :class:`subprocess.Popen` of this process forks Python's commands."""
        global _line
        if self.process is None:
            self._start()
        before, subprocess.Popen, _line = subprocess.Popen, Popen, self.line
        try:
            yield
        finally:
            subprocess.Popen, _line = before, None

    def _start(self) -> None:
        self.line, theirs = _pair()
        room, paths = "-" * ROOM, os.pathsep.join(filter(None, sys.path))
        with theirs, open(self.said, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), room],
                env={**self.environment(), "PYTHONPATH": paths, "ROOM": room},
                stdin=subprocess.DEVNULL,
                stderr=file,
                stdout=file,
                pass_fds=[theirs.fileno()],
            )
        if not self.line.recv(64):
            raise OSError(f"the server of forks has ended: {self.said.read_text()[-3000:]}")

    def close(self) -> None:
        if self.process is not None:
            self.line.close()
            self.process.wait()


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
    return pair


def serve(line: socket.socket) -> Callable[[], object]:
    """Fork what is asked for, until the other end is closed; in a fork, returns what it is to run."""
    while True:
        try:
            message, streams, _, _ = socket.recv_fds(line, _MESSAGE, 3)
        except ConnectionResetError:
            message = b""
        if not message:
            os._exit(0)
        if _fork(line):
            line.close()
            return _become(json.loads(message), streams)
        for stream in streams:
            os.close(stream)


def _fork(line: socket.socket) -> bool:
    """Fork twice, so that the one between ends and the command falls to whoever asked; true in the command."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a fork of {threads} threads would have one of them"
    told, tells = os.pipe()
    if between := os.fork():
        number = os.read(told, 64)
        os.close(told)
        os.close(tells)
        # Only then has the command its parent.
        os.waitpid(between, 0)
        line.send(number)
        return False
    between = os.getpid()
    if number := os.fork():
        os.write(tells, str(number).encode())
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.0005)
    return True


def _become(told: dict, streams: list[int]) -> Callable[[], object]:
    """Take on what a new process would have been given; what there is to run."""
    global _line
    words, own = told["words"], told["env"]
    _line = None
    os.umask(told["umask"])
    if words[1:3] in [["-m", module] for module in LAUNCHERS] or words[1:4] == ["-m", "mer_dist", "run"]:
        _line, theirs = _pair()
        if not os.fork():
            _line.close()
            for stream in streams:
                os.close(stream)
            return serve(theirs)
        theirs.close()
    if told["session"]:
        os.setsid()
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
    kept = _line.fileno() if _line else 3
    os.closerange(3, kept)
    os.closerange(kept + bool(_line), 1 << 12)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(own)
    _show(words, own)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(standard, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for standard in (1, 2)
    )
    _say_what_is_run([word for word in words[1:] if word != "-u"], own)
    import torch

    torch.set_num_threads(int(own.get("OMP_NUM_THREADS", os.cpu_count())))
    return code(words)


def _say_what_is_run(words: list[str], own: dict[str, str]) -> None:
    """``sys.argv`` and ``sys.path``, and a main module without names."""
    first, *rest = words
    folder = {"-m": os.getcwd(), "-c": ""}.get(first, os.path.dirname(os.path.abspath(first)))
    sys.argv = {"-m": rest, "-c": ["-c", *rest[1:]]}.get(first, words)
    paths = [path for path in own.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [folder, *paths, *(path for path in sys.path[1:] if path not in paths)]
    sys.modules["__main__"] = types.ModuleType("__main__")
    importlib.invalidate_caches()


def _show(words: list[str], own: dict[str, str]) -> None:
    """Write the command where ``/proc`` reads it: over the server's own, which nothing points to any more."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        places = [int(place) for place in file.read().rpartition(")")[2].split()[45:49]]
    contents = ("\0".join(part) + "\0" for part in (words, [f"{key}={value}" for key, value in own.items()]))
    for start, end, content in zip(places[::2], places[1::2], contents, strict=True):
        shown = content.encode()[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, shown, len(shown))


def end(main: Callable[[], object]) -> None:
    """Run it and end as the interpreter does, but for what it takes to free all that the server imported."""
    status = 0
    try:
        main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if status and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 255)


def _main(line: socket.socket) -> None:
    subprocess.Popen = Popen
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()
    line.send(b"ready")
    end(serve(line))


if __name__ == "__main__":
    # As a module of its own name, which is what a fork's Popen looks into.
    import forks

    forks._main(socket.socket(fileno=int(sys.argv[1])))
