"""What the core tells the outside while it works. The command line renders these; nothing below it prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ema_cli.errors import RunWarning
from ema_cli.records.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The structure of an input is about to be read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The plan is made, and nothing heavy has happened yet."""

    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes of input done, out of those that the plan announced."""

    activity: str
    """``hashing``, ``folding``, ``comparing`` and the like."""
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningIssued:
    """Something that the user should know."""

    warning: RunWarning


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Something worth a line, and no reason to worry."""

    message: str


Event = Opening | Planned | Progress | WarningIssued | Said
Listener = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Listen to nothing."""


class Counted:
    """Adds up bytes and tells the listener of the sum."""

    def __init__(self, activity: str, total_bytes: int, listener: Listener) -> None:
        self._activity = activity
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._listener = listener

    def add(self, nbytes: int) -> None:
        """Count bytes that are done."""
        self._done_bytes += nbytes
        self._listener(Progress(activity=self._activity, done_bytes=self._done_bytes, total_bytes=self._total_bytes))
