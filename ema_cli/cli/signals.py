"""Signals end a run by raising an exception, so that every context cleans up."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.left = "no output was changed"
        """State of the outputs, for the error message."""


def install() -> None:
    """Raise ``Terminated`` on the first signal, except signals ignored by the parent process (``nohup``)."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """Raise once; ignore later signals, which would interrupt the cleanup."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)
