"""The outermost frame: run the command line, and turn whatever ends it into one clear message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, get_args

# Typer vendors Click and keeps the base of its own usage errors private; the version is pinned below 0.29.
from typer._click.exceptions import ClickException

from ema_cli.cli.app import app
from ema_cli.cli.ci import CiMode, detect
from ema_cli.cli.console import Console, Style
from ema_cli.cli.exit import ExitCode, describe_bug, exit_code
from ema_cli.cli.signals import Terminated
from ema_cli.errors import EmaAvgError, UsageError


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # The fold has threads of its own; those of numpy's BLAS would only cost start-up time and memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    service = detect(_ci_mode(arguments), os.environ)
    console = Console(Style(json="--json" in arguments, color="--no-color" not in arguments, service=service))
    console.begin()
    try:
        code = int(app(arguments, prog_name="ema-avg", standalone_mode=False, obj=console) or ExitCode.OK)
    except ClickException as error:
        code = ExitCode.USAGE
        if error.format_message():  # without arguments the help was shown, and there is nothing to add
            console.error(UsageError(error.format_message(), hint="ema-avg --help"), code)
    except EmaAvgError as error:
        code = exit_code(error)
        console.error(error, code)
    except Terminated as signalled:
        code = ExitCode.SIGNAL + signalled.number
        name = signal.Signals(signalled.number).name
        console.error(EmaAvgError(f"interrupted by {name}; {signalled.left}"), code)
    except Exception as bug:  # noqa: BLE001 - the last resort of the program
        code = ExitCode.BUG
        console.error(describe_bug(bug), code)
    console.end()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never open
        sys.stdout.flush()
    if code > ExitCode.SIGNAL:
        _exit_now(code)
    sys.exit(code)


def _ci_mode(arguments: Sequence[str]) -> CiMode:
    """Return the value of ``--ci`` before the command line is parsed: that, too, can fail and be told."""
    words = " ".join(arguments).replace("--ci=", "--ci ").split()
    given = dict(pairwise(words)).get("--ci", "auto")
    return next((mode for mode in get_args(CiMode) if mode == given), "auto")


def _exit_now(code: int) -> NoReturn:
    """Leave without waiting for threads of libraries."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    os._exit(code)
