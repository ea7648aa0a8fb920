"""Why the processes of a run end early: the first failure of any of them, which all report and end with."""

from __future__ import annotations

import json
from dataclasses import asdict

from ema_cli.record import record
from ema_cli.records.record_types import build


@record
class Failure:
    """What a process of a run has met."""

    rank: int
    kind: str
    """Name of the class of ``ema_cli.errors``."""
    message: str
    hint: str = ""
    signal: int = 0
    """The signal that ended the process; 0 for an error."""
    is_lost: bool = False
    """Whether the process ended without a word."""

    @property
    def is_final(self) -> bool:
        """Whether the run would fail again: it was neither interrupted nor killed."""
        return not self.signal and not self.is_lost

    def encoded(self) -> bytes:
        """Return the failure as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Failure:
        """Return the failure that ``encoded`` has made."""
        found: Failure = build(cls, json.loads(data))
        return found


class PeerFailed(BaseException):
    """Another process of the run has failed, or is lost, so this one ends, too: not an error of its own."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def lost(rank: int, why: str) -> Failure:
    """Return the failure of a process that ended without a word, as far as others see."""
    return Failure(
        rank=rank,
        is_lost=True,
        kind="SystemExhausted",
        message=f"it ended without a word: {why}",
        hint="look into its log, and at the memory of its node: the system may have killed it",
    )
