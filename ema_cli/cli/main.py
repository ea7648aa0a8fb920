"""The outermost frame: run the command line, and turn whatever ends it into one clear message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

# Typer vendors Click and keeps the base of its own usage errors private; the version is pinned below 0.29.
from typer._click.exceptions import ClickException

from ema_cli.cli.app import app
from ema_cli.cli.console import Console, Style
from ema_cli.cli.exit import ExitCode, exit_code
from ema_cli.errors import EmaAvgError, UsageError

DEBUG_VARIABLE = "EMA_AVG_DEBUG"


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; raised so that everything on the way out cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    code = _run(arguments)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if code > ExitCode.SIGNAL:
        _exit_now(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    console = Console(Style(json="--json" in arguments, color="--no-color" not in arguments))
    try:
        return int(app(arguments, prog_name="ema-avg", standalone_mode=False) or ExitCode.OK)
    except EmaAvgError as error:
        return _fail(console, error, exit_code(error))
    except ClickException as error:
        return _fail(console, UsageError(error.format_message(), hint="ema-avg --help"), ExitCode.USAGE)
    except KeyboardInterrupt:
        return _interrupted(console, signal.SIGINT)
    except Terminated as signalled:
        return _interrupted(console, signalled.number)
    except Exception as bug:  # noqa: BLE001 - the last resort of the program
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        report = EmaAvgError(
            f"this is a bug in ema-avg: {type(bug).__name__}: {bug}",
            hint=f"please report it with the output of a run under {DEBUG_VARIABLE}=1",
        )
        return _fail(console, report, ExitCode.BUG)


def _fail(console: Console, error: EmaAvgError, code: ExitCode) -> ExitCode:
    console.error(error, code)
    return code


def _interrupted(console: Console, number: int) -> int:
    code = ExitCode.SIGNAL + number
    name = signal.Signals(number).name
    console.error(EmaAvgError(f"interrupted by {name}; no output was changed"), code)
    return code


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """Raise once; later signals do not interrupt the cleaning up."""
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)


def _exit_now(code: int) -> NoReturn:
    """Leave without waiting for threads of libraries."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)
