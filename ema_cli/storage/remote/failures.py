"""The errors of stores as errors for users, with the exit codes 3, 4 and 7 for inputs, and 5 for outputs."""

from __future__ import annotations

from ema_cli.errors import EmaAvgError, InputChanged, InputRefused, NothingMatched, OutputError
from ema_cli.storage.remote.failure_causes import failure_of
from ema_cli.storage.remote.store_failure import FailureKind
from ema_cli.storage.url import Url
from ema_cli.text import quoted


def reading_error(error: Exception, url: Url, *, place: str = "", opened: bool = False) -> EmaAvgError:
    """Return the error for an input.

    Args:
        error: of the store or its library.
        url: of the input.
        place: continues "cannot be read", such as ``at byte 5``.
        opened: the object existed before, so if it is missing now it was removed.

    """
    if isinstance(error, EmaAvgError):
        return error
    failure, name = failure_of(error, url), quoted(str(url))
    if failure.kind is FailureKind.MISSING and not opened:
        return NothingMatched(f"there is no {name}")
    if failure.kind in (FailureKind.MISSING, FailureKind.REPLACED):
        event = "removed" if failure.kind is FailureKind.MISSING else "changed"
        hint = "run again when nothing writes to the checkpoints"
        return InputChanged(f"{name} was {event} while it was being read", hint=hint)
    lasts = failure.kind in (FailureKind.DENIED, FailureKind.REFUSED)
    message = f"{name} cannot be read{place and ' '}{place}: {failure.reason}"
    return (InputRefused if lasts else InputChanged)(message, hint=failure.hint)


def writing_error(error: Exception, url: Url) -> EmaAvgError:
    """Return the error for an output."""
    if isinstance(error, EmaAvgError):
        return error
    failure = failure_of(error, url)
    return OutputError(f"{quoted(str(url))} cannot be written: {failure.reason}", hint=failure.hint)
