"""A process of its own in which damaged files are read: it may crash, hang or swell, and that is seen."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from typing import Any

#: Private memory that reading small damaged files may take, torch and its threads included.
MEMORY = 4 << 30


class Broken(AssertionError):
    """The process died, hung, or raised what is no message."""


class Sandbox:
    def __init__(self):
        self.process = self.connection = None

    def call(self, function: Callable, *arguments: Any, seconds: float = 60) -> Any:
        """``function(*arguments)`` in the process.

        Raises:
            Broken: it raised anything, was killed by a signal, or took longer than ``seconds``.
        """
        if self.process is None:
            self._start()
        self.connection.send((function, arguments))
        if not self.connection.poll(seconds):
            self.close()
            raise Broken(f"no end after {seconds} s")
        try:
            done, value = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.close()
            raise Broken(f"the process died with code {code}") from None
        if not done:
            raise Broken(value)
        return value

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
        self.process = self.connection = None


def _serve(connection) -> None:
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send(answer)
