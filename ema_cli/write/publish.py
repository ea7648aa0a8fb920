"""Publish finished files: give them their names, durably, and only if no other program interfered."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ema_cli.errors import OutputError
from ema_cli.records.files import WrittenFile
from ema_cli.text import quoted

_KINDS = (
    *((stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"), (stat.S_ISREG, "file"), (stat.S_ISFIFO, "FIFO")),
    *((stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device")),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems that cannot make the names in a folder durable by a call, such as some network mounts."""

FileState = tuple[int, int, int, int]
"""Device, inode, size and time of the last modification of a file."""


class NotDurable(OutputError):  # noqa: N818 - named after what happened, like the others
    """A file has its name, but the system could not make the name durable."""


def publish(temp: Path, path: Path) -> None:
    """Rename ``temp`` to ``path``, and make the name durable.

    Raises:
        NotDurable: the file has its name, but may not have it after a crash of the system.
        OSError: the system refuses.

    """
    temp.replace(path)
    try:
        sync_folder(path.parent)
    except OSError as error:
        reason = f"it has its name, but may lose it if the system crashes: {error.strerror or error}"
        raise NotDurable(f"{quoted(str(path))} is not durable: {reason}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the system cannot.

    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        with contextlib.suppress(OSError):  # nothing was written through this descriptor
            os.close(descriptor)


def state_of(path: Path) -> FileState | None:
    """Return the state of the file or folder at ``path``; ``None`` if there is none.

    Raises:
        OSError: the path cannot be looked up.

    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refuse_foreign(path: Path, before: FileState | None) -> None:
    """Raise if another program has put or changed a file at ``path``: the user did not agree to its loss.

    ``before`` is what ``state_of`` returned when the run began.

    Raises:
        OutputError: there is a foreign file.
        OSError: the path cannot be looked up.

    """
    now = state_of(path)
    if now is not None and now != before:
        change = "changed" if before is not None else "put there"
        raise OutputError(
            f"{quoted(str(path))} was {change} by another program during the run", hint="choose another name with -o"
        )


def refuse_changed(temp: Path, written: WrittenFile) -> None:
    """Raise if a finished file was changed after it was verified.

    Raises:
        OutputError: it was changed.
        OSError: it was removed.

    """
    status = os.lstat(temp)
    if (status.st_size, status.st_mtime_ns) != (written.nbytes, written.modified_ns):
        raise OutputError(f"{quoted(str(temp))} was changed by another program during the run")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals inside: between the first rename of a run and its last report it is too late to stop.

    Python runs signal handlers in the main thread only, so in other threads there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def kind_of(mode: int) -> str:
    """Return what a name refers to, in one word, by the mode of its status."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "special file")


class Writing:
    """A context in which ``path`` is written: a system error in it becomes an ``OutputError`` that names the path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise_output_error(self._path, error)


def raise_output_error(path: Path, error: OSError) -> NoReturn:
    """Raise ``OutputError`` for a system error that occurred while ``path`` was written."""
    hints = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
    }
    reason = error.strerror or str(error)
    raise OutputError(
        f"{quoted(str(path))} cannot be written: {reason}", hint=hints.get(error.errno or 0, "")
    ) from error
