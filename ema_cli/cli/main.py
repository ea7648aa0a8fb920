"""Run the command line, and turn every way it can end into one clear message and an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

# Typer vendors Click and keeps the base of its own usage errors private; the version is pinned below 0.29.
from typer._click.exceptions import ClickException, NoSuchOption

from ema_cli.cli.app import app
from ema_cli.cli.ci import CiMode, detect
from ema_cli.cli.console import Console, Style
from ema_cli.cli.exit import DEBUG_VARIABLE, ExitCode, explain
from ema_cli.cli.group import is_average
from ema_cli.cli.process import Terminated, end_by_signals, guarded
from ema_cli.distributed.launch import Launch, alone, find_launch
from ema_cli.errors import OutputError, UsageError
from ema_cli.fold.address_space import check_address_space
from ema_cli.naming import nearest
from ema_cli.text import regex, safe_text, without_secrets

_REPORT_SECONDS = 3
_ONE_DASH = regex(r"-[a-z][a-z-]{2,30}")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = guarded(sys.stdout, essential=True)
    sys.stderr = guarded(sys.stderr, essential=False)
    # The fold has its own threads; those of numpy's BLAS would only cost start-up time and memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    launch = find_launch(os.environ)
    if launch is not None and launch.rank:
        _be_silent(launch, arguments)
    service = detect(_ci_mode(arguments), os.environ)
    console = Console(Style(json="--json" in arguments, color="--no-color" not in arguments, service=service), launch)
    console.begin()
    code = _attempt(arguments, console)
    console.end()
    if launch is not None and launch.rank and ExitCode.OK < code < ExitCode.SIGNAL and not console.met:
        _let_first_report()
    with contextlib.suppress(OutputError, ValueError, AttributeError):  # full, closed, or never open
        sys.stdout.flush()
    gc.freeze()  # the end of the interpreter need not look at every object again
    if code > ExitCode.SIGNAL:  # do not wait for threads of libraries
        with contextlib.suppress(ValueError, AttributeError):
            sys.stderr.flush()
        os._exit(code)
    end_by_signals()
    sys.exit(code)


def _be_silent(launch: Launch, arguments: Sequence[str]) -> None:
    """Print nothing, unless for debugging: rank 0 does. End if the command is one for rank 0 alone."""
    if not is_average(arguments):
        place = f"rank {launch.rank} of {launch.size}"
        sys.stderr.write(f"{place} leaves this command to rank 0. {alone(launch.launcher)}\n")
        sys.exit(ExitCode.OK)
    if not os.environ.get(DEBUG_VARIABLE):
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open to the end


def _let_first_report() -> None:
    """Wait: rank 0 has met the same usage error, and torchrun ends all ranks when one ends."""
    with contextlib.suppress(Terminated):
        time.sleep(_REPORT_SECONDS)


def _attempt(arguments: Sequence[str], console: Console) -> int:
    """Run the command line, report an error if it fails, and return the exit code."""
    try:
        check_address_space()
        return int(app(list(arguments), prog_name="ema-avg", standalone_mode=False, obj=console) or ExitCode.OK)
    except ClickException as wrong:
        if not wrong.format_message():  # without arguments the help was shown
            return ExitCode.USAGE
        error, code = explain(_usage_error(wrong, arguments))
    except (Exception, Terminated) as failure:  # noqa: BLE001 - every failure ends in one message
        error, code = explain(failure)
    with contextlib.suppress(OutputError):  # the exit code remains
        console.error(error, code)
    return code


def _usage_error(wrong: ClickException, arguments: Sequence[str]) -> UsageError:
    """Return the error for a command line that cannot be parsed: of an unknown option, with the nearest one."""
    message = wrong.format_message()
    for value in (part for argument in arguments for part in (argument, argument.partition("=")[2]) if part):
        message = message.replace(value, without_secrets(value, whole=True))  # it may be repeated
    context = getattr(wrong, "ctx", None)  # of a usage error
    hint = f"{context.command_path if context else 'ema-avg'} --help"
    if isinstance(wrong, NoSuchOption):
        name = _with_one_dash(wrong.option_name, arguments)
        message = f"there is no option {safe_text(name)}"
        if context is not None:
            parents = (context, context.parent) if context.parent else (context,)
            known = [parameter for each in parents for parameter in each.command.params]
            hint = _nearest_option(name, known) + hint
    return UsageError(message, hint=hint)


def _with_one_dash(name: str, arguments: Sequence[str]) -> str:
    """Return the long option of which ``-d`` was read as one of several short ones: ``-decay``."""
    words = (argument.partition("=")[0] for argument in arguments)
    return next((word for word in words if _ONE_DASH.fullmatch(word) and name in (f"-{c}" for c in word)), name)


def _nearest_option(name: str, parameters: Sequence[Any]) -> str:
    """Return the option of a command whose name is nearest, with the first sentence of its help; empty if none is."""
    by_flag = {flag: one for one in parameters for flag in one.opts if flag.startswith("--")}
    for flag in nearest(name, by_flag, most=1, cutoff=0.7):
        one = by_flag[flag]
        value = f" {one.metavar}" if one.metavar and not one.is_flag else ""
        meaning, *_ = re.split(r"[.;] |\.$| \\\[", one.help or "")
        return f"{flag}{value} ({meaning}); all options: "
    return ""


def _ci_mode(arguments: Sequence[str]) -> CiMode:
    """Return the value of ``--ci``, needed before the command line is parsed: parse errors are annotated too."""
    words = " ".join(arguments).replace("--ci=", "--ci ").split()
    given = dict(pairwise(words)).get("--ci", "auto")
    return next((mode for mode in get_args(CiMode) if mode == given), "auto")
