"""One run at a time per output: a lock beside it, and the sweeping of what killed runs left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import OutputError, OutputLocked
from ema_cli.naming import report_name
from ema_cli.text import quoted
from ema_cli.write.publish import raise_output_error
from ema_cli.write.temp_names import sweep

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems say that have none: Lustre mounted without ``flock``, NFS without its lock service."""


@contextlib.contextmanager
def output_lock(path: Path, *, resume: bool = False) -> Iterator[bool]:
    """Hold the lock of the output ``path``, and sweep what killed runs left beside it.

    Inside the context it is ``True``. On a file system without locks it is ``False``, and nothing is swept: that may
    belong to a run that is under way. Runs that write one output together do not disturb each other even then, as each
    has a name of its own for what is half written; but runs that resume would share it.

    Args:
        path: of the output.
        resume: leave what an interrupted run kept, as this one goes on with it.

    Raises:
        OutputLocked: another run holds it.
        OutputError: the folder does not exist or is not writable, or there are no locks to resume under.

    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = _lock(lock)
    except BlockingIOError as error:
        raise OutputLocked(f"another run is writing {quoted(str(path))}", hint="wait for it to end") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise_output_error(path, error)
        _remove(lock)
        if resume:
            message = f"{quoted(str(path))} is on a file system without locks: {error.strerror}"
            raise OutputError(message, hint="leave out --resume") from error
        yield False
        return
    try:
        _sweep(path, keep_resumable=resume)
        yield True
    finally:
        _unlock(descriptor, lock)


def _unlock(descriptor: int, lock: Path) -> None:
    _remove(lock)
    with contextlib.suppress(OSError):  # the descriptor is gone all the same, and the lock with it
        os.close(descriptor)


def _remove(lock: Path) -> None:
    with contextlib.suppress(OSError):  # a later run uses the one that is there
        lock.unlink()


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
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if _is_named(descriptor, lock):
                return descriptor
        except BaseException:
            _unlock(descriptor, lock)
            raise
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
