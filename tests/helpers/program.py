"""The program as a process: forked from one that has imported it, or started for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.helpers.fork_server import shared

PROGRAM = (sys.executable, "-m", "ema_cli")
_READ_AT_START = ("LANG", "LC_", "LD_", "OPENBLAS_", "PYTHON")
"""Variables that the interpreter, the loader and numpy read before the program runs."""
Run = Callable[..., "subprocess.CompletedProcess[str]"]
"""Takes arguments of the command line, and variables of the environment as keywords."""


def forked(folder: Path, *libraries: str) -> Run:
    """Return a function that runs the program in a folder, without a terminal; some libraries are imported already."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        if any(name.startswith(_READ_AT_START) for name in environment):
            return started(folder)(*arguments, **environment)
        words = [*map(str, arguments)]
        with closing(
            shared(*libraries).start(words, folder=folder, environment={**os.environ, **environment})
        ) as running:
            status = running.wait()
            assert status is not None
            stdout, stderr = running.output()
        return subprocess.CompletedProcess(["ema-avg", *words], status, stdout, stderr)

    return run


def started(folder: Path) -> Run:
    """Return a function that starts the program in a folder as a shell does, without a terminal."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )

    return run


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
