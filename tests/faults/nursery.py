"""A process that has run the program once, and forks a process for each further run: start-up is paid once.

Each run is a process of its own, as if it had been started by hand. It only need not import the program anew, which is
most of what a small run takes, and in which nothing can happen to an output.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from ema_cli.cli import main as program
from tests.faults.runs import PATIENCE_SECONDS, PROGRAM, Ended, hung
from tests.faults.series import write_series
from tests.faults.shim import Shim

_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What to run."""

    arguments: Sequence[str]
    folder: Path
    """Where the streams go."""
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: int | None = None
    """As ``ulimit -n``."""
    seconds: float = PATIENCE_SECONDS
    """After which it is killed."""


class Nursery:
    """Where processes come from.

    Args:
        shim: makes the faults that the environments of the runs tell of.

    """

    def __init__(self, shim: Shim | None = None) -> None:
        self._line, theirs = Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(theirs.fileno())],
            env={**os.environ, **(shim.preloaded() if shim else {})},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        descriptors: int | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a command of the program to its end, with few descriptors if need be; do something ``meanwhile``."""
        folder = Path(self._folder.name)
        self._order(command, environment=environment or {}, descriptors=descriptors)
        meanwhile()
        if (status := self._line.recv()) is None:
            return hung()
        stdout, stderr = ((folder / name).read_text(errors="replace") for name in _STREAMS)
        return Ended(status, stderr, stdout)

    def kill(self, command: Sequence[str], after: float) -> bool:
        """Run a command of the program, and kill it after some seconds; return whether it came to that."""
        self._order(command, seconds=after)
        return self._line.recv() is None

    def _order(self, command: Sequence[str], **how: Any) -> None:
        if tuple(command[: len(PROGRAM)]) != PROGRAM:
            raise ValueError(command)
        self._line.send(_Order(arguments=command[len(PROGRAM) :], folder=Path(self._folder.name), **how))


def _serve(line: Connection) -> None:
    """Carry out orders until nobody gives any more."""
    _warm_up()
    if threading.active_count() > 1:
        raise SystemExit("a thread of the first run is still there: a fork would leave it out")
    gc.collect()
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    with contextlib.suppress(EOFError):
        while True:
            line.send(_carry_out(line.recv(), line))


def _carry_out(order: _Order, line: Connection) -> int | None:
    """Return how a run ended, ``None`` if it had to be killed."""
    child = os.fork()
    if not child:
        line.close()
        _become(order)
    in_time = signal.sigtimedwait([signal.SIGCHLD], order.seconds)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time:
        signal.sigtimedwait([signal.SIGCHLD], 0)  # that of the killed one
    return status if in_time or status != -signal.SIGKILL else None


def _become(order: _Order) -> NoReturn:
    """Go on as the program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    for descriptor, name in enumerate(_STREAMS, start=1):
        opened = os.open(order.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(order.environment)
    if "LD_PRELOAD" in os.environ:
        ctypes.CDLL(None).fault_arm()
    if order.descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order.descriptors, order.descriptors))
    sys.argv[1:] = order.arguments
    program()
    raise SystemExit


def _warm_up() -> None:
    """Run the program, so that all that it imports is there."""
    streams, arguments = (sys.stdout, sys.stderr), sys.argv
    with tempfile.TemporaryDirectory(prefix="nursery-") as name:
        folder = Path(name)
        write_series(folder, elements=10)
        series = sorted(map(str, folder.iterdir()))
        for options in (
            ["--resume", "-o", f"{folder}/a.safetensors"],
            ["--max-shard-size", "4KB", "-o", f"{folder}/b/"],
        ):
            sys.argv = ["ema-avg", *series, "--decay", "0.9", "-q", *options]
            with contextlib.suppress(SystemExit):
                program()
            sys.stdout, sys.stderr = streams
    sys.argv = arguments


if __name__ == "__main__":
    from tests.faults.nursery import _serve as serve  # orders are told by the name of this module

    serve(Connection(int(sys.argv[1])))
