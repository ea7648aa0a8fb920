"""Exit codes, and the exit code of each error. Codes are stable; new ones may be added."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from enum import IntEnum

from ema_cli import errors
from ema_cli.cli.process import Terminated
from ema_cli.text import without_secrets

DEBUG_VARIABLE = "EMA_AVG_DEBUG"
_EXHAUSTED_ERRNOS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


class ExitCode(IntEnum):
    """The meanings of the exit status."""

    OK = 0
    """Written, or already up to date; equal; verified."""
    DIFFERENT = 1
    """``diff``: the checkpoints differ."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    INPUT_REFUSED = 3
    """An input is malformed, unsafe, mismatched or not finite."""
    INPUT_CHANGED = 4
    """An input changed or vanished while it was being read, or its store or server failed."""
    OUTPUT = 5
    """The output cannot be written: it exists, no space, no permission, an I/O error."""
    LOCKED = 6
    """Another run is writing the same output."""
    NOTHING_MATCHED = 7
    """No checkpoint matched, or a named one is missing."""
    STRICT = 8
    """Warnings under ``--strict``."""
    BATCH_FAILED = 9
    """A batch is complete, and some of its jobs failed."""
    VERIFICATION = 10
    """``verify``: the output, its report or its inputs have changed."""
    BUG = 70
    """A bug in ema-avg."""
    EXHAUSTED = 71
    """The system is out of memory, threads or descriptors, or a library cannot be loaded."""
    SIGNAL = 128
    """Base of the exit status after a signal: 128 plus its number."""


_BY_ERROR: dict[type[errors.EmaAvgError], ExitCode] = {
    errors.UsageError: ExitCode.USAGE,
    errors.InputRefused: ExitCode.INPUT_REFUSED,
    errors.InputChanged: ExitCode.INPUT_CHANGED,
    errors.OutputError: ExitCode.OUTPUT,
    errors.OutputLocked: ExitCode.LOCKED,
    errors.NothingMatched: ExitCode.NOTHING_MATCHED,
    errors.NothingNew: ExitCode.NOTHING_MATCHED,
    errors.StrictWarnings: ExitCode.STRICT,
    errors.VerificationFailed: ExitCode.VERIFICATION,
    errors.SystemExhausted: ExitCode.EXHAUSTED,
    errors.EmaAvgError: ExitCode.BUG,
}


def exit_code(error: errors.EmaAvgError) -> ExitCode:
    """Return the exit code of an error: of its class, or of the nearest class above it."""
    return next(_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)


def explain(failure: BaseException) -> tuple[errors.EmaAvgError, int]:
    """Return the error that a failure is for the user, and its exit code.

    Raises:
        BaseException: the failure itself, if it is no error: the end of the interpreter and the like.

    """
    if isinstance(failure, RuntimeError) and isinstance(failure.__cause__, Terminated):
        # Until 3.11, Python wraps what is raised while a class is made.
        failure = failure.__cause__
    match failure:
        case errors.EmaAvgError():
            error = failure
        case Terminated():
            message = f"interrupted by {signal.Signals(failure.number).name}; {failure.left}"
            return errors.EmaAvgError(message), ExitCode.SIGNAL + failure.number
        case Exception():
            error = describe_exhaustion(failure) or describe_bug(failure)
        case _:
            raise failure
    return error, exit_code(error)


def describe_exhaustion(failure: BaseException) -> errors.SystemExhausted | None:
    """Return the error for a failure of the system: no memory, threads, descriptors or library; ``None`` for others."""
    hint = "ulimit -a; try --threads 1 --max-memory 16MB"
    if isinstance(failure, MemoryError):
        message = f"not enough memory{f': {failure}' if str(failure) else ''}"
    elif isinstance(failure, ModuleNotFoundError) and failure.name:
        message, hint = f"{failure.name} is not installed", f"pip install {failure.name}"
    elif isinstance(failure, ImportError):
        cause: BaseException = failure
        while cause.__cause__ is not None:  # libraries wrap it in longer messages
            cause = cause.__cause__
        message = f"a library cannot be loaded: {cause}"
        if os.strerror(errno.ENOENT) in message:
            hint = "install the package that needs it again, such as torch"
    elif isinstance(failure, OSError) and failure.errno in _EXHAUSTED_ERRNOS:
        message = f"the system is out of resources: {failure.strerror}"
    elif isinstance(failure, RuntimeError) and "start new thread" in str(failure):
        message = "the system cannot start more threads"
    else:
        return None
    return errors.SystemExhausted(message.splitlines()[0], hint=hint)


def describe_bug(bug: Exception) -> errors.EmaAvgError:
    """Return the error for an unexpected exception; print its traceback if the debugging variable is set."""
    if os.environ.get(DEBUG_VARIABLE):
        sys.stderr.write(without_secrets("".join(traceback.format_exception(bug))))
    return errors.EmaAvgError(
        f"this is a bug in ema-avg: {type(bug).__name__}: {bug}",
        hint=f"please report it with the output of a run under {DEBUG_VARIABLE}=1",
    )
