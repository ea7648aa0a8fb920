"""Give a finished file its name, durably; small files are written whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import NoReturn

from ema_cli.errors import OutputError
from ema_cli.text import quoted
from ema_cli.write.temp_names import temporary_name

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISREG, "a file"))
NEW_FILE = 0o666
"""Permissions of every file that is made here; the system takes the umask off."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole, durable, and under its name only then.

    Raises:
        OutputError: it cannot be written.

    """
    file = SmallFile(path)
    try:
        file.write(data)
        file.publish()
    finally:
        file.discard()


class SmallFile:
    """A file that is written whole, and gets its name later.

    Args:
        path: of the file when it is published.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temp = temporary_name(path)
        self._published = False

    def write(self, data: bytes) -> None:
        """Make it durable, still under another name. Arrange for ``discard`` before.

        Raises:
            OutputError: it cannot be written.

        """
        try:
            descriptor = os.open(
                self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise_output_error(self._path, error)

    def publish(self) -> None:
        """Give the file its name.

        Raises:
            OutputError: it cannot get it.

        """
        try:
            publish(self._temp, self._path)
        except OSError as error:
            raise_output_error(self._path, error)
        self._published = True

    def discard(self) -> None:
        """Remove the file; nothing happens after ``publish``."""
        if self._published:
            return
        with contextlib.suppress(OSError):  # the next run sweeps it
            self._temp.unlink(missing_ok=True)


def publish(temp: Path, path: Path) -> None:
    """Rename, and make the name durable."""
    temp.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the system cannot.

    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(path: Path, *, folder: bool = False) -> None:
    """Raise, before the work, what would keep a file, or a folder, from being put at ``path`` after it.

    Raises:
        OutputError: there is no such place, it is not writable, or something of another kind is in the way.

    """
    try:
        # A folder is opened for reading to make its names durable.
        if not os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
            code = errno.EACCES if path.parent.is_dir() else errno.ENOENT
            raise OSError(code, os.strerror(code))
        mode = path.lstat().st_mode
        _check_owner(path)
    except OSError as error:
        if error.errno == errno.ENOENT and path.parent.is_dir():
            return
        raise_output_error(path, error)
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kind = next((kind for is_one, kind in _KINDS if is_one(mode)), "not a regular file")
        raise OutputError(f"{quoted(str(path))} cannot be written: it is {kind}", hint="choose another name")


def _check_owner(path: Path) -> None:
    """Raise ``OSError`` if ``path`` belongs to somebody else, in a folder such as ``/tmp`` where only owners rename."""
    folder, user = path.parent.stat(), os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, path.lstat().st_uid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def raise_output_error(path: Path, error: OSError) -> NoReturn:
    """Raise ``OutputError`` for a system error on the way to ``path``."""
    hints = {
        errno.ENOENT: f"mkdir -p {path.parent}",
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
    }
    reason = error.strerror or str(error)
    raise OutputError(
        f"{quoted(str(path))} cannot be written: {reason}", hint=hints.get(error.errno or 0, "")
    ) from error
