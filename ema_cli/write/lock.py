"""One run at a time per output: a lock file beside the output."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ema_cli.errors import OutputError, OutputLocked
from ema_cli.naming import report_name
from ema_cli.text import quoted
from ema_cli.write.held_file import NO_LOCKS, is_named, remove_abandoned
from ema_cli.write.parent_folders import ParentFolders
from ema_cli.write.publish import Writing, raise_output_error
from ema_cli.write.temp_names import lock_name, remove_leftovers


@contextlib.contextmanager
def output_lock(
    path: Path, *, resume: bool = False, before_removal: Callable[[Path], None] | None = None
) -> Iterator[bool]:
    """Hold the lock of the output ``path``, and remove what killed runs left beside it.

    Missing folders above it are made, and removed again if the block fails and leaves them empty.

    Yields ``True``. On a file system without locks it yields ``False``, and nothing is removed: leftovers may belong to
    a run that is still working. Even then, runs that write one output at the same time do not disturb each other,
    because each has its own temporary name; but resumed runs would share one.

    Args:
        path: of the output.
        resume: keep what an interrupted run left, because this run continues it.
        before_removal: is called with ``path`` before leftovers are removed, under the lock.

    Raises:
        OutputLocked: another run holds the lock.
        OutputError: the folder cannot be made or is not writable, or ``resume`` on a file system without locks.

    """
    with ParentFolders(path) as parents:
        yield from _locked(path, parents, resume=resume, before_removal=before_removal)


def _locked(
    path: Path, parents: ParentFolders, *, resume: bool, before_removal: Callable[[Path], None] | None
) -> Iterator[bool]:
    lock = lock_name(path)
    try:
        descriptor = _lock(lock, parents)
    except BlockingIOError as error:
        raise OutputLocked(f"another run is writing {quoted(str(path))}", hint="wait for it to end") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise_output_error(path, error)
        _remove(lock)
        if resume:
            message = f"{quoted(str(path))} is on a file system without locks: {error.strerror}"
            raise OutputError(message, hint="run without --resume") from error
        yield False
        return
    try:
        with Writing(path):
            if before_removal is not None:
                before_removal(path)
            remove_leftovers(path, keep_resumable=resume)
            remove_abandoned(path.with_name(report_name(path.name)))
        yield True
    finally:
        _unlock(descriptor, lock)


def _unlock(descriptor: int, lock: Path) -> None:
    _remove(lock)
    with contextlib.suppress(OSError):  # Linux closes the descriptor anyway, and that releases the lock
        os.close(descriptor)


def _remove(lock: Path) -> None:
    with contextlib.suppress(OSError):  # a later run uses the file that is left
        lock.unlink()


def _lock(lock: Path, parents: ParentFolders) -> int:
    """Lock the file called ``lock``; try again if another run removed it in the meantime."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        descriptor = parents.creating(lambda: os.open(lock, flags, 0o666))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if is_named(descriptor, lock):
                return descriptor
        except BaseException:
            _unlock(descriptor, lock)
            raise
        os.close(descriptor)
