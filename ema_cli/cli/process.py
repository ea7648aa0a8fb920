"""The process: signals end a run by an exception, and lost standard streams do not harm the files written."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from ema_cli.errors import OutputError
from ema_cli.text import without_secrets

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STANDARD = (0, 1, 2)


class Terminated(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.left = "no output was changed"
        """State of the outputs, for the error message."""


def install_signals() -> None:
    """Raise ``Terminated`` on the first signal, except signals ignored by the parent process (``nohup``)."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def end_by_signals() -> None:
    """Let signals end the process without a word: the run is over, and only libraries have something left to do."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _terminate:
            signal.signal(number, signal.SIG_DFL)


_arrived: list[int] = []
"""The number of the signal that arrived, if any."""


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """Raise once; ignore later signals, which would interrupt the cleanup."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    _arrived.append(number)
    raise Terminated(number)


def raise_if_terminated() -> None:
    """Raise again what other code has swallowed: an ``except`` without a class."""
    if _arrived:
        raise Terminated(_arrived[0])


def reserve_descriptors() -> None:
    """Open closed standard descriptors on the null device.

    Otherwise the next opened file would get such a number, and messages of libraries would be written into the file.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Keep code of the user from what this process relies on, inside a ``with`` block.

    What it writes to standard output, also in C, in a child process or when this process exits, goes to standard
    error. Forked processes, such as the workers of a DataLoader, do not clean up for this one when a signal arrives.
    The working directory is the same again at the end.
    """
    folder = None
    with contextlib.suppress(OSError):  # it was removed
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kept = os.dup(1)
    _in_foreign_code.append(True)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        import ctypes  # noqa: PLC0415 - needed for code of the user alone

        _in_foreign_code.pop()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C libraries have buffered
        os.dup2(kept, 1)
        os.close(kept)
        atexit.register(os.dup2, 2, 1)  # runs before what the user's code has registered
        if folder is not None:
            os.fchdir(folder)
            os.close(folder)


_in_foreign_code: list[bool] = []


def _release_signals() -> None:
    """Let a forked process end by signals without a word; an interrupt from a terminal is left to its parent."""
    if _in_foreign_code:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_release_signals)


def guarded(stream: TextIO | None, *, essential: bool) -> TextIO:
    """Return a stream that ignores the loss of its reader. Secrets do not pass standard error, whoever writes there.

    Args:
        stream: a standard stream; ``None`` if it was closed when Python started.
        essential: raise ``OutputError`` if writing fails for another reason, such as a full device.

    """
    return cast("TextIO", None if stream is None else _Guarded(stream, essential=essential))


def speak_again() -> None:
    """Print errors nevertheless, in a rank that is silent: rank 0 cannot."""
    sys.stderr = guarded(sys.__stderr__, essential=False)


def is_lost(stream: object) -> bool:
    """Return whether a guarded stream could not be written to, and all that follows is discarded."""
    return isinstance(stream, _Guarded) and stream.lost


class _Guarded:
    lost = False

    def __init__(self, stream: TextIO, *, essential: bool) -> None:
        self._stream = stream
        self._essential = essential

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text if self._essential else without_secrets(text))
        except OSError as error:
            self._discard_rest(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._discard_rest(error)

    def _discard_rest(self, error: OSError) -> None:
        """Send everything from now on to the null device, including the buffer."""
        self.lost = True
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(descriptor, self._stream.fileno())
            os.close(descriptor)
        if self._essential and not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the stream
        return getattr(self._stream, name)
