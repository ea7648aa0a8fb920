"""The events of a run. The command line shows them; the core itself never prints."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.errors import RunWarning
from ema_cli.record import record
from ema_cli.records.plan import Plan


@record
class Opening:
    """The structure of an input is about to be read."""

    done: int
    total: int


@record
class Planned:
    """The plan is complete; no tensor has been read yet."""

    plan: Plan


@record
class Progress:
    """Bytes of input done, out of the bytes planned."""

    activity: str
    """``hashing``, ``folding``, ``comparing`` and the like."""
    done_bytes: int
    total_bytes: int


@record
class BatchDone:
    """The model has seen another batch of data."""

    done: int
    total: int | None
    """``None`` if the data has no length."""


@record
class WarningIssued:
    """Something is probably not what the user wants."""

    warning: RunWarning


@record
class Info:
    """A message to show that is not a warning."""

    message: str


Event = Opening | Planned | Progress | BatchDone | WarningIssued | Info
Listener = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Listen to nothing."""


class Counted:
    """Counts bytes and reports the sum to the listener."""

    def __init__(self, activity: str, total_bytes: int, listener: Listener) -> None:
        self._activity = activity
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._listener = listener

    def add(self, nbytes: int) -> None:
        """Count bytes that are done."""
        self._done_bytes += nbytes
        self._listener(Progress(activity=self._activity, done_bytes=self._done_bytes, total_bytes=self._total_bytes))
