"""A failure of a store: its kind, its reason in words, and whether a retry may help."""

from __future__ import annotations

from enum import Enum

from ema_cli.record import record


class FailureKind(Enum):
    """What is wrong, from the point of view of a user."""

    MISSING = "missing"
    """The object does not exist."""
    DENIED = "denied"
    """The store requires a login, or denies access."""
    REPLACED = "replaced"
    """The object is no longer the one that was opened."""
    REFUSED = "refused"
    """The store does not do what is asked, and will not do it the next time."""
    BUSY = "busy"
    """The store asks to wait."""
    FAILING = "failing"
    """The store reports an error, or its answer cannot be used."""
    UNREACHABLE = "unreachable"
    """There is no answer: no such host, no connection, no trust, no end of waiting."""


_PASSING = (FailureKind.BUSY, FailureKind.FAILING, FailureKind.UNREACHABLE)


@record
class StoreFailure:
    """What an error of a store means."""

    kind: FailureKind
    reason: str
    """Printable text on one line, without secrets; it continues "cannot be read: "."""
    hint: str = ""
    """What to do."""
    is_final: bool = False
    """Whether a retry is in vain although failures of this kind may pass."""
    wait_seconds: float = 0.0
    """How long the store asks to wait before the next try."""

    @property
    def may_pass(self) -> bool:
        """Whether a retry may help."""
        return self.kind in _PASSING and not self.is_final


class StoreError(OSError):
    """An error of a store whose meaning is known where it is raised."""

    def __init__(self, failure: StoreFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure
