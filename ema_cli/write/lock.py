"""One run at a time per output: a lock beside it, and the sweeping of what killed runs left."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import OutputLocked
from ema_cli.naming import report_name
from ema_cli.text import quoted
from ema_cli.write.leftovers import sweep
from ema_cli.write.publish import raise_output_error


@contextlib.contextmanager
def output_lock(path: Path, *, keep_resumable: bool = False) -> Iterator[None]:
    """Hold the lock of the output ``path``, and sweep what killed runs left beside it.

    Args:
        path: of the output.
        keep_resumable: leave what this run will resume.

    Raises:
        OutputLocked: another run holds it.
        OutputError: the folder does not exist or is not writable.

    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = _lock(lock)
    except BlockingIOError as error:
        raise OutputLocked(f"another run is writing {quoted(str(path))}", hint="wait for it to end") from error
    except OSError as error:
        raise_output_error(path, error)
    try:
        _sweep(path, keep_resumable=keep_resumable)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        with contextlib.suppress(OSError):  # the descriptor is gone all the same, and the lock with it
            os.close(descriptor)


def _sweep(path: Path, *, keep_resumable: bool) -> None:
    try:
        for place in (path, path.with_name(report_name(path.name))):
            sweep(place, keep_resumable=keep_resumable)
    except OSError as error:
        raise_output_error(path, error)


def _lock(lock: Path) -> int:
    """Lock the file called ``lock``; try again if another run removed it in between."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
