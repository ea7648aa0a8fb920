"""Runs of the program for the campaign, forked from a process that has imported it, with faults if need be."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from tests.faults.runs import PATIENCE_SECONDS, PROGRAM, Ended, hung
from tests.faults.shim import Shim
from tests.helpers.fork_server import ForkServer, Running, shared


class Nursery:
    """Forks runs of the program.

    Args:
        shim: makes the faults that the environments of the runs ask for.
        libraries: modules that the runs need, and that the program imports only for some.

    """

    def __init__(self, shim: Shim | None = None, libraries: Sequence[str] = ()) -> None:
        self._server = ForkServer(shim.preloaded(), libraries) if shim else shared(*libraries)
        if shim:
            weakref.finalize(self, self._server.close)

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        descriptors: int | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a command of the program to its end, with few descriptors if need be; do something ``meanwhile``."""
        with closing(self.start(command, environment, descriptors)) as running:
            meanwhile()
            if (status := running.wait(PATIENCE_SECONDS)) is None:
                running.kill()
                return hung()
            stdout, stderr = running.output()
        return Ended(status, stderr, stdout)

    def kill(self, command: Sequence[str], after: float) -> bool:
        """Run a command of the program, and kill it after some seconds; return whether it had not ended by then."""
        with closing(self.start(command)) as running:
            if running.wait(after) is not None:
                return False
            running.kill()
            return running.wait() == -signal.SIGKILL

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, descriptors: int | None = None
    ) -> Running:
        """Start a command of the program."""
        if tuple(command[: len(PROGRAM)]) != PROGRAM:
            raise ValueError(command)
        variables = {**os.environ, **(environment or {})}
        return self._server.start(command[len(PROGRAM) :], environment=variables, descriptors=descriptors)
