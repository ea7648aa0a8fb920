"""``ema-avg`` under torchrun or srun: rank 0 leads and prints, the others assist, and all end with one exit code."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli import errors
from ema_cli.cli.console import Console
from ema_cli.cli.exit import explain
from ema_cli.cli.process import Terminated, speak_again
from ema_cli.distributed.assistant import Assistant
from ema_cli.distributed.devices_of_ranks import with_own_threads
from ema_cli.distributed.failure import Failure, PeerFailed
from ema_cli.distributed.launch import Launch
from ema_cli.distributed.leader import Leader
from ema_cli.distributed.meeting import Meeting
from ema_cli.options.average import Options
from ema_cli.pipeline import assist_average


def average_together(
    launch: Launch, options: Options, console: Console, lead: Callable[[Options, Leader], None]
) -> None:
    """Average as one of several processes; rank 0 calls ``lead``.

    Raises:
        EmaAvgError: of this process, or the first of another.
        Terminated: this process got a signal, or another.

    """
    meeting = _meet(launch, console)
    console.met = True
    console.at_end.callback(meeting.leave)
    options = with_own_threads(options, meeting.on_cores)
    try:
        if meeting.is_first:
            lead(options, Leader(meeting, lambda met: _report(met, meeting)))
        else:
            assist_average(options, Assistant(meeting))
    except PeerFailed as ended:
        if meeting.lost_first and meeting.rank == 1:
            speak_again()
        raise _error_of(ended.failure, meeting) from None
    except (Exception, Terminated) as met:
        first = _report(met, meeting)
        if first.rank != meeting.rank and (isinstance(met, Terminated) or not meeting.is_first):
            raise _error_of(first, meeting) from None  # it is the cause: the launcher ends all if one fails
        raise


def _report(met: BaseException, meeting: Meeting) -> Failure:
    """Let the other processes end, because of what this one has met; return the first failure of any."""
    error, _ = explain(met)
    number = met.number if isinstance(met, Terminated) else 0
    failure = Failure(
        rank=meeting.rank, kind=type(error).__name__, message=error.message, hint=error.hint, signal=number
    )
    return meeting.fail(failure)


def _meet(launch: Launch, console: Console) -> Meeting:
    """Meet the other processes.

    Raises:
        UsageError: they did not come.

    """
    try:
        return Meeting(launch, console.talk)
    except errors.UsageError:
        speak_again()
        raise
    except PeerFailed as ended:
        raise errors.UsageError(ended.failure.message, hint=ended.failure.hint) from None


def _error_of(failure: Failure, meeting: Meeting) -> errors.EmaAvgError | Terminated:
    """Return what another process has met, as this one raises it."""
    name = meeting.name(failure.rank)
    if failure.signal:
        signalled = Terminated(failure.signal)
        signalled.left = f"{name} got it, and no output was changed"
        return signalled
    kind = getattr(errors, failure.kind, errors.EmaAvgError)
    is_known = isinstance(kind, type) and issubclass(kind, errors.EmaAvgError)
    return (kind if is_known else errors.EmaAvgError)(f"{name}: {failure.message}", hint=failure.hint)
