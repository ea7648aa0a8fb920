"""A process that has run the program once, and forks a process for each further run: start-up is paid once.

Each run is a process of its own, with its own arguments, environment, working directory and standard streams, as if a
shell had started it. It only skips the import of the program, which is most of the time that a small run takes.
Tests of start-up itself (signals that arrive during it, limits, closed streams, variables that Python reads) start
the program for real.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from safetensors.numpy import save_file

import ema_cli.__main__ as started_by
from ema_cli.cli import main as program

ROOT = Path(__file__).parents[2]
_INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What to run; the standard streams are sent along with it."""

    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    descriptors: int | None
    """As ``ulimit -n``."""


class Running:
    """A run that was started, and its output until it is closed.

    Args:
        line: reports the process id, and at the end the exit status.
        captured: files that receive standard output and standard error.

    """

    def __init__(self, line: Connection, captured: Sequence[BinaryIO]) -> None:
        self._line, self._captured = line, captured
        self.pid: int = line.recv()

    def kill(self) -> None:
        """Kill the process, which need not have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit status, negative for a signal, or ``None`` if the run has not ended after some seconds."""
        return self._line.recv() if self._line.poll(seconds) else None

    def output(self) -> tuple[str, str]:
        """Return the run's standard output and standard error, with line ends as in ``subprocess``."""
        for file in self._captured:
            file.seek(0)
        texts = (file.read().decode(errors="replace") for file in self._captured)
        stdout, stderr = (text.replace("\r\n", "\n").replace("\r", "\n") for text in texts)
        return stdout, stderr

    def close(self) -> None:
        """Close this side of the standard streams; the run need not have ended."""
        self._line.close()
        for file in self._captured:
            file.close()


class ForkServer:
    """Starts runs of the program as forks of one process.

    Args:
        variables: added to the environment in which that process is started.
        libraries: modules that the runs need, and that the program imports only for some.

    """

    def __init__(self, variables: Mapping[str, str] | None = None, libraries: Sequence[str] = ()) -> None:
        self._orders, theirs = socket.socketpair()
        self._environment = {**os.environ, **(variables or {})}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_server", str(theirs.fileno()), *libraries],
            # As the program sets it before it imports numpy; torch too reads its number of threads when it is imported.
            env={**self._environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        descriptors: int | None = None,
    ) -> Running:
        """Start a run with nothing on standard input.

        Args:
            arguments: of the command line, without the name of the program.
            folder: working directory; that of this process if ``None``.
            environment: all variables of the process; those of this process if ``None``.
            descriptors: limit of open files.

        """
        captured = [os.fdopen(os.memfd_create(name), "w+b") for name in ("stdout", "stderr")]
        ours, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:  # noqa: PTH123
            streams = [nothing.fileno(), *(file.fileno() for file in captured)]
            socket.send_fds(self._orders, [b"."], [theirs.fileno(), *streams])
        line = Connection(ours.detach())
        line.send(
            _Order(
                arguments=arguments,
                folder=folder or Path.cwd(),
                environment=dict(os.environ if environment is None else environment),
                descriptors=descriptors,
            )
        )
        return Running(line, captured)

    def close(self) -> None:
        """End the process; runs that were started continue."""
        self._orders.close()
        self._server.wait()


@cache
def shared(*libraries: str) -> ForkServer:
    """Return the server of this process that has imported some libraries, started on first use."""
    server = ForkServer(libraries=libraries)
    atexit.register(server.close)
    return server


def _serve(orders: socket.socket, libraries: Sequence[str]) -> None:
    """Carry out orders until nobody gives any more."""
    _run_once()
    for library in libraries:
        importlib.import_module(library)
    if threading.active_count() > 1:
        raise SystemExit("a thread of the first run still exists: a fork would not have it")
    for number in _INTERRUPTING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    gc.freeze()
    while True:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that watch the runs
        _, descriptors, *_ = socket.recv_fds(orders, 1, 4)
        if not descriptors:
            return
        if not os.fork():
            orders.close()
            _watch(Connection(descriptors[0]), descriptors[1:])
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(line: Connection, streams: Sequence[int]) -> None:
    """Fork a run, report how it ends, and exit; return in the process of the run alone, as the program."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = line.recv()
    child = os.fork()
    if not child:
        line.close()
        _become(order, streams)
    for descriptor in streams:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the process that gave the order may be gone
        line.send(child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        line.send(status)
    os._exit(0)


def _become(order: _Order, streams: Sequence[int]) -> NoReturn:
    """Continue as the program."""
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    if "FAULT_CALL" in os.environ:
        ctypes.CDLL(None).fault_arm()
    if order.descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order.descriptors, order.descriptors))
    tempfile.tempdir = None
    random.seed()
    if "COVERAGE_OF_FORKS" in os.environ:
        _measure()
    sys.argv = [str(started_by.__file__), *order.arguments]
    program()
    raise SystemExit


def _measure() -> None:
    """Record what this process executes, for the test that runs it: ``scripts/mutants.py`` asks for it."""
    import coverage  # noqa: PLC0415 - only here

    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    measured = coverage.Coverage(
        data_file=os.environ["COVERAGE_OF_FORKS"],
        data_suffix=True,
        config_file=False,
        source=["ema_cli"],
        context=test,
        messages=False,
    )
    measured.start()
    atexit.register(measured.save)
    atexit.register(measured.stop)


def _run_once() -> None:
    """Run the program, so that all its modules are imported."""
    streams, arguments, variables = (sys.stdout, sys.stderr), sys.argv, dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="fork-server-") as name:
        folder = Path(name)
        series = [str(folder / f"ckpt_{step}.safetensors") for step in (1, 2)]
        for step, path in enumerate(series):
            save_file({"w": np.full(10, step, np.float32)}, path)
        for options in (
            ["--resume", "-o", f"{folder}/a.safetensors"],
            ["--max-shard-size", "4KB", "-o", f"{folder}/b/"],
        ):
            sys.argv = ["ema-avg", *series, "--decay", "0.9", "-q", *options]
            try:
                program()
            except SystemExit as done:
                if done.code:
                    raise
            sys.stdout, sys.stderr = streams
    sys.argv = arguments
    os.environ.clear()
    os.environ.update(variables)


if __name__ == "__main__":
    from tests.helpers.fork_server import _serve as serve  # orders name the classes of this module

    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
