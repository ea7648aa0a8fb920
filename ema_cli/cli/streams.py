"""Standard streams that may be closed, full, or read by nobody: what becomes of files does not depend on them."""

from __future__ import annotations

import contextlib
import os
from typing import Any, TextIO, cast

from ema_cli.errors import OutputError

_STANDARD = (0, 1, 2)


def reserve_descriptors() -> None:
    """Open what is closed of the standard descriptors.

    The next file that is opened would get the number otherwise, and what a library says on it would go into the file.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def guarded(stream: TextIO | None, *, essential: bool) -> TextIO:
    """Return the stream in a form that a reader who went away does not matter to.

    Args:
        stream: a standard stream; ``None`` if it was closed when Python started.
        essential: raise ``OutputError`` if it takes no bytes for another reason, such as a full device.

    """
    return cast("TextIO", None if stream is None else _Guarded(stream, essential=essential))


class _Guarded:
    def __init__(self, stream: TextIO, *, essential: bool) -> None:
        self._stream = stream
        self._essential = essential

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Let the rest go nowhere, also what is still in a buffer."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(descriptor, self._stream.fileno())
            os.close(descriptor)
        if self._essential and not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)
