"""Signals that come while a file is written in the main thread: they act when it is complete, or is removed again.

Python runs handlers between any two instructions of the main thread, also where a lock was just taken or a temporary
file made. A run of the command line writes in other threads; a training program writes where it trains.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_signals() -> Iterator[list[BaseException | int]]:
    """Yield a list of what came to end the program: whoever writes stops if there is something in it.

    Handlers of the program run at once; what they raise is in the list, and raised at the end. A signal without a
    handler is in it by its number, and sent again at the end. In other threads than the main one there is nothing to
    do.
    """
    came: list[BaseException | int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    known = {number: signal.getsignal(number) for number in _SIGNALS}
    replaced = {number: old for number, old in known.items() if callable(old) or old is signal.SIG_DFL}
    for number, old in replaced.items():
        signal.signal(number, _held(old if callable(old) else None, came))
    try:
        yield came
    finally:
        for number, old in replaced.items():
            signal.signal(number, old)
    for one in came:
        if isinstance(one, BaseException):
            raise one
        signal.raise_signal(one)


def _held(
    handler: Callable[[int, FrameType | None], object] | None, came: list[BaseException | int]
) -> Callable[[int, FrameType | None], None]:
    def receive(number: int, frame: FrameType | None) -> None:
        if handler is None:
            came.append(number)
            return
        try:
            handler(number, frame)
        except BaseException as error:  # noqa: BLE001 - raised at the end
            came.append(error)

    return receive
